// One job: how far it is, its curves, its grids through time, what it said, and what came of it.
import { call, events, explain, json } from "./api.js";
import { beingRead, chart } from "./chart.js";
import { announce, digest, facts, field, h, notice, put, scroller, select } from "./dom.js";
import { badge, nameOf, progressBar, ROUTE, stateOf } from "./jobparts.js";
import { clock, compact, duration, measured, measureName, plural } from "./numbers.js";
import { versions } from "./versions.js";

const COLOURS = ["var(--accent)", "var(--stage-encode)", "var(--stage-decode)", "var(--stage-file)"];
const LOG_LINES = 300, AGAIN_MS = 2_000;
const PARTS = { head: "job-head", messages: "stack", progress: "stack", curves: "halves", end: "stack" };
// Measures of quality, and in how many steps: `accuracy_4`.
const QUALITY = /^(accuracy|frechet_distance|frechet|clip_score|clip_cosine|fid)(?:_(\d+))?$/;
const LOSS = /^(?:loss_)?(generator|fake)$/;

export class JobView {
  constructor(id) {
    Object.assign(this, { path: `${ROUTE}/${encodeURIComponent(id)}`, control: new AbortController(), points: new Map(), lines: [], grids: [], last: "" });
    for (const [part, kind] of Object.entries(PARTS)) this[part] = h("div", { class: kind });
    for (const event of ["focusout", "pointerleave"]) this.curves.addEventListener(event, () => this.#curves());
    this.log = h("ol", { class: "log mono", tabindex: 0, "aria-label": "Log" });
    this.grid = new Grids();
    this.root = h("div", { class: "page" }, this.head, this.messages, this.progress, this.end, this.curves, this.grid.root,
      h("section", { class: "sheet" }, h("h2", {}, "Log"), this.log));
    this.#curves();
    this.#follow();
  }

  close() {
    this.control.abort();
    this.grid.close();
  }

  // The stream is taken up again where it ended, until the job has ended.
  async #follow() {
    const { signal } = this.control;
    while (!signal.aborted) {
      try {
        this.#job(await json(this.path, { signal }));
        this.messages.replaceChildren();
        await this.#checkpoints();
        const after = this.last ? `&after=${encodeURIComponent(this.last)}` : "";
        for await (const event of events(await call(`${this.path}/events?stream=true${after}`, { signal }))) await this.#take(event);
        if (["succeeded", "failed", "cancelled"].includes(this.job.status)) {
          this.#job(await json(this.path, { signal }));
          return await this.#checkpoints();
        }
      } catch (error) {
        if (error.name === "AbortError") return;
        put(this.messages, notice("bad", ...explain(error)));
        if (error.status === 404) return;
      }
      await new Promise(resolve => setTimeout(resolve, AGAIN_MS));
    }
  }

