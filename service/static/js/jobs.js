// Distillation jobs: the list of them, a form for a new one, and each with its curves.
import { explain, json } from "./api.js";
import { h, notice, put } from "./dom.js";
import { JobForm } from "./jobform.js";
import { JobView } from "./job.js";
import { badge, nameOf, progressBar, ROUTE } from "./jobparts.js";
import { clock, duration } from "./numbers.js";

const EVERY_MS = 3_000;

export async function create() {
  return new Jobs();
}

class Jobs {
  constructor() {
    this.root = h("div", { class: "page" });
  }

  // The place after `#/jobs/`: nothing for the list, `new`, or a job's id.
  show([place] = []) {
    this.hide();
    if (place === "new") return this.#form();
    if (place) return this.#job(place);
    return this.#list();
  }

  hide() {
    clearInterval(this.timer);
    this.view?.close();
    this.view = null;
  }

  async #form() {
    const body = h("div", { class: "stack" });
    this.root.replaceChildren(head("New job", "A teacher in, a student in few steps out."), body);
    try { // what was filled in is still there for who comes back to it
      this.form ??= new JobForm((await json("/v1/distillation/teachers")).data, job => {
        this.form = null;
        location.hash = `#/jobs/${job.id}`;
      });
      body.replaceChildren(this.form.root);
    } catch (error) {
      body.replaceChildren(error.status === 404 ? absent() : notice("bad", ...explain(error)));
    }
  }

  #job(id) {
    this.view = new JobView(id);
    this.root.replaceChildren(this.view.root);
  }

  async #list() {
    const body = h("div", { class: "stack" });
    this.root.replaceChildren(head("Jobs", "Distillations: a teacher in, a student in few steps out.", h("a", { class: "button push", href: "#/jobs/new", hidden: true }, "New job")), body);
    const look = async () => {
      if (document.hidden) return;
      try {
        const { data } = await json(`${ROUTE}?limit=50`);
        this.root.querySelector("a.button")?.removeAttribute("hidden");
        const held = document.activeElement?.closest(".job-entry")?.hash;
        body.replaceChildren(data.length ? h("ul", { class: "job-list" }, data.map(entry)) : h("p", { class: "empty sheet" }, "No job yet. A first one, on the shapes world, takes minutes."));
        if (held) body.querySelector(`[href="${held}"]`)?.focus();
      } catch (error) {
        if (error.status === 404) clearInterval(this.timer);
        put(body, error.status === 404 ? absent() : notice("bad", ...explain(error)));
      }
    };
    this.timer = setInterval(look, EVERY_MS);
    await look();
  }
}

function head(title, text, ...more) {
  return h("header", {}, h("h1", {}, title), h("p", {}, text), ...more);
}

function absent() {
  return h("p", { class: "empty sheet" }, "Not available on this server: it takes no jobs. Distil on the command line, with ", h("code", {}, "fewstep distill RECIPE"), ".");
}

function entry(job) {
  const { percent = 0, eta_seconds: left, stage } = job.progress ?? {};
  const how = job.status === "running" ? [stage, left ? `${duration(left)} left` : null].filter(Boolean).join(", ") : clock(job.finished_at ?? job.created_at);
  return h("li", {}, h("a", { class: "job-entry sheet", href: `#/jobs/${encodeURIComponent(job.id)}` },
    h("span", { class: "row" }, h("strong", {}, nameOf(job)), badge(job), h("span", { class: "quiet small" }, `from ${job.model}`), h("span", { class: "quiet small number push" }, how)),
    progressBar(percent, job.status)));
}
