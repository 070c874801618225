// The versions of one model: which serves, which has a share of the traffic on trial, and the way back.
import { call, explain, json } from "./api.js";
import { announce, digest, h, notice, scroller } from "./dom.js";
import { clock, percent } from "./numbers.js";

const KINDS = { serving: "good", canary: "accent", previous: "", retired: "" };

// `changed()` is called when another version serves. Nothing is shown where the server keeps no versions.
export function versions(id, changed, kind = "") {
  const root = h("section", { class: `versions ${kind}`, hidden: true, "aria-label": `Versions of ${id}` });
  fill(root, id, changed);
  return root;
}

async function fill(root, id, changed) {
  try {
    const { data } = await json(`/v1/models/${encodeURIComponent(id)}/versions`);
    root.hidden = !data.length;
    const held = root.contains(document.activeElement), title = h("h3", { tabindex: -1 }, "Versions");
    root.replaceChildren(h("div", { class: "row" }, title, actions(root, id, data, changed)), table(data));
    if (held) title.focus();
  } catch (error) {
    root.hidden = [404, 405].includes(error.status);
    root.replaceChildren(notice("bad", ...explain(error)));
  }
}

function actions(root, id, data, changed) {
  const canary = data.some(each => each.state === "canary"), back = canary || data.some(each => each.state === "previous");
  const act = async verb => {
    try {
      await call(`/v1/models/${encodeURIComponent(id)}/${verb}`, { method: "POST" });
      await fill(root, id, changed);
      announce({ promote: "The canary serves all requests", rollback: "The version before serves again" }[verb]);
      changed();
    } catch (error) {
      root.prepend(notice("bad", ...explain(error)));
    }
  };
  return h("span", { class: "row push" },
    canary ? h("button", { type: "button", onclick: () => act("promote") }, "Promote the canary") : null,
    back ? h("button", { type: "button", onclick: () => act("rollback") }, canary ? "Withdraw the canary" : "Roll back") : null);
}

function table(data) {
  return scroller("Table of versions", h("table", {},
    h("thead", {}, h("tr", {}, ["Version", "State", "Share", "Bundle", "Since", "Why"].map(name => h("th", { scope: "col" }, name)))),
    h("tbody", {}, data.map(each => h("tr", {}, h("th", { scope: "row" }, each.id),
      h("td", {}, h("span", { class: `badge ${KINDS[each.state] ?? ""}` }, each.state)), h("td", {}, percent(each.share, 0)), h("td", {}, digest(each.digest)),
      h("td", {}, clock(each.published_at)), h("td", { class: "quiet" }, each.reason || "–"))))));
}
