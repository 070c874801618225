// One picture, large, with all that is known of it.
import { fileName } from "./board.js";
import { announce, digest, facts, h } from "./dom.js";
import { bytes, duration, plural } from "./numbers.js";
import { timeBar, timeLegend } from "./timing.js";

// `places` are the [column, index] of all pictures of the run, through which the arrows go.
export function openViewer(run, column, index, { bundleOf, onUse }) {
  const places = run.columns.flatMap((each, at) => each.pictures.map((picture, position) => [at, position]).filter(([, p]) => each.pictures[p]));
  let at = places.findIndex(([c, i]) => c === column && i === index), url = null;
  const stage = h("div", { class: "viewer-body" });
  const dialog = h("dialog", { class: "viewer", tabindex: -1 }, stage, h("p", { class: "announcer visually-hidden", "aria-live": "polite" }));
  const controls = () => [...stage.querySelectorAll("a, button")];

  function show(next) {
    at = (next + places.length) % places.length;
    const variant = run.columns[places[at][0]], picture = variant.pictures[places[at][1]];
    URL.revokeObjectURL(url);
    url = URL.createObjectURL(picture.blob);
    const bundle = bundleOf(variant.model);
    const sum = h("dd", { class: "mono" }, "…");
    fileDigest(picture.blob).then(text => sum.replaceChildren(text ? digest(text) : "needs https"));
    const list = facts([
      ["Seed", picture.seed], ["Steps", variant.steps === "auto" ? `${picture.steps} (auto)` : picture.steps], ["Size", picture.size.replace("x", " × ")], ["Model", variant.model],
      ["Bundle", bundle ? digest(bundle) : ""], ["Format", `${picture.format}, ${bytes(picture.blob.size)}`], ["On screen after", duration(picture.seconds)],
    ]);
    list.append(h("dt", {}, "File"), sum);
    // Counted from the last one: the first ones, of digests, come when they are known.
    const held = controls().toReversed().indexOf(document.activeElement);
    stage.replaceChildren(
      h("img", { src: url, alt: run.settings.prompt, class: parseInt(picture.size) < 256 ? "pixels" : "" }),
      h("div", { class: "viewer-side" },
        h("p", { class: "prompt", dir: "auto" }, run.settings.prompt), list, timeBar(picture.timing), timeLegend(picture.timing),
        h("div", { class: "row" },
          h("a", { class: "button", href: url, download: fileName(picture) }, "Save"),
          h("button", { type: "button", onclick: () => { dialog.close(); onUse(variant, picture); } }, "Use these settings"),
          h("button", { class: "ghost", type: "button", onclick: () => dialog.close() }, "Close")),
        places.length > 1 ? h("p", { class: "quiet small number" },
          h("button", { class: "ghost", type: "button", "aria-label": "Previous picture", onclick: () => show(at - 1) }, "←"),
          `${at + 1} of ${plural(places.length, "picture")}`,
          h("button", { class: "ghost", type: "button", "aria-label": "Next picture", onclick: () => show(at + 1) }, "→")) : null));
    controls().toReversed()[held]?.focus();
    const title = `Picture ${at + 1} of ${places.length}, seed ${picture.seed}, ${plural(picture.steps, "step")}`;
    dialog.setAttribute("aria-label", title);
    if (dialog.open) announce(title);
  }

  dialog.addEventListener("keydown", event => {
    if (event.key === "ArrowLeft") show(at - 1);
    if (event.key === "ArrowRight") show(at + 1);
  });
  dialog.addEventListener("click", event => { if (event.target === dialog) dialog.close(); });
  dialog.addEventListener("close", () => { URL.revokeObjectURL(url); dialog.remove(); });
  document.body.append(dialog);
  show(at);
  dialog.showModal();
  dialog.focus(); // and not the first of its buttons
}

// SHA-256 of the file; browsers compute it only on pages from https or from this machine.
async function fileDigest(blob) {
  if (!crypto.subtle) return null;
  const hash = await crypto.subtle.digest("SHA-256", await blob.arrayBuffer());
  return "sha256:" + Array.from(new Uint8Array(hash), byte => byte.toString(16).padStart(2, "0")).join("");
}
