// How the server is doing, computed here from what it tells Prometheus; for those without Grafana.
import { call, explain } from "./api.js";
import { beingRead, chart } from "./chart.js";
import { h, notice, put, scroller } from "./dom.js";
import { clock, compact, duration, percent } from "./numbers.js";
import { Scrape, Window } from "./prometheus.js";
import { STAGES } from "./timing.js";

const EVERY_MS = 2_000, KEPT = 150;
const SPAN = 30;
/* Seconds over which rates and quantiles are taken. */

export async function create() {
  return new Health();
}

class Health {
  constructor() {
    this.scrapes = [];
    this.series = { images: [], p50: [], p95: [], waiting: [] };
    this.body = h("div", { class: "stack" }, h("p", { class: "empty" }, "Looking…"));
    this.root = h("div", { class: "page" },
      h("header", {}, h("h1", {}, "Health"), h("p", {}, `Over the last ${SPAN} seconds, from `, h("a", { href: "/metrics" }, "/metrics"), ".")), this.body);
  }

  show() {
    this.hide();
    this.look();
    this.timer = setInterval(() => { if (!document.hidden) this.look(); }, EVERY_MS);
  }

  hide() {
    clearInterval(this.timer);
  }

  async look() {
    try {
      const text = await (await call("/metrics")).text();
      this.scrapes = [...this.scrapes, new Scrape(text, Date.now() / 1000)].slice(-KEPT);
      this.#draw();
    } catch (error) {
      put(this.body, notice("bad", ...explain(error)));
    }
  }

  #window() {
    const after = this.scrapes.at(-1);
    const before = this.scrapes.find(each => each.at >= after.at - SPAN - 1);
    return before === after ? null : new Window(before, after);
  }

  #draw() {
    const window = this.#window(), now = this.scrapes.at(-1);
    const waiting = now.sum("fewstep_queue_depth"), inside = now.sum("fewstep_inflight_images");
    const latency = share => window?.quantile(share, "fewstep_request_duration_seconds") ?? NaN;
    const read = { images: window?.rate("fewstep_images_total") ?? 0, p50: latency(0.5), p95: latency(0.95), waiting };
    for (const [name, value] of Object.entries(read)) this.series[name] = [...this.series[name], [now.at, value]].slice(-KEPT);
    const tiles = h("div", { class: "tiles" },
      tile("Throughput", `${compact(read.images)}`, "images a second"), tile("Half are done in", duration(read.p50), "p50 of requests"),
      tile("Nearly all in", duration(read.p95), "p95 of requests"), tile("Waiting", compact(waiting), `${compact(inside)} images inside`),
      tile("Prompts known", share(window, "fewstep_embedding_cache"), "embedding cache hits"), tile("Pictures known", share(window, "fewstep_result_cache"), "result cache hits"));
    if (beingRead(this.body)) return this.body.firstElementChild.replaceWith(tiles);
    const charts = h("div", { class: "halves" },
      h("div", { class: "sheet" }, chart({ title: "Images a second", lines: [line("images", "var(--accent)", this.series.images)], xs: clock })),
      h("div", { class: "sheet" }, chart({ title: "Time of a request", lines: [line("p50", "var(--stage-encode)", this.series.p50), line("p95", "var(--accent)", this.series.p95)], xs: clock, ys: duration, empty: "No request in the last seconds" })));
    this.body.replaceChildren(tiles, charts,
      h("div", { class: "halves" }, h("section", { class: "sheet" }, h("h2", {}, "Phases"), phases(window ?? new Window(now, now))), h("section", { class: "sheet" }, h("h2", {}, "Answers"), answers(now))));
  }
}

const line = (name, colour, points) => ({ name, colour, points });

function tile(name, value, unit) {
  return h("div", { class: "tile sheet" }, h("h2", { class: "label" }, name), h("p", { class: "figure number" }, value), h("p", { class: "quiet small" }, unit));
}

function share(window, name) {
  const hits = window?.count(`${name}_hits_total`) ?? 0, misses = window?.count(`${name}_misses_total`) ?? 0;
  return percent(hits / (hits + misses), 0);
}

function phases(window) {
  const rows = STAGES.slice(1).map(stage => h("tr", {}, h("th", { scope: "row" }, h("i", { class: "swatch", style: { background: `var(--stage-${stage})` } }), stage),
    h("td", {}, duration(window.mean("fewstep_stage_duration_seconds", { stage }))), h("td", {}, sizes(window, stage)),
    h("td", {}, compact(window.after.sum("fewstep_queue_depth", { stage })))));
  return scroller("Phases", h("table", {},
    h("thead", {}, h("tr", {}, ["Phase", "A batch takes", "Batch sizes", "Waiting"].map(name => h("th", { scope: "col" }, name)))), h("tbody", {}, rows)));
}

// How many batches there were of each size, as a row of bars.
function sizes(window, stage) {
  const name = "fewstep_batch_size", buckets = window.buckets(name, { stage }), counts = buckets.map(([bound, count], index) => [bound, count - (index ? buckets[index - 1][1] : 0)]);
  const most = Math.max(...counts.map(([, count]) => count)), mean = window.mean(name, { stage });
  if (!(most > 0)) return "–";
  const words = counts.filter(([, count]) => count).map(([bound, count]) => `${bound === Infinity ? "more" : bound}: ${count}`).join(", ");
  return h("span", { class: "bars", title: words }, h("span", { class: "bars-plot", role: "img", "aria-label": `batches by size: ${words}` },
    counts.map(([, count]) => h("i", { style: { height: `${Math.max(4, (100 * count) / most)}%`, opacity: count ? "1" : ".25" } }))), compact(mean));
}

function answers(now) {
  const rows = new Map();
  for (const { labels, value } of now.find("fewstep_requests_total")) {
    const row = rows.get(labels.route) ?? {};
    row[labels.outcome] = (row[labels.outcome] ?? 0) + value;
    rows.set(labels.route, row);
  }
  const outcomes = [...new Set([...rows.values()].flatMap(row => Object.keys(row)))].sort((a, b) => (b === "ok") - (a === "ok") || a.localeCompare(b));
  if (!rows.size) return h("p", { class: "quiet small" }, "No request yet.");
  return scroller("Answers", h("table", {},
    h("thead", {}, h("tr", {}, h("th", { scope: "col" }, "Route"), outcomes.map(name => h("th", { scope: "col" }, name)))),
    h("tbody", {}, [...rows].map(([route, row]) => h("tr", {}, h("th", { scope: "row", class: "mono" }, route), outcomes.map(name => h("td", {}, compact(row[name] ?? 0))))))),
  h("p", { class: "quiet small" }, "Since the server was started."));
}