  async #take(event) {
    if (event.object === "fine_tuning.job") return this.#job(event);
    this.last = event.id;
    this.lines = [...this.lines, event].slice(-LOG_LINES);
    const atEnd = this.log.scrollHeight - this.log.scrollTop - this.log.clientHeight < 40;
    this.log.append(h("li", { class: event.level === "error" ? "bad" : event.level === "warn" ? "warn" : "" }, h("time", { class: "quiet" }, clock(event.created_at)), " ", event.message));
    while (this.log.childElementCount > LOG_LINES) this.log.firstElementChild.remove();
    if (atEnd) this.log.scrollTop = this.log.scrollHeight;
    if (event.type === "metrics") this.#measure(event.data.iteration ?? event.data.step, event.data);
  }

  #job(job) {
    const moved = this.job && job.progress.sample !== this.job.progress.sample;
    this.job = job;
    const { iteration, losses = {} } = job.progress;
    if (iteration !== undefined) this.#measure(iteration, losses);
    if (moved) this.#checkpoints();
    this.#draw();
  }

  // Figures of one iteration, by name; events name losses with their prefix or inside `losses`.
  #measure(step, data) {
    if (!Number.isInteger(step)) return;
    const known = Object.entries({ ...data, ...data.losses }).filter(([name, value]) => Number.isFinite(value) && (QUALITY.test(name) || LOSS.test(name)));
    this.points.set(step, { ...this.points.get(step), ...Object.fromEntries(known.map(([name, value]) => [name.replace(LOSS, "$1"), value])) });
    this.#curves();
  }

  async #checkpoints() {
    const { data } = await json(`${this.path}/checkpoints?limit=100`, { signal: this.control.signal });
    // Of its quality a checkpoint knows the last figures, which may be those of an earlier iteration.
    for (const { step_number: step, metrics: { generator, fake } } of data) this.#measure(step, { generator, fake });
    this.grid.set(data.filter(each => each.sample_url).reverse());
  }

  #draw() {
    const { job } = this, { progress } = job;
    const state = `${job.status}, ${job.requested}`;
    if (state !== this.state) this.#state();
    this.state = state;
    this.progress.replaceChildren(h("section", { class: "sheet stack" }, progressBar(progress.percent ?? 0, job.status), facts([
      ["Stage", job.status === "running" ? progress.stage : ""], ["Iteration", progress.iterations ? `${progress.iteration} of ${progress.iterations}` : ""],
      ["Images", progress.images ? compact(progress.images) : ""], ["Rate", progress.images_per_second ? `${compact(progress.images_per_second)} images a second` : ""],
      ["Left", job.status === "running" && progress.eta_seconds ? duration(progress.eta_seconds) : ""],
    ])));
  }

  // Drawn anew only when it is another: who has the focus on a button keeps it. A button that is gone gives it to
  // the heading, as the next one may do what nobody meant.
  #state() {
    const { job } = this, held = this.head.contains(document.activeElement), title = h("h1", { tabindex: -1 }, nameOf(job));
    this.head.replaceChildren(h("header", { class: "row" }, title, badge(job), h("span", { class: "row push" }, this.#actions())),
      h("p", { class: "quiet small" }, `${job.id}, from ${job.model} on ${job.training_file}. `, h("a", { href: "#/jobs" }, "All jobs")));
    this.end.replaceChildren(...ending(job));
    if (held) title.focus();
    if (!this.state) return;
    const came = this.end.querySelector(".notice strong");
    announce([`${nameOf(job)}: ${stateOf(job)}`, came?.textContent].filter(Boolean).join(". "));
  }

  #actions() {
    const { status, requested } = this.job, verbs = { queued: ["pause", "cancel"], running: ["pause", "cancel"], paused: ["resume", "cancel"] }[status] ?? [];
    return verbs.map(verb => h("button", { type: "button", class: verb === "cancel" ? "danger" : "", disabled: requested === verb, onclick: () => this.#act(verb) }, verb[0].toUpperCase() + verb.slice(1)));
  }

  async #act(verb) {
    try {
      this.#job(await json(`${this.path}/${verb}`, { method: "POST" }));
    } catch (error) {
      this.messages.replaceChildren(notice("bad", ...explain(error)));
    }
  }

  #curves() {
    if (beingRead(this.curves)) return;
    const steps = [...this.points].sort(([one], [other]) => one - other);
    const line = (name, colour) => ({ name, colour, points: steps.filter(([, each]) => name in each).map(([step, each]) => [step, each[name]]) });
    const names = [...new Set(steps.flatMap(([, each]) => Object.keys(each)))].filter(name => QUALITY.test(name)).sort();
    const measures = Map.groupBy(names, name => name.match(QUALITY)[1]);
    const called = name => (name.match(QUALITY)[2] ? plural(name.match(QUALITY)[2], "step") : name);
    const charts = [...measures].map(([measure, own]) => chart({ title: measureName(measure), lines: own.map((name, index) => ({ ...line(name, COLOURS[index % 4]), name: called(name) })), ys: value => measured(measure, value, 0) }));
    this.curves.replaceChildren(
      sheet(chart({ title: "Losses", lines: [line("generator", COLOURS[0]), line("fake", COLOURS[1])], zero: false, empty: "No iteration yet" })),
      ...(charts.length ? charts : [chart({ title: "Quality", lines: [], empty: "Not measured yet" })]).map(sheet));
  }
}

const sheet = content => h("div", { class: "sheet" }, content);

