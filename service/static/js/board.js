// One run on the screen: a column per variant, a card per picture, filled as the pictures come.
import { h } from "./dom.js";
import { duration, plural, seedAfter } from "./numbers.js";
import { slowest, timeBar, timeLegend } from "./timing.js";

export class Board {
  // `onOpen(column, index)` and `onSeed(seed)` are called when a picture or its seed is chosen.
  constructor(run, { onOpen, onSeed }) {
    Object.assign(this, { run, onOpen, onSeed, urls: new Map() });
    this.columns = run.columns.map((column, index) => this.#column(column, index));
    const one = run.columns.length === 1;
    this.summary = h("div", { class: "summary" }, one ? null : timeLegend());
    this.root = h("section", { class: `board ${one ? "one" : "many"}`, "aria-label": "Results", style: { "--columns": String(run.columns.length) } },
      h("header", {}, h("h1", { class: "prompt", dir: "auto" }, run.settings.prompt), this.summary),
      h("div", { class: "columns" }, this.columns.map(each => each.root)));
    run.columns.forEach((column, index) => {
      column.pictures.forEach((picture, position) => { if (picture) this.picture(index, position, picture); });
      if (column.seconds) this.finished(index, column.seconds);
    });
  }

  #column(column, index) {
    const cards = Array.from({ length: this.run.settings.n }, (_, position) => this.#card(column, index, position));
    const foot = h("div", { class: "column-time" });
    const head = this.run.columns.length > 1 ? h("h2", {}, column.label) : null;
    return { root: h("div", { class: "column" }, h("div", { class: "column-head" }, head, foot), h("div", { class: "cards" }, cards.map(card => card.root))), cards, foot };
  }

  #card(column, index, position) {
    const seed = seedAfter(this.run.settings.seed, position);
    const small = parseInt(column.size) < 256;
    const image = h("img", { alt: "", class: small ? "pixels" : "", hidden: true });
    const dots = h("span", { class: "dots", "aria-hidden": "true" });
    const [width, height] = column.size.split("x");
    const frame = h("button", { class: "frame waiting", type: "button", disabled: true, "aria-label": `Picture with seed ${seed}, waiting`, style: { "aspect-ratio": `${width} / ${height}` }, onclick: () => this.onOpen(index, position) }, image, dots);
    const save = h("span", { class: "save" });
    const root = h("figure", { class: "card", "aria-label": `Seed ${seed}, ${column.label}` }, frame, h("figcaption", {},
      h("button", { class: "link number", type: "button", title: "Use this seed", "aria-label": `Use seed ${seed}`, onclick: () => this.onSeed(seed) }, seed), save));
    return { root, frame, image, dots, save, seed };
  }

  #show(card, key, blob) {
    URL.revokeObjectURL(this.urls.get(key));
    const url = URL.createObjectURL(blob);
    this.urls.set(key, url);
    card.image.src = url;
    card.image.hidden = false;
    return url;
  }

  estimate(column, index, blob, which, steps) {
    const card = this.columns[column].cards[index];
    this.#show(card, `${column}/${index}`, blob);
    card.frame.classList.add("estimate");
    card.dots.replaceChildren(...Array.from({ length: steps }, (_, step) => h("i", { class: step <= which ? "done" : "" })));
  }

  picture(column, index, picture) {
    const card = this.columns[column].cards[index];
    const url = this.#show(card, `${column}/${index}`, picture.blob);
    const { prompt } = this.run.settings, { label, steps } = this.run.columns[column];
    card.image.alt = prompt;
    card.frame.classList.remove("waiting", "estimate");
    card.frame.disabled = false;
    card.frame.setAttribute("aria-label", `${prompt}, seed ${picture.seed}, ${label}${steps === "auto" ? `, ${plural(picture.steps, "step")}` : ""}: show large`);
    card.dots.hidden = true;
    card.save.replaceChildren(h("a", { href: url, download: fileName(picture), "aria-label": `Save the picture with seed ${picture.seed}` }, "save"));
  }

  finished(column, seconds) {
    const { pictures, steps } = this.run.columns[column], timing = slowest(pictures), used = stepsUsed(steps, pictures[0]);
    if (this.run.columns.length > 1) this.columns[column].foot.replaceChildren(h("span", { class: "number quiet" }, `${steps === "auto" ? `${used} · ` : ""}${duration(seconds)}`), timeBar(timing));
    else this.summary.replaceChildren(
      h("p", { class: "quiet number" }, `${plural(pictures.length, "picture")} · ${used} · ${duration(seconds)}`), timeBar(timing), timeLegend(timing));
  }

  stopped() {
    for (const { cards } of this.columns) for (const card of cards) if (card.frame.disabled) {
      card.frame.classList.remove("waiting", "estimate");
      card.frame.classList.add("missing");
      card.frame.setAttribute("aria-label", `Picture with seed ${card.seed}, not drawn`);
    }
  }

  close() {
    for (const url of this.urls.values()) URL.revokeObjectURL(url);
  }
}

// What was asked for and, where that was left to the server, what it took.
const stepsUsed = (asked, { steps }) => (asked === "auto" ? `${plural(steps, "step")} (auto)` : plural(steps, "step"));

export function fileName({ seed, steps, format }) {
  return `fewstep-${seed}-${steps}-step.${format === "jpeg" ? "jpg" : format}`;
}
