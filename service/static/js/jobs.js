// Distillation jobs, where this server takes them.
import { explain, json } from "./api.js";
import { h, notice } from "./dom.js";

const ROUTE = "/v1/distillation/jobs";

export async function create() {
  return new Jobs();
}

class Jobs {
  constructor() {
    this.body = h("div", { class: "stack" });
    this.root = h("div", { class: "page" },
      h("header", {}, h("h1", {}, "Jobs"), h("p", {}, "Distillations: a teacher in, a student in few steps out.")), this.body);
  }

  async show() {
    try {
      const { data } = await json(ROUTE);
      this.body.replaceChildren(h("p", { class: "quiet" }, `${data.length} jobs`));
    } catch (error) {
      this.body.replaceChildren(error.status === 404
        ? h("p", { class: "empty sheet" }, "Not available on this server: it takes no jobs. Distil on the command line, with ", h("code", {}, "fewstep distill RECIPE"), ".")
        : notice("bad", ...explain(error)));
    }
  }
}