function ending(job) {
  if (job.error) return [notice("bad", "It failed", job.error.message)];
  if (job.status !== "succeeded") return [];
  const { verdict, published, reasons = [], bundle, version } = job.result;
  const parts = [notice(published ? "good" : "warn", published ? `Served as ${job.publish.model}` : "Not served", reasons.join("; "))];
  if (verdict) parts.push(h("section", { class: "sheet" }, h("h2", {}, verdict.passed ? "The gate holds" : "The gate does not hold"), checks(verdict.checks ?? [])));
  if (bundle) parts.push(h("section", { class: "sheet" }, h("h2", {}, "Student"), facts([
    ["Version", version ? h("a", { href: "#/models" }, version.id) : ""], ["Bundle", digest(bundle.bundle_digest)],
    ["Kept at", /^(?!file:)\w+:\/\//.test(bundle.url) ? bundle.url : ""], // a folder of the server is of no use to who reads this
  ]), published ? null : publisher(job)));
  if (job.publish) parts.push(versions(job.publish.model, () => {}, "sheet"));
  return parts;
}

function checks(list) {
  return scroller("What the gate measured", h("table", {}, h("thead", {}, h("tr", {}, ["Measure", "Steps", "Value", "Bound", "Holds"].map(name => h("th", { scope: "col" }, name)))),
    h("tbody", {}, list.map(each => h("tr", {}, h("th", { scope: "row" }, measureName(each.measure)), h("td", {}, each.steps ?? "–"), h("td", {}, measured(each.measure, each.value)), h("td", {}, measured(each.measure, each.bound)),
      h("td", {}, h("span", { class: `badge ${each.holds ? "good" : "bad"}` }, each.holds ? "yes" : "no")))))));
}

// A student that is not served can be, under a name that is given now.
function publisher(job) {
  const said = h("div", { "aria-live": "polite" });
  const form = h("form", { class: "row publisher", onsubmit: async event => {
    event.preventDefault();
    const { model, share } = form.elements, body = { bundle: job.result.bundle.bundle_digest, share: Number(share.value), reason: `job ${job.id}` };
    try {
      const version = await json(`/v1/models/${encodeURIComponent(model.value)}/versions`, { method: "POST", body });
      said.replaceChildren(notice("good", `${version.id} is ${version.state}`, ""));
    } catch (error) {
      said.replaceChildren(notice("bad", ...explain(error)));
    }
  } },
    field("Serve it as", h("input", { name: "model", required: true, pattern: "[A-Za-z0-9][A-Za-z0-9_.\\-]{0,63}", value: job.publish?.model ?? nameOf(job) })),
    field("With", select("share", [[1, "all requests"], [0.1, "a tenth of the requests, on trial"]], 1)),
    h("button", { type: "submit" }, "Publish"));
  return h("div", { class: "stack" }, form, said);
}

// What the student drew at each checkpoint, as a slider through time.
class Grids {
  constructor() {
    this.image = h("img", { alt: "", class: "pixels" });
    this.slider = h("input", { type: "range", min: 0, max: 0, step: 1, value: 0, "aria-label": "Checkpoint", oninput: () => this.#show() });
    this.label = h("output", { class: "number quiet small", "aria-live": "off" }); // the slider says it
    this.root = h("section", { class: "sheet grids", hidden: true, "aria-label": "Samples" }, h("div", { class: "row" }, h("h2", {}, "Samples"), h("span", { class: "push" }), this.label), this.image, this.slider);
    this.list = [];
  }

  set(list) {
    const followed = Number(this.slider.value) >= this.list.length - 1;
    this.list = list;
    this.root.hidden = !list.length;
    this.slider.max = Math.max(0, list.length - 1);
    if (followed) this.slider.value = list.length - 1;
    if (list.length) this.#show();
  }

  async #show() {
    const checkpoint = this.list[Number(this.slider.value)];
    this.label.textContent = `iteration ${checkpoint.step_number}`;
    this.slider.setAttribute("aria-valuetext", this.label.textContent);
    if (this.shown === checkpoint.id) return;
    this.shown = checkpoint.id;
    const blob = await (await call(checkpoint.sample_url)).blob().catch(() => null);
    if (!blob || this.shown !== checkpoint.id) return;
    this.close();
    this.url = URL.createObjectURL(blob);
    this.image.src = this.url;
    this.image.alt = `What the student drew at iteration ${checkpoint.step_number}`;
  }

  close() {
    URL.revokeObjectURL(this.url);
  }
}
