// Submits a job: a teacher and its prompts; all else is the teacher's own recipe unless said otherwise.
import { explain, json } from "./api.js";
import { field, h, notice, select } from "./dom.js";

// What a gate asks of each shipped teacher's student; other teachers are measured and not judged.
const TEACHERS = { "shapes-sana": 0.9, "shapes-sd3": 0.9, "shapes-flux": 0.8 };
const SHAPES = [["shapes:train", "captions of the shapes world"], ["file", "a file of my own"]];

export class JobForm {
  // `onCreated(job)` is called when the server has taken it.
  constructor(onCreated) {
    this.messages = h("div");
    this.file = h("input", { type: "file", name: "file", accept: ".txt,.jsonl" });
    this.ownFile = field("Prompts, one a line or JSONL", this.file);
    this.root = this.#form();
    this.root.addEventListener("submit", event => {
      event.preventDefault();
      this.#submit(onCreated);
    });
    this.root.addEventListener("change", event => { if (["model", "training_file"].includes(event.target.name)) this.#follow(event.target.name === "model"); });
    this.#follow(true);
  }

  #form() {
    return h("form", { class: "sheet job-form", "aria-label": "New job" },
      h("div", { class: "form-grid" },
        field("Teacher", h("input", { name: "model", list: "teachers", required: true, value: "shapes-sana", autocomplete: "off" })),
        field("Prompts", select("training_file", SHAPES, "shapes:train")), this.ownFile,
        field("Name of the student", h("input", { name: "suffix", pattern: "[A-Za-z0-9][A-Za-z0-9_.\\-]{0,63}", placeholder: "as the teacher" })),
        number("Iterations", "iterations", { min: 1, placeholder: "as in its recipe" }), number("Batch", "batch", { min: 1, placeholder: "as in its recipe" }),
        number("Learning rate", "rate", { min: 0, step: "any", placeholder: "as in its recipe" }), number("Seed", "seed", { min: 0, max: 2 ** 31 - 1, placeholder: "0" }),
        number("Right in every attribute, at least", "accuracy", { min: 0, max: 1, step: 0.01, placeholder: "not judged" }),
        field("Serve it as, if that holds", h("input", { name: "publish", pattern: "[A-Za-z0-9][A-Za-z0-9_.\\-]{0,63}", placeholder: "not served" })),
        number("Share of the requests at first", "canary", { min: 0, max: 1, step: 0.05, value: 0.1 })),
      h("datalist", { id: "teachers" }, Object.keys(TEACHERS).map(value => h("option", { value }))),
      this.messages, h("div", { class: "row" }, h("button", { class: "main", type: "submit" }, "Start"), h("a", { class: "quiet small", href: "#/jobs" }, "All jobs")));
  }

  #follow(teacherChanged) {
    const { model, training_file: prompts, accuracy } = this.root.elements, shipped = TEACHERS[model.value];
    if (teacherChanged) {
      prompts.value = shipped ? "shapes:train" : "file";
      accuracy.value = shipped ?? "";
    }
    this.ownFile.hidden = prompts.value !== "file";
    this.file.required = prompts.value === "file";
  }

  async #submit(onCreated) {
    this.messages.replaceChildren();
    try {
      const prompts = this.root.elements.training_file.value === "file" ? await this.#upload() : "shapes:train";
      onCreated(await json("/v1/distillation/jobs", { method: "POST", body: requestOf(this.root.elements, prompts) }));
    } catch (error) {
      this.messages.replaceChildren(notice("bad", ...explain(error)));
    }
  }

  async #upload() {
    const file = new FormData();
    file.append("purpose", "fine-tune");
    file.append("file", this.file.files[0]);
    return (await json("/v1/files", { method: "POST", file })).id;
  }
}

function number(label, name, attributes) {
  return field(label, h("input", { name, type: "number", ...attributes }));
}

// Only what was filled in is sent: the server's own defaults are the teacher's recipe.
function requestOf(elements, trainingFile) {
  const value = name => (elements[name].value === "" ? undefined : Number(elements[name].value));
  const sid = { iterations: value("iterations"), batch: value("batch"), ...(value("rate") === undefined ? {} : { optimizer: { lr_generator: value("rate"), lr_fake: value("rate") } }) };
  const publish = elements.publish.value ? { model: elements.publish.value, canary: value("canary") ?? 0 } : undefined;
  const gate = value("accuracy") === undefined ? undefined : { at_least: { accuracy: value("accuracy") } };
  return { model: elements.model.value, training_file: trainingFile, method: { type: "sid", sid }, suffix: elements.suffix.value || undefined, seed: value("seed"), gate: gate ?? (publish && {}), publish };
}
