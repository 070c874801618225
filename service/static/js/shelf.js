// The history as a strip of thumbnails.
import { h } from "./dom.js";
import { clear, runs } from "./history.js";
import { plural } from "./numbers.js";

export class Shelf {
  // `onOpen(run)` is called when a run is to be shown again.
  constructor(onOpen) {
    Object.assign(this, { onOpen, urls: [] });
    this.list = h("ul", { class: "strip" });
    const forget = h("button", { class: "ghost push", type: "button", onclick: async () => { await clear(); await this.refresh(); } }, "Clear");
    this.root = h("section", { class: "shelf", hidden: true, "aria-label": "History" }, h("div", { class: "row" }, h("h2", {}, "History"), h("span", { class: "quiet small" }, "kept in this browser only"), forget), this.list);
  }

  async refresh() {
    const all = await runs();
    for (const url of this.urls) URL.revokeObjectURL(url);
    this.urls = [];
    this.root.hidden = !all.length;
    this.list.replaceChildren(...all.map(run => this.#entry(run)));
  }

  #entry(run) {
    const pictures = run.columns.flatMap(column => column.pictures).filter(Boolean);
    const urls = pictures.slice(0, 4).map(picture => URL.createObjectURL(picture.blob));
    this.urls.push(...urls);
    const steps = run.columns.map(column => column.steps);
    const label = `${run.settings.prompt}, ${plural(pictures.length, "picture")}, ${[...new Set(steps)].join(", ")} steps, seed ${run.settings.seed}`;
    return h("li", {}, h("button", { type: "button", class: "thumb", title: label, "aria-label": label, onclick: () => this.onOpen(run) },
      h("span", { class: `mosaic of-${urls.length}` }, urls.map(src => h("img", { src, alt: "", class: parseInt(run.columns[0].size) < 256 ? "pixels" : "" }))),
      h("span", { class: "thumb-text", dir: "auto" }, run.settings.prompt)));
  }
}
