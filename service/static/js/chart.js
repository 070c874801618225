// Lines over a common axis, as SVG; a pointer or the arrow keys read off values, as on a slider: that is a
// role whose keys screen readers pass on.
import { h, svg } from "./dom.js";
import { compact } from "./numbers.js";

// The plot's own coordinates; it is stretched to the room that it has, and its labels are not.
const WIDTH = 640, HEIGHT = 160;

// `lines`: [{ name, colour, points: [[x, y], ...] }]; `xs` and `ys` write values of the axes.
export function chart({ title, lines, xs = compact, ys = compact, zero = true, empty = "Nothing yet" }) {
  const shown = lines.map(line => ({ ...line, points: line.points.filter(([, y]) => Number.isFinite(y)) })).filter(line => line.points.length);
  const head = h("figcaption", { class: "row" }, h("span", { class: "chart-title" }, title), lines.length > 1 ? legend(lines) : null);
  const reading = h("output", { class: "number", "aria-live": "off" }); // the plot says it
  if (!shown.length) return h("figure", { class: "chart" }, head, h("p", { class: "chart-empty quiet small" }, empty));
  const scale = scales(shown, zero), drawing = draw(title, shown, scale, ys);
  readable(drawing, shown, scale, (x, values) => {
    reading.textContent = x === null ? "" : `${xs(x)}: ${values.map(([name, y]) => `${shown.length > 1 ? `${name} ` : ""}${ys(y)}`).join(", ")}`;
    if (x !== null) drawing.setAttribute("aria-valuetext", reading.textContent);
  });
  return h("figure", { class: "chart" }, head, h("div", { class: "plot" },
    h("ol", { class: "axis axis-y", "aria-hidden": "true" }, scale.ticks.toReversed().map(tick => h("li", {}, ys(tick)))), drawing,
    h("p", { class: "axis axis-x", "aria-hidden": "true" }, h("span", {}, xs(scale.first)), scale.last > scale.first ? h("span", {}, xs(scale.last)) : null)), reading);
}

// Whether somebody is reading a chart in there, which must not be replaced under their eyes.
export function beingRead(root) {
  return root.contains(document.activeElement) || Boolean(root.querySelector("output:not(:empty)"));
}

function legend(lines) {
  return h("ul", { class: "legend" }, lines.map(({ name, colour }) => h("li", {}, h("i", { style: { background: colour } }), name)));
}

function scales(lines, zero) {
  const all = lines.flatMap(line => line.points), x = all.map(([value]) => value), y = all.map(([, value]) => value);
  let [low, high] = [Math.min(...y), Math.max(...y)];
  if (zero && low > 0) low = 0;
  if (low === high) [low, high] = [low - (zero ? 0 : 0.5), high + (high === 0 ? 1 : 0.5)];
  const ticks = round(low, high), [first, last] = [Math.min(...x), Math.max(...x)];
  return {
    first, last, ticks,
    x: value => ((value - first) / (last - first || 1)) * WIDTH,
    y: value => (1 - (value - ticks[0]) / (ticks.at(-1) - ticks[0])) * HEIGHT,
  };
}

// Three to five round values that span what is shown.
export function round(low, high) {
  const raw = (high - low) / 3, power = 10 ** Math.floor(Math.log10(raw));
  const step = power * [1, 2, 2.5, 5, 10].find(factor => factor * power >= raw);
  const ticks = [];
  for (let tick = Math.floor(low / step); tick * step < high + step; tick += 1) ticks.push(Number((tick * step).toPrecision(12)));
  return ticks;
}

function draw(title, lines, scale, ys) {
  const grid = scale.ticks.map(tick => svg("line", { class: "grid", x1: 0, x2: WIDTH, y1: scale.y(tick), y2: scale.y(tick) }));
  const place = ([x, y]) => `${scale.x(x).toFixed(1)} ${scale.y(y).toFixed(1)}`;
  const paths = lines.map(({ colour, points }) => svg("path", {
    class: points.length === 1 ? "point" : "", style: { stroke: colour }, d: `M${points.map(place).join("L")}${points.length === 1 ? "h0" : ""}`,
  }));
  const latest = lines.map(({ name, points }) => `${name} ${ys(points.at(-1)[1])}`).join(", ");
  return svg("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, preserveAspectRatio: "none", role: "slider", tabindex: 0, "aria-label": title, "aria-readonly": "true", "aria-valuetext": `latest: ${latest}`, "aria-valuenow": 0 },
    grid, paths, svg("line", { class: "cursor", y1: 0, y2: HEIGHT, visibility: "hidden" }));
}

function readable(drawing, lines, scale, read) {
  const cursor = drawing.querySelector(".cursor"), places = [...new Set(lines.flatMap(line => line.points.map(([x]) => x)))].sort((a, b) => a - b);
  let at = places.length;
  for (const [name, value] of [["min", 0], ["max", places.length - 1], ["now", places.length - 1]]) drawing.setAttribute(`aria-value${name}`, value);

  function show(index) {
    at = Math.max(0, Math.min(places.length - 1, index));
    const x = places[at];
    drawing.setAttribute("aria-valuenow", at);
    cursor.setAttribute("visibility", "visible");
    for (const end of ["x1", "x2"]) cursor.setAttribute(end, scale.x(x));
    read(x, lines.map(({ name, points }) => [name, nearest(points, x)[1]]));
  }

  function leave() {
    cursor.setAttribute("visibility", "hidden");
    read(null, []);
  }

  drawing.addEventListener("pointermove", event => {
    const box = drawing.getBoundingClientRect(), wanted = ((event.clientX - box.left) / box.width) * WIDTH;
    show(places.reduce((best, x, index) => (Math.abs(scale.x(x) - wanted) < Math.abs(scale.x(places[best]) - wanted) ? index : best), 0));
  });
  drawing.addEventListener("pointerleave", leave);
  drawing.addEventListener("blur", leave);
  const keys = { ArrowLeft: () => at - 1, ArrowDown: () => at - 1, ArrowRight: () => at + 1, ArrowUp: () => at + 1, Home: () => 0, End: () => places.length };
  drawing.addEventListener("keydown", event => {
    if (!Object.hasOwn(keys, event.key)) return;
    event.preventDefault();
    show(keys[event.key]());
  });
}

const nearest = (points, x) => points.reduce((best, point) => (Math.abs(point[0] - x) < Math.abs(best[0] - x) ? point : best));
