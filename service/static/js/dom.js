// Elements without a framework: `h("p", { class: "quiet", onclick }, "text", child)`.
const SVG = "http://www.w3.org/2000/svg";

export function h(tag, attributes = {}, ...children) {
  return filled(document.createElement(tag), attributes, children);
}

export function svg(tag, attributes = {}, ...children) {
  return filled(document.createElementNS(SVG, tag), attributes, children);
}

function filled(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (value === undefined || value === null || value === false) continue;
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (name === "style") for (const [property, text] of Object.entries(value)) node.style.setProperty(property, text);
    else if (name === "value" || name === "checked" || name === "selected") node[name] = value;
    else node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children.flat(Infinity).filter(child => child !== null && child !== undefined && child !== false));
  return node;
}

export const byId = id => document.getElementById(id);

// For those who hear the page: said when nothing else is being said, and again if it is the same. Behind an
// open dialog nothing is heard, so that one has a place of its own for this.
export function announce(text) {
  const place = document.querySelector("dialog[open] .announcer") ?? byId("announcer");
  place.textContent = "";
  setTimeout(() => { place.textContent = text; }, 50);
}

// What is not an error is heard where it is put into a live region.
export function notice(kind, title, text, ...actions) {
  return h("div", { class: `notice ${kind}`, role: kind === "bad" ? "alert" : undefined },
    h("div", {}, h("strong", {}, title), text ? h("p", {}, text) : null), ...actions);
}

// An alert is heard whenever it is put somewhere: what is found again at each look is put there once.
export function put(place, node) {
  if (place.textContent !== node.textContent) place.replaceChildren(node);
}

export function field(label, control) {
  return h("label", { class: "field" }, h("span", {}, label), control);
}

export function select(name, options, chosen, attributes = {}) {
  return h("select", { name, ...attributes }, options.map(each => {
    const [value, text] = Array.isArray(each) ? each : [each, each];
    return h("option", { value, selected: String(value) === String(chosen) }, String(text));
  }));
}

// One of a few, as radio buttons; at most one of the options has a third part, a hint that is shown while it is chosen.
export function choice(name, legend, options, chosen) {
  const hint = options.find(each => Array.isArray(each) && each[2])?.[2], id = `${name}-hint`;
  const labels = options.map(each => {
    const [value, text, own] = Array.isArray(each) ? each : [each, each];
    return h("label", {}, h("input", { type: "radio", name, value, checked: String(value) === String(chosen), "aria-describedby": own ? id : undefined }), String(text));
  });
  return h("fieldset", {}, h("legend", {}, legend), h("div", { class: "choice" }, labels), hint ? h("p", { class: "hint quiet small", id }, hint) : null);
}

export function facts(pairs) {
  const shown = pairs.filter(([, value]) => value !== undefined && value !== null && value !== "");
  return h("dl", { class: "facts" }, shown.map(([name, value]) => [h("dt", {}, name), h("dd", { class: "number" }, value)]));
}

// A table that may be wider than the screen; who has no pointer scrolls it with the arrow keys.
export function scroller(label, ...children) {
  return h("div", { class: "scroll", role: "region", tabindex: 0, "aria-label": label }, ...children);
}

// A long digest, short on the screen and whole in the clipboard.
export function digest(value) {
  const short = value.replace("sha256:", "").slice(0, 12);
  return h("button", { class: "link mono", type: "button", title: value, "aria-label": `${short}, copy the whole digest`, onclick: () => copy(value) }, short);
}

export async function copy(text) {
  try {
    await navigator.clipboard.writeText(text);
  } catch { // pages over plain http on another machine have no clipboard of their own
    const area = h("textarea", { value: text });
    (document.querySelector("dialog[open]") ?? document.body).append(area);
    area.select();
    document.execCommand("copy");
    area.remove();
  }
  announce("Copied");
}
