// Where the time of a picture went: a bar of five parts and its legend.
import { h } from "./dom.js";
import { duration } from "./numbers.js";

export const STAGES = ["queue", "encode", "denoise", "decode", "file"];

const colour = stage => ({ background: `var(--stage-${stage})` });

// `timing` is milliseconds by stage, as the stream sends them with each picture.
export function timeBar(timing) {
  const parts = STAGES.map(stage => [stage, timing?.[stage] ?? 0]);
  const words = parts.map(([stage, ms]) => `${stage} ${duration(ms / 1000)}`).join(", ");
  return h("div", { class: "time-bar", role: "img", "aria-label": words, title: words },
    parts.map(([stage, ms]) => h("i", { style: { ...colour(stage), "flex-grow": String(ms) } })));
}

// Without a `timing`, the names alone.
export function timeLegend(timing) {
  return h("ul", { class: "legend" }, STAGES.map(stage => h("li", {},
    h("i", { style: colour(stage), "aria-hidden": "true" }), stage, timing ? h("b", { class: "number" }, duration((timing[stage] ?? 0) / 1000)) : null)));
}

// Of several pictures that shared the way: the one that took longest.
export function slowest(pictures) {
  const total = picture => Object.values(picture.timing ?? {}).reduce((sum, ms) => sum + ms, 0);
  return pictures.reduce((worst, picture) => (total(picture) > total(worst) ? picture : worst), pictures[0])?.timing;
}
