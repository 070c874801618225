// The history as a strip of thumbnails.
import { announce, byId, h } from "./dom.js";
import { clear, runs } from "./history.js";
import { plural } from "./numbers.js";

export class Shelf {
  // `onOpen(run)` is called when a run is to be shown again.
  constructor(onOpen) {
    Object.assign(this, { onOpen, urls: [] });
    this.list = h("ul", { class: "strip" });
    this.button = h("button", { class: "ghost push", type: "button", onclick: () => this.#ask(), onblur: () => this.#mean(false) }, "Clear");
    this.root = h("section", { class: "shelf", hidden: true, "aria-label": "History" }, h("div", { class: "row" }, h("h2", {}, "History"), h("span", { class: "quiet small" }, "kept in this browser only"), this.button), this.list);
  }

  // There is no way back, so that it takes a second click; whoever goes elsewhere has not meant it.
  #ask() {
    if (this.meant) return this.#clear();
    this.#mean(true);
    announce(this.button.textContent);
  }

  #mean(meant) {
    this.meant = meant;
    this.button.textContent = meant ? `Clear ${plural(this.list.children.length, "run")} for good?` : "Clear";
  }

  async #clear() {
    this.#mean(false);
    await clear();
    await this.refresh();
    announce("History cleared");
    byId("view").focus({ preventScroll: true }); // the button is gone with what it was for
  }

  // What has the focus keeps it while another tab draws.
  async refresh() {
    const all = await runs(), held = document.activeElement?.closest(".thumb")?.dataset.run;
    for (const url of this.urls) URL.revokeObjectURL(url);
    this.urls = [];
    this.root.hidden = !all.length;
    this.list.replaceChildren(...all.map(run => this.#entry(run)));
    if (held) this.list.querySelector(`[data-run="${held}"]`)?.focus({ preventScroll: true });
  }

  #entry(run) {
    const pictures = run.columns.flatMap(column => column.pictures).filter(Boolean);
    const urls = pictures.slice(0, 4).map(picture => URL.createObjectURL(picture.blob));
    this.urls.push(...urls);
    const steps = [...new Set(pictures.map(picture => picture.steps))];
    const label = `${run.settings.prompt}, ${plural(pictures.length, "picture")}, ${plural(steps.join(", "), "step")}, seed ${run.settings.seed}`;
    return h("li", {}, h("button", { type: "button", class: "thumb", "data-run": run.id, title: label, "aria-label": label, onclick: () => this.onOpen(run) },
      h("span", { class: `mosaic of-${urls.length}` }, urls.map(src => h("img", { src, alt: "", class: parseInt(run.columns[0].size) < 256 ? "pixels" : "" }))),
      h("span", { class: "thumb-text", dir: "auto" }, run.settings.prompt)));
  }
}
