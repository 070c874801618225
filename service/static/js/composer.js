// The form of the playground: what to draw, how, and beside what.
import { choice, field, h, select } from "./dom.js";
import { MAX_SEED } from "./numbers.js";

const EXAMPLES = [
  "a red circle left of a blue star on a white background",
  "a yellow triangle above a purple square on a black background",
  "a green star on a gray background",
];
const COMPARE = [["", "Off"], ["steps", "Steps"], ["models", "Models"], ["versions", "Versions"]];
const FORMATS = ["png", "jpeg", "webp"];
const AUTO = ["auto", "Auto", "As many as there is time for: fewer while the server is busy."];

export class Composer {
  // `onDraw(settings)` and `onFile(file)` are called when there is something to do; `versionsOf(model)` asks
  // the server for the versions of one that answer.
  constructor(models, { onDraw, onFile, versionsOf }) {
    Object.assign(this, { models, versionsOf });
    this.parts = { steps: h("div"), size: h("div"), other: h("div") };
    this.prompt = h("textarea", { name: "prompt", dir: "auto", rows: 4, required: true, maxlength: 4000, placeholder: "Describe a picture", value: EXAMPLES[0] });
    this.button = h("button", { class: "main", type: "submit" }, "Draw");
    this.root = this.#form(onDraw, onFile);
    this.#follow();
  }

  #form(onDraw, onFile) {
    const form = h("form", { class: "composer sheet", "aria-label": "What to draw" },
      field("Prompt", this.prompt), this.#examples(),
      this.models.length > 1 ? field("Model", select("model", this.models.map(each => each.id), this.models[0].id)) : null,
      choice("compare", "Compare", COMPARE, ""), this.parts.other, this.parts.steps,
      h("div", { class: "pair" }, field("Pictures", h("input", { name: "n", type: "number", min: 1, max: 10, value: 4, required: true })), this.#seed()),
      h("div", { class: "pair" }, this.parts.size, field("Format", select("format", FORMATS, "png"))),
      this.button, this.#opener(onFile));
    form.addEventListener("submit", event => {
      event.preventDefault();
      if (this.#valid()) onDraw(this.settings());
    });
    form.addEventListener("keydown", event => {
      if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) form.requestSubmit();
    });
    form.addEventListener("change", event => {
      if (event.target.name === "model" || event.target.name === "compare") this.#follow(this.settings());
    });
    return form;
  }

  #examples() {
    if (!this.models[0].id.startsWith("shapes-")) return null;
    const use = text => { this.prompt.value = text; this.prompt.focus(); };
    return h("div", { class: "examples", role: "group", "aria-label": "Examples" },
      EXAMPLES.map((text, index) => h("button", { type: "button", class: "ghost", title: text, onclick: () => use(text) }, `Example ${index + 1}`)));
  }

