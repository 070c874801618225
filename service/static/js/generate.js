// One request for pictures, as a stream: estimates while they are drawn, then the pictures.
import { call, events } from "./api.js";

export function requestOf({ prompt, model, steps, size, n, seed, format }) {
  return { prompt, model, n, size, seed, ...(steps === "auto" ? { quality: steps } : { num_inference_steps: steps }), output_format: format };
}

// Calls `onEstimate(index, blob, which, steps)` and `onPicture(index, picture)`; resolves to the seconds it took.
export async function generate(settings, { onEstimate, onPicture, signal }) {
  const began = performance.now();
  const body = { ...requestOf(settings), stream: true, partial_images: settings.steps === "auto" ? 3 : Math.min(3, settings.steps - 1) };
  const response = await call("/v1/images/generations", { method: "POST", body, signal });
  let missing = settings.n;
  for await (const event of events(response)) {
    const blob = blobOf(event);
    if (event.type === "image_generation.partial_image") {
      onEstimate(event.index, blob, event.partial_image_index, event.num_inference_steps);
    } else if (event.type === "image_generation.completed") {
      missing -= 1;
      onPicture(event.index, {
        blob, seed: event.seed, steps: event.num_inference_steps, size: event.size, format: event.output_format,
        timing: event.timing, seconds: (performance.now() - began) / 1000,
      });
    }
  }
  if (missing) throw new Error(`the stream ended ${missing} of ${settings.n} pictures early`);
  return (performance.now() - began) / 1000;
}

function blobOf({ b64_json: text, output_format: format }) {
  const content = Uint8Array.from(atob(text), character => character.charCodeAt(0));
  return new Blob([content], { type: `image/${format}` });
}

// Waits where the server says when there will be room. What `onWait(error, seconds)` returns is told how long that is still.
export async function patiently(work, { signal, onWait }) {
  for (;;) {
    try {
      return await work();
    } catch (error) {
      if (!error.retryAfter) throw error;
      await countdown(error.retryAfter, onWait(error, Math.ceil(error.retryAfter)), signal);
    }
  }
}

function countdown(seconds, tick, signal) {
  const end = performance.now() + 1000 * seconds;
  return new Promise((resolve, reject) => {
    const left = () => Math.max(0, Math.ceil((end - performance.now()) / 1000));
    const timer = setInterval(() => {
      if (left() > 0) return tick(left());
      clearInterval(timer);
      resolve();
    }, 250);
    tick(left());
    signal.addEventListener("abort", () => {
      clearInterval(timer);
      reject(signal.reason);
    }, { once: true });
  });
}
