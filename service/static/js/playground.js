// The playground: a form on one side, the pictures of a run on the other, what was drawn before below.
import { explain, GoneError, json, storedKey } from "./api.js";
import { Board } from "./board.js";
import { Composer } from "./composer.js";
import { onState } from "./connection.js";
import { announce, h, notice } from "./dom.js";
import { generate, patiently } from "./generate.js";
import { keep, onChange } from "./history.js";
import { duration, plural, randomSeed } from "./numbers.js";
import { settingsOf } from "./provenance.js";
import { Shelf } from "./shelf.js";
import { snippets } from "./snippets.js";
import { openViewer } from "./viewer.js";

export async function create() {
  return new Playground((await json("/v1/models")).data);
}

class Playground {
  constructor(models) {
    Object.assign(this, { models, digests: {} });
    this.composer = new Composer(models, { onDraw: settings => this.draw(settings), onFile: file => this.read(file), versionsOf: model => this.#versions(model) });
    this.messages = h("div", { class: "messages", "aria-live": "polite" });
    this.canvas = h("div", { class: "canvas" }, welcome());
    this.code = h("div");
    this.shelf = new Shelf(run => this.restore(run));
    this.root = h("div", { class: "playground" }, this.composer.root,
      h("div", { class: "desk" }, this.messages, this.canvas, this.code, this.shelf.root));
    this.#acceptDrops();
    const recall = () => this.shelf.refresh().catch(error => this.say("warn", "No history here", `This browser does not keep one (${reason(error)}).`));
    recall();
    onChange(recall);
    onState((state, before) => this.#connection(state, before));
  }

  async show() {
    this.models = (await json("/v1/models")).data;
    if (this.models.length) this.composer.setModels(this.models);
  }

  // A retired version answers only while it is in memory.
  async #versions(model) {
    const found = (await json(`/v1/models/${encodeURIComponent(model)}/versions`)).data.filter(each => each.state !== "retired" || each.loaded);
    for (const each of found) this.digests[each.id] = each.digest;
    return found;
  }

  // An error is an alert in itself, and would be heard twice.
  say(kind, title, text, ...actions) {
    this.messages.setAttribute("aria-live", kind === "bad" ? "off" : "polite");
    this.messages.replaceChildren(...(kind ? [notice(kind, title, text, ...actions)] : []));
  }

  async draw(settings) {
    const run = newRun(settings), control = new AbortController();
    run.bundles = { ...this.digests, ...Object.fromEntries(this.models.map(model => [model.id, model.digests.bundle])) };
    this.failed = null;
    this.say();
    announce(`Drawing ${plural(run.columns.length * settings.n, "picture")}`);
    this.#present(run);
    if (matchMedia("(max-width: 60rem)").matches) this.board.root.scrollIntoView({ block: "start" });
    this.composer.busy(() => control.abort());
    try {
      for (let index = 0; index < run.columns.length; index += 1) await this.#drawColumn(run, index, control.signal);
      this.say();
      this.#finished(run);
    } catch (error) {
      this.board.stopped();
      if (error.name === "AbortError") {
        this.say();
        announce("Stopped");
      } else this.say("bad", ...explain(error), ...(error instanceof GoneError ? [] : [this.#again(settings)]));
      if (error instanceof GoneError) this.failed = settings;
    } finally {
      this.composer.busy(null);
    }
  }

  // Columns come one after another, so that their times can be compared.
  async #drawColumn(run, index, signal) {
    const column = run.columns[index], board = this.board;
    const asked = { ...run.settings, model: column.model, steps: column.steps };
    column.seconds = await patiently(() => generate(asked, {
      signal,
      onEstimate: (...of) => board.estimate(index, ...of),
      onPicture: (position, picture) => {
        column.pictures[position] = picture;
        board.picture(index, position, picture);
      },
    }), { signal, onWait: (error, seconds) => this.#waiting(error, seconds) });
    board.finished(index, column.seconds);
  }

  // Said once; the seconds that pass are seen and not heard.
  #waiting(error, seconds) {
    const left = h("span", { class: "number", role: "timer", "aria-live": "off" }, seconds);
    this.say("warn", explain(error)[0], ["Trying again in ", left, ` s. ${error.message}`]);
    return still => { left.textContent = still; };
  }

  #finished(run) {
    const pictures = run.columns.flatMap(column => column.pictures), auto = run.settings.steps === "auto" && run.settings.compare !== "steps";
    const seconds = run.columns.reduce((sum, column) => sum + column.seconds, 0);
    announce(`${plural(pictures.length, "picture")} drawn in ${duration(seconds)}${auto ? `, ${plural([...new Set(pictures.map(each => each.steps))].join(" and "), "step")}` : ""}`);
    keep(run).then(() => this.shelf.refresh()).catch(error => this.say("warn", "Not kept in the history", `The browser refuses: ${reason(error)}.`));
  }

  #present(run) {
    this.board?.close();
    this.board = new Board(run, {
      onOpen: (column, index) => this.#open(run, column, index),
      onSeed: seed => this.composer.setSeed(seed),
    });
    this.canvas.replaceChildren(this.board.root);
    this.code.replaceChildren(snippets({ ...run.settings, model: run.columns[0].model, steps: run.columns[0].steps }, Boolean(storedKey())));
  }

  #open(run, column, index) {
    openViewer(run, column, index, {
      bundleOf: model => run.bundles?.[model] ?? this.models.find(each => each.id === model)?.digests.bundle,
      onUse: (variant, picture) => this.composer.use({ ...run.settings, ...ofOne(run.settings, variant), steps: picture.steps, seed: picture.seed, n: 1 }),
    });
  }

  restore(run) {
    this.say();
    this.composer.use(run.settings);
    this.#present(run);
    this.root.scrollIntoView({ block: "start" });
  }

  #again(settings) {
    return h("button", { type: "button", onclick: () => this.draw(settings) }, "Draw again");
  }

  // What was asked for while the server was away can be asked for again when it is back.
  #connection(state, before) {
    if (state === "ready" && before && this.failed) {
      this.say("good", "The server is back", "", this.#again(this.failed));
      this.failed = null;
    }
  }

  async read(file) {
    try {
      const made = await settingsOf(file);
      const format = { "image/jpeg": "jpeg", "image/webp": "webp" }[file.type] ?? "png";
      const missing = this.composer.use({ ...made, format, n: 1, compare: "" });
      const served = this.models.find(each => each.id === made.model);
      if (missing.length) this.say("warn", `${file.name} wants what is not served here`, `Not found: ${missing.join(", ")}.`);
      else if (served.digests.bundle !== made.bundle) this.say("warn", `The settings of ${file.name}`, `It was drawn by another version of ${made.model} and may come out differently.`);
      else this.say("good", `The settings of ${file.name}`, "Drawing gives the same file, byte for byte.", this.#again(this.composer.settings()));
    } catch (error) {
      this.say("bad", "No settings found", error.message);
    }
  }

  #acceptDrops() {
    const holdsFiles = event => event.dataTransfer?.types.includes("Files") && this.root.isConnected;
    addEventListener("dragover", event => {
      if (!holdsFiles(event)) return;
      event.preventDefault();
      document.body.classList.add("dropping");
    });
    addEventListener("dragleave", event => { if (!event.relatedTarget) document.body.classList.remove("dropping"); });
    addEventListener("drop", event => {
      document.body.classList.remove("dropping");
      if (!holdsFiles(event)) return;
      event.preventDefault();
      this.read(event.dataTransfer.files[0]);
    });
  }
}

const reason = error => error?.message || error?.name || "no database";

// A version is drawn again beside the other one; everything else alone.
const ofOne = ({ compare }, variant) => (compare === "versions" ? {} : { compare: "", model: variant.model });

function newRun(settings) {
  const columns = variants(settings).map(variant => ({ ...variant, size: settings.size, pictures: [] }));
  return { id: Date.now(), settings: { ...settings, seed: settings.seed || randomSeed() }, columns };
}

function variants({ compare, model, version, other, steps, stepChoices }) {
  if (compare === "steps") return stepChoices.map(count => ({ label: plural(count, "step"), model, steps: count }));
  if (compare === "models" && other) return [model, other].map(name => ({ label: name, model: name, steps }));
  if (compare === "versions" && version && other) return [version, other].map(name => ({ label: name, model: name, steps }));
  return [{ label: steps === "auto" ? "auto" : plural(steps, "step"), model, steps }];
}

function welcome() {
  return h("div", { class: "welcome" },
    h("h1", { class: "visually-hidden" }, "Playground"),
    h("div", { class: "welcome-dots", "aria-hidden": "true" }, h("i"), h("i"), h("i"), h("i")),
    h("p", {}, "Pictures appear here as they are drawn, estimate by estimate."),
    h("p", { class: "quiet small" }, h("kbd", {}, "Ctrl"), " + ", h("kbd", {}, "Enter"), " draws. The same seed gives the same picture."));
}