  #seed() {
    const input = h("input", { name: "seed", inputmode: "numeric", pattern: "[0-9]{1,19}", placeholder: "random", autocomplete: "off", title: `0 to ${MAX_SEED}` });
    input.addEventListener("input", () => input.setCustomValidity(""));
    return field("Seed", input);
  }

  #opener(onFile) {
    const input = h("input", { type: "file", accept: "image/png,image/jpeg,image/webp", hidden: true });
    input.addEventListener("change", () => { if (input.files[0]) onFile(input.files[0]); input.value = ""; });
    return h("p", { class: "quiet small opener" }, input,
      "Drop a picture anywhere, or ", h("button", { class: "link", type: "button", "aria-label": "open one of yours", onclick: () => input.click() }, "open one"), ", to get its settings back.");
  }

  #valid() {
    const { seed, n } = this.root.elements;
    if (seed.value && BigInt(seed.value) + BigInt(n.value) - 1n > MAX_SEED) {
      seed.setCustomValidity(`Seeds go up to ${MAX_SEED}, and each picture takes the next one`);
      seed.reportValidity();
      return false;
    }
    return true;
  }

  // Shows the choices of the model that is chosen, and keeps what was chosen where it still can be.
  #follow(kept = {}) {
    const model = this.model(this.root.elements.model?.value), compare = this.root.elements.compare.value;
    const choices = model.steps.length > 1 ? [...model.steps, AUTO] : model.steps;
    const steps = choices.flat().includes(kept.steps) ? kept.steps : model.steps.at(-1);
    const sizes = model.sizes.map(size => [size, size.replace("x", " × ")]);
    this.parts.steps.replaceChildren(choice("steps", "Steps", choices, steps));
    this.parts.steps.hidden = compare === "steps";
    this.parts.size.replaceChildren(field("Size", select("size", sizes, model.sizes.includes(kept.size) ? kept.size : model.default_size)));
    this.parts.other.hidden = !["models", "versions"].includes(compare);
    if (compare === "models") this.#offerModels(model, kept);
    if (compare === "versions") this.#offerVersions(model, kept);
  }

  #offerModels(model, kept) {
    const others = this.models.filter(each => each.id !== model.id).map(each => each.id);
    this.parts.other.replaceChildren(others.length
      ? field("Beside", select("other", others, kept.other ?? others[0]))
      : h("p", { class: "quiet small" }, "Only one model is served; load another to compare."));
  }

  // What serves beside what is on trial, or beside what served before.
  async #offerVersions(model, kept) {
    let shown;
    try {
      const found = await this.versionsOf(model.id), options = found.map(each => [each.id, `${each.id}, ${each.state}`]);
      const is = state => found.find(each => each.state === state)?.id, known = id => options.some(([each]) => each === id);
      const gone = [kept.version, kept.other].filter(id => id?.includes("@") && !known(id));
      const version = known(kept.version) ? kept.version : is("serving");
      const other = known(kept.other) && kept.other !== version ? kept.other : [is("canary"), is("previous"), ...found.map(each => each.id)].find(id => id && id !== version);
      shown = other
        ? [field("Version", select("version", options, version)), field("Beside", select("other", options, other)), gone.length ? h("p", { class: "quiet small" }, `${gone.join(", ")} is no longer there.`) : null]
        : [h("p", { class: "quiet small" }, `There is only one version of ${model.id}; a job, or the store, brings another.`)];
    } catch (error) {
      shown = [h("p", { class: "quiet small" }, `The versions are not to be had: ${error.message}`)];
    }
    const { compare, model: chosen } = this.root.elements;
    if (compare.value === "versions" && this.model(chosen?.value).id === model.id) this.parts.other.replaceChildren(...shown.filter(Boolean));
  }

  model(id) {
    return this.models.find(each => each.id === id) ?? this.models[0];
  }

  setModels(models) {
    this.models = models;
    const chosen = this.root.elements.model;
    if (chosen) chosen.replaceChildren(...models.map(each => h("option", { value: each.id, selected: each.id === chosen.value }, each.id)));
    this.#follow(this.settings());
  }

  settings() {
    const { prompt, model, steps, size, n, seed, format, compare, version, other } = this.root.elements;
    return {
      prompt: prompt.value, model: this.model(model?.value).id, steps: Number(steps.value) || AUTO[0], size: size.value, n: Number(n.value),
      seed: seed.value.replace(/^0+(?=\d)/, ""), format: format.value, compare: compare.value, version: version?.value ?? null, other: other?.value ?? null,
      stepChoices: this.model(model?.value).steps,
    };
  }

  // Returns what of the settings this server does not have, in words.
  use(settings) {
    const missing = [], elements = this.root.elements;
    if (this.models.some(each => each.id === settings.model)) { if (elements.model) elements.model.value = settings.model; }
    else missing.push(`model ${settings.model}`);
    elements.compare.value = settings.compare ?? "";
    this.#follow(settings);
    const model = this.model(elements.model?.value);
    if (settings.steps !== AUTO[0] && !model.steps.includes(settings.steps)) missing.push(`${settings.steps} steps`);
    if (!model.sizes.includes(settings.size)) missing.push(`size ${settings.size}`);
    this.prompt.value = settings.prompt;
    elements.seed.value = settings.seed;
    elements.n.value = settings.n ?? 1;
    elements.format.value = settings.format ?? "png";
    return missing;
  }

  setSeed(seed) {
    this.root.elements.seed.value = seed;
    this.root.elements.seed.focus();
  }

  busy(cancel) {
    this.button.type = cancel ? "button" : "submit";
    this.button.textContent = cancel ? "Stop" : "Draw";
    // Prevented, as by the end of this click the button may submit again.
    this.button.onclick = cancel && (event => { event.preventDefault(); cancel(); });
  }
}
