// What is served: backend, certificate, quality, versions.
import { explain, json } from "./api.js";
import { digest, facts, h, notice } from "./dom.js";
import { bytes, clock, compact, percent } from "./numbers.js";
import { versions } from "./versions.js";

export async function create() {
  return new Models();
}

class Models {
  constructor() {
    this.list = h("div", { class: "stack" });
    this.root = h("div", { class: "page" },
      h("header", {}, h("h1", {}, "Models"), h("p", {}, "What this server draws with, and the proof that it draws what was trained.")), this.list);
  }

  async show() {
    try {
      const { data } = await json("/v1/models");
      this.list.replaceChildren(...data.map((model, index) => card(model, index === 0, () => this.show())));
    } catch (error) {
      this.list.replaceChildren(notice("bad", ...explain(error)));
    }
  }
}

function card(model, first, changed) {
  const files = Object.entries(model.digests.files);
  return h("article", { class: "sheet model", "aria-label": model.id },
    h("header", { class: "row" }, h("h2", {}, model.id), model.backend ? h("span", { class: "badge accent" }, model.backend) : null, h("span", { class: "badge" }, model.precision),
      model.state === "ready" ? null : h("span", { class: `badge ${model.state === "stalled" ? "bad" : "warn"}` }, model.state),
      first ? h("span", { class: "badge" }, "default") : null),
    h("div", { class: "halves" },
      h("section", {}, h("h3", {}, "Loaded"), facts([
        ["Steps", model.steps.join(", ")], ["Sizes", model.sizes.join(", ").replaceAll("x", " × ")], ["Batches of", model.batch_sizes.join(", ")],
        ["Memory", model.memory_bytes ? bytes(model.memory_bytes) : ""], ["Since", clock(model.created)], ["Bundle", digest(model.digests.bundle)],
      ]), h("details", {}, h("summary", {}, `${files.length} files`), h("div", { class: "scroll" },
        h("table", {}, h("tbody", {}, files.map(([name, sum]) => h("tr", {}, h("td", {}, name), h("td", {}, digest(sum))))))))),
      h("section", {}, h("h3", {}, "Certificate of parity"), certificate(model.parity))),
    h("section", {}, h("h3", {}, "Quality"), quality(model.quality)),
    versions(model.id, changed));
}

// Of each part the worst of all batch sizes, beside what the export would still have let pass.
function certificate({ reference, runtime, tolerance, measurements }) {
  const parts = [...new Set(measurements.map(each => each.part))];
  const rows = parts.map(part => {
    const own = measurements.filter(each => each.part === part), picture = own.some(each => each.psnr_db !== null);
    const worst = picture ? Math.min(...own.map(each => each.psnr_db ?? Infinity)) : Math.max(...own.map(each => each.relative));
    const bound = tolerance[part], holds = picture ? worst >= bound : worst <= bound;
    const written = value => (picture ? `${compact(value)} dB` : compact(value));
    return h("tr", {}, h("th", { scope: "row" }, part.replaceAll("_", " ")), h("td", {}, written(worst)),
      h("td", { class: "quiet" }, bound === undefined ? "" : `${picture ? "at least" : "at most"} ${written(bound)}`),
      h("td", {}, bound === undefined ? "" : h("span", { class: `badge ${holds ? "good" : "bad"}` }, holds ? "holds" : "off")));
  });
  return h("div", { class: "scroll" },
    h("table", {}, h("thead", {}, h("tr", {}, ["Part", "Worst", "Allowed", ""].map(name => (name ? h("th", { scope: "col" }, name) : h("td"))))), h("tbody", {}, rows)),
    h("p", { class: "quiet small" }, `${runtime}, against ${reference}`));
}

// Whatever the card holds: a row per variant, a column per figure with a mean; or the figures alone.
export function quality(rows) {
  if (rows && Object.values(rows).some(figure)) rows = { "this student": rows };
  if (!rows || !Object.keys(rows).length) return h("p", { class: "quiet small" }, "No quality card: nobody has measured this student yet.");
  const entries = Object.entries(rows), figures = new Set(entries.flatMap(([, row]) => Object.keys(row).filter(name => figure(row[name]))));
  const columns = [...figures].filter(name => !["images", "seeds"].includes(name));
  return h("div", { class: "scroll" }, h("table", {},
    h("thead", {}, h("tr", {}, h("th", { scope: "col" }, "Variant"), columns.map(name => h("th", { scope: "col" }, name.replaceAll("_", " "))), h("th", { scope: "col" }, "over"))),
    h("tbody", {}, entries.map(([label, row]) => h("tr", {}, h("th", { scope: "row" }, label),
      columns.map(name => h("td", {}, row[name] === undefined ? "–" : measured(name, row[name]))),
      h("td", { class: "quiet" }, row.images ? `${row.images} pictures${row.seeds?.length > 1 ? ` × ${row.seeds.length}` : ""}` : ""))))));
}

const figure = value => typeof value === "number" || typeof value?.mean === "number";

function measured(name, value) {
  const mean = value.mean ?? value;
  if (!name.includes("accuracy")) return compact(mean);
  return h("span", { class: "meter" }, h("span", { class: "meter-bar", "aria-hidden": "true" }, h("i", { style: { width: percent(mean, 2) } })), percent(mean));
}
