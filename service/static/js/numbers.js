// Numbers for people, in one piece on every line; and JSON whose seeds are too large for a JavaScript number.
export function duration(seconds) {
  if (seconds === undefined || seconds === null || !Number.isFinite(seconds)) return "–";
  if (seconds < 5e-5) return "0\u00a0ms";
  if (seconds < 1) return `${(1000 * seconds).toFixed(seconds < 0.01 ? 1 : 0)}\u00a0ms`;
  if (seconds < 90) return `${seconds.toFixed(seconds < 10 ? 2 : 0)}\u00a0s`;
  const minutes = Math.round(seconds / 60);
  return minutes < 90 ? `${minutes}\u00a0min` : `${Math.floor(minutes / 60)}\u00a0h ${minutes % 60}\u00a0min`;
}

export function bytes(count) {
  if (!Number.isFinite(count)) return "–";
  for (const unit of ["B", "kB", "MB", "GB"]) {
    if (count < 1000 || unit === "GB") return `${count.toFixed(count < 10 && unit !== "B" ? 1 : 0)}\u00a0${unit}`;
    count /= 1000;
  }
}

export const plural = (count, word) => `${count} ${word}${Number(count) === 1 ? "" : "s"}`;

export function percent(share, digits = 1) {
  return Number.isFinite(share) ? `${(100 * share).toFixed(digits)}\u00a0%` : "–";
}

export function compact(value) {
  if (!Number.isFinite(value)) return "–";
  const text = value !== 0 && Math.abs(value) < 0.01 ? value.toExponential(1) : Math.abs(value) >= 1000 ? value.toFixed(0) : String(Number(value.toPrecision(3)));
  return text.replace("-", "−");
}

const MEASURES = { frechet: "Fréchet distance", frechet_distance: "Fréchet distance", clip_score: "CLIP score", clip_cosine: "CLIP cosine", fid: "FID", psnr_db: "PSNR, dB" };

// A measure of quality by its name, and a value of it.
export const measureName = name => MEASURES[name] ?? (name[0].toUpperCase() + name.slice(1)).replaceAll("_", " ");
export const measured = (name, value, digits = 1) => (name === "accuracy" ? percent(value, digits) : compact(value));

// The time of today, and the day of any other.
export function clock(seconds) {
  const at = new Date(1000 * seconds), time = at.toLocaleTimeString([], { hour: "2-digit", minute: "2-digit", second: "2-digit" });
  return at.toDateString() === new Date().toDateString() ? time : `${at.toLocaleDateString([], { day: "numeric", month: "short", year: "numeric" })}, ${time}`;
}

// Seeds go up to 2^63-1: they are text on this page and numbers on the wire. Inside a JSON string a
// quote is escaped, so that neither pattern can match what a prompt says.
export const parse = text => JSON.parse(text.replace(/"seed":\s*(\d+)/g, '"seed":"$1"'));
export const stringify = (value, indent) => JSON.stringify(value, null, indent).replace(/"seed":(\s*)"(\d+)"/g, '"seed":$1$2');

export const MAX_SEED = (1n << 63n) - 1n;
export const randomSeed = () => String(crypto.getRandomValues(new Uint32Array(1))[0] >>> 1);
export const seedAfter = (seed, count) => String(BigInt(seed) + BigInt(count));
