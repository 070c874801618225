// What is served: backend, certificate, quality, versions.
import { explain, json } from "./api.js";
import { digest, facts, h, notice, scroller } from "./dom.js";
import { bytes, clock, compact, measured, measureName, percent, plural } from "./numbers.js";
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
    h("section", {}, h("h3", {}, "Quality"), quality(model.quality, model.id)),
    versions(model.id, changed));
}

// Of each part the worst of all batch sizes, beside what the export would still have let pass.
function certificate({ reference, runtime, tolerance, measurements }) {
  const parts = [...new Set(measurements.map(each => each.part))];
  const rows = parts.map(part => {
    const own = measurements.filter(each => each.part === part), picture = own.some(each => each.psnr_db !== null);
    const worst = picture ? Math.min(...own.map(each => each.psnr_db ?? Infinity)) : Math.max(...own.map(each => each.relative));
    const bound = tolerance[part], holds = picture ? worst >= bound : worst <= bound;
    const written = value => (picture ? `${compact(value)}\u00a0dB` : compact(value));
    return h("tr", {}, h("th", { scope: "row" }, part.replaceAll("_", " ")), h("td", {}, written(worst)),
      h("td", { class: "quiet" }, bound === undefined ? "" : `${picture ? "at least" : "at most"} ${written(bound)}`),
      h("td", {}, bound === undefined ? "" : h("span", { class: `badge ${holds ? "good" : "bad"}` }, holds ? "holds" : "off")));
  });
  return scroller("Certificate of parity",
    h("table", {}, h("thead", {}, h("tr", {}, ["Part", "Worst", "Allowed"].map(name => h("th", { scope: "col" }, name)), h("th", { scope: "col" }, h("span", { class: "visually-hidden" }, "Verdict")))), h("tbody", {}, rows)),
    h("p", { class: "quiet small" }, `${runtime}, against ${reference}`));
}

// Whatever the card holds: a row per variant, a column per figure with a mean; or the figures of one student alone.
export function quality(card, id) {
  const rows = Object.values(card ?? {}).some(figure) ? bySteps(card) : card;
  if (!rows || !Object.keys(rows).length) return h("p", { class: "quiet small" }, "No quality card: nobody has measured this student yet.");
  const entries = Object.entries(rows), figures = new Set(entries.flatMap(([, row]) => Object.keys(row).filter(name => figure(row[name]))));
  const columns = [...figures].filter(name => !["images", "seeds"].includes(name)), counted = entries.some(([, row]) => row.images);
  return scroller("Quality", h("table", {},
    h("thead", {}, h("tr", {}, h("th", { scope: "col" }, "Variant"), columns.map(name => h("th", { scope: "col" }, measureName(name))), counted ? h("th", { scope: "col" }, "Over") : null)),
    h("tbody", {}, entries.map(([label, row]) => h("tr", {}, h("th", { scope: "row" }, label.startsWith(`${id}, `) ? label.slice(id.length + 2) : label),
      columns.map(name => h("td", {}, row[name] === undefined ? "–" : shown(name, row[name].mean ?? row[name]))),
      counted ? h("td", { class: "quiet" }, row.images ? `${row.images} pictures${row.seeds?.length > 1 ? `\u00a0×\u00a0${row.seeds.length}` : ""}` : "") : null)))));
}

const figure = value => typeof value === "number" || typeof value?.mean === "number";

// `accuracy_4` is the accuracy in 4 steps. What has no step count is left out where others have one: the score
// by which a run has chosen its best student says nothing to who reads it alone.
function bySteps(card) {
  const found = Object.entries(card).map(([name, value]) => [name.match(/^(.+)_(\d+)$/), value]).filter(([match]) => match);
  if (!found.length) return { "this student": card };
  const rows = {};
  for (const [[, name, steps], value] of found) (rows[plural(steps, "step")] ??= {})[name] = value;
  return rows;
}

function shown(name, mean) {
  if (!name.includes("accuracy")) return measured(name, mean);
  return h("span", { class: "meter" }, h("span", { class: "meter-bar", "aria-hidden": "true" }, h("i", { style: { width: percent(mean, 2) } })), percent(mean));
}
