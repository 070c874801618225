// What the list of jobs and the view of one both show.
import { h } from "./dom.js";

export const ROUTE = "/v1/distillation/jobs";
const KINDS = { queued: "", running: "accent", paused: "warn", succeeded: "good", failed: "bad", cancelled: "" };

export const stateOf = job => (job.requested ? `${job.status}, to ${job.requested}` : job.status);
export const badge = job => h("span", { class: `badge ${KINDS[job.status]}` }, stateOf(job));
export const nameOf = job => job.suffix ?? job.fine_tuned_model ?? `${job.model}-sid`;

export function progressBar(percent, status) {
  const shown = status === "succeeded" ? 100 : percent;
  return h("span", { class: "progress", role: "progressbar", "aria-label": "Progress", "aria-valuenow": Math.round(shown), "aria-valuemin": 0, "aria-valuemax": 100 }, h("i", { style: { width: `${shown}%` } }));
}
