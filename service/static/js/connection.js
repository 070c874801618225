// Whether the server is there, in the corner of the page and for whoever wants to know.
import { onGone } from "./api.js";
import { announce, byId } from "./dom.js";

const WORDS = {
  ready: "ready", starting: "loading", draining: "shutting down", stalled: "restarting its engine", failed: "failed", gone: "no answer",
};
const CALM = 10_000, EAGER = 1_000;
const listeners = new Set();
let state = "", timer = 0;

// Told each new state, and how it was before.
export function onState(listener) {
  listeners.add(listener);
  return () => listeners.delete(listener);
}

async function look() {
  clearTimeout(timer);
  set(await status());
  timer = setTimeout(look, state === "ready" ? CALM : EAGER);
}

async function status() {
  try {
    const response = await fetch("/health/ready", { cache: "no-store", signal: AbortSignal.timeout(5_000) });
    return (await response.json()).status;
  } catch { // whatever keeps an answer from arriving, there is none
    return "gone";
  }
}

function set(next) {
  if (next === state) return;
  const before = state;
  state = next;
  const shown = byId("connection");
  shown.dataset.state = state;
  shown.lastElementChild.textContent = WORDS[state] ?? state;
  if (before === "gone") announce("The server is back");
  for (const listener of listeners) listener(state, before);
}

export function watch() {
  onGone(() => { set("gone"); look(); });
  document.addEventListener("visibilitychange", () => { if (!document.hidden) look(); });
  return look();
}
