// Which of the views is shown, and what is around them.
import { explain, GoneError, json } from "./api.js";
import { onState, watch } from "./connection.js";
import { byId, h, notice } from "./dom.js";
import { offerKey } from "./key.js";

const VIEWS = {
  "": ["Playground", () => import("./playground.js")],
  jobs: ["Jobs", () => import("./jobs.js")],
  models: ["Models", () => import("./models.js")],
  health: ["Health", () => import("./health.js")],
  api: ["API", () => import("./reference.js")],
};
const THEMES = ["", "light", "dark"];
const shown = new Map();
let current = null, served = null;

// The name of the view, and what is to be seen in it.
function place() {
  const [name, ...rest] = location.hash.replace(/^#\/?/, "").split("/");
  return [Object.hasOwn(VIEWS, name) ? name : "", rest];
}

// A view is made once and keeps what it shows; it may want to know when it is on the screen.
async function show() {
  const [name, rest] = place(), [title, load] = VIEWS[name];
  document.title = name ? `${title} · fewstep` : "fewstep";
  byId("view").setAttribute("aria-label", title); // heard when it gets the focus
  for (const link of document.querySelectorAll(".tabs a"))
    if (link.hash === `#/${name}`) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  if (!shown.has(name)) shown.set(name, make(name, load));
  const view = await shown.get(name).catch(error => failed(name, error));
  if (place()[0] !== name) return; // whoever looks has gone on meanwhile
  if (current !== view) current?.hide?.();
  current = view;
  byId("view").replaceChildren(view.root);
  view.show?.(rest);
}

// The description of the API needs neither models nor a key.
async function make(name, load) {
  if (name !== "api") await (served ??= ready().catch(error => { served = null; throw error; }));
  return (await load().catch(unreached)).create();
}

// A module that does not arrive says so as a TypeError, whatever is wrong inside one as something else. Browsers
// remember that it did not until the page is loaded again.
function unreached(error) {
  throw error instanceof TypeError ? Object.assign(new GoneError(), { again: () => location.reload() }) : error;
}

// While nobody waits, what the other views need: it may be wanted when the server is away.
function prepare() {
  for (const [, load] of Object.values(VIEWS)) load().catch(() => {}); // said when that view is wanted
}

// In place of a view that could not be made; it is tried again when the server is back, or when somebody wants that.
function failed(name, error) {
  shown.delete(name);
  const { again = show } = error;
  return { again, root: h("div", { class: "page" }, notice("bad", ...explain(error), h("button", { type: "button", onclick: () => again() }, "Try again"))) };
}

async function start() {
  offerKey(() => location.reload());
  setTheme(localStorage.getItem("theme") ?? "");
  byId("theme").addEventListener("click", () => {
    setTheme(THEMES[(THEMES.indexOf(localStorage.getItem("theme") ?? "") + 1) % THEMES.length]);
  });
  // The address says which view is shown: it is not for going to a place in it.
  document.querySelector(".skip").addEventListener("click", event => {
    event.preventDefault();
    byId("view").focus();
  });
  addEventListener("hashchange", () => show().then(() => byId("view").focus({ preventScroll: true })));
  onState((state, before) => { if (state === "ready" && before) current?.again?.(); });
  watch();
  if (location.pathname === "/docs") history.replaceState(null, "", "/#/api");
  await show();
  setTimeout(prepare, 500);
}

// Models load for a while after the server has begun to listen; a server that is away is waited for.
async function ready() {
  say("loading", loading());
  for (;;) {
    try {
      if ((await json("/v1/models")).data.length) return;
      say("loading", loading());
    } catch (error) {
      if (error.status === 401) throw error;
      say(error.message, h("div", { class: "page" }, notice("bad", ...explain(error), h("button", { type: "button", onclick: () => location.reload() }, "Try again"))));
    }
    await new Promise(resolve => setTimeout(resolve, 500));
  }
}

const loading = () => h("p", { class: "empty" }, "The models are loading…");

// In place of all views that wait for models; said once, for those who hear it.
let said = {};
function say(text, node) {
  if (place()[0] === "api" || (text === said.text && said.node.isConnected)) return;
  said = { text, node };
  byId("view").replaceChildren(node);
}

function setTheme(theme) {
  localStorage.setItem("theme", theme);
  if (theme) document.documentElement.dataset.theme = theme;
  else delete document.documentElement.dataset.theme;
  const word = { "": "Auto", light: "Light", dark: "Dark" }[theme];
  byId("theme").lastChild.textContent = word;
  byId("theme").setAttribute("aria-label", `Theme: ${word}`);
}

start();
