// Submits a job: a teacher and its prompts; all else is the teacher's own recipe unless said otherwise.
import { explain, json } from "./api.js";
import { field, h, notice, select } from "./dom.js";

// What a gate asks of the students of the shapes world; others are measured and not judged.
const ACCURACY = { "shapes-sana": 0.9, "shapes-sd3": 0.9, "shapes-flux": 0.8 };
const PROMPTS = [["shapes:train", "captions of the shapes world"], ["file", "a file of my own"]];
const NAME = "[A-Za-z0-9][A-Za-z0-9_.\\-]{0,63}";

export class JobForm {
  // `teachers` are those of the server; `onCreated(job)` is called when it has taken one.
  constructor(teachers, onCreated) {
    this.recipes = Object.fromEntries(teachers.map(each => [each.id, each.recipe]));
    this.messages = h("div");
    this.file = h("input", { type: "file", name: "file", accept: ".txt,.jsonl" });
    this.ownFile = field("Prompts, one a line or JSONL", this.file);
    this.root = this.#form(teachers);
    this.root.addEventListener("submit", event => {
      event.preventDefault();
      this.#submit(onCreated);
    });
    this.root.addEventListener("input", event => { if (["model", "training_file", "publish"].includes(event.target.name)) this.#follow(event.target.name === "model"); });
    this.#follow(true);
  }

  #form(teachers) {
    const { id = "" } = teachers[0] ?? {};
    return h("form", { class: "sheet job-form", "aria-label": "New job" },
      group("What to distil",
        field("Teacher", h("input", { name: "model", list: "teachers", required: true, value: id, autocomplete: "off" })),
        field("Prompts", select("training_file", PROMPTS, "shapes:train")), this.ownFile,
        field("Name of the student", h("input", { name: "suffix", pattern: NAME, placeholder: "as the teacher" }))),
      group("Recipe: what is empty is the teacher's own",
        number("Iterations", "iterations", { min: 1 }), number("Batch", "batch", { min: 1 }),
        number("Learning rate", "rate", { min: 0, step: "any" }), number("Seed", "seed", { min: 0, max: 2 ** 31 - 1, placeholder: "0" })),
      group("At the end",
        number("Accuracy of at least", "accuracy", { min: 0, max: 1, step: 0.01, placeholder: "not judged" }),
        field("Then serve it as", h("input", { name: "publish", pattern: NAME, placeholder: "not served" })),
        number("On trial with a share of", "canary", { min: 0, max: 1, step: 0.05, value: 0.1 })),
      h("datalist", { id: "teachers" }, teachers.map(each => h("option", { value: each.id }))),
      this.messages, h("div", { class: "row" }, h("button", { class: "main", type: "submit" }, "Start"), h("a", { class: "quiet small", href: "#/jobs" }, "All jobs")));
  }

  // What is not filled in is the teacher's own, and shown as such.
  #follow(teacherChanged) {
    const { model, training_file: prompts, accuracy, iterations, batch, rate, publish, canary } = this.root.elements;
    if (teacherChanged) {
      const recipe = this.recipes[model.value];
      iterations.placeholder = recipe?.iterations ?? "as in its recipe";
      batch.placeholder = recipe?.batch ?? "as in its recipe";
      rate.placeholder = recipe?.optimizer?.lr_generator ?? "as in its recipe";
      prompts.value = ACCURACY[model.value] ? "shapes:train" : "file";
      accuracy.value = ACCURACY[model.value] ?? "";
    }
    canary.disabled = !publish.value;
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

function group(legend, ...fields) {
  return h("fieldset", {}, h("legend", { class: "group" }, legend), h("div", { class: "form-grid" }, fields));
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
