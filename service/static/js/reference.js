// The OpenAPI description, as a view.
import { explain, json } from "./api.js";
import { h, notice } from "./dom.js";

export async function create() {
  const routes = h("section", { class: "routes", "aria-label": "Routes" });
  const root = h("div", { class: "page" },
    h("header", {}, h("h1", {}, "API"), h("p", {}, "From ", h("a", { href: "/openapi.json" }, "openapi.json"), "; any OpenAPI tool reads it.")), routes);
  return { root, show: () => fill(routes) };
}

async function fill(routes) {
  if (routes.querySelector("details")) return;
  try {
    const api = await json("/openapi.json");
    routes.replaceChildren(...Object.entries(api.paths).flatMap(([path, methods]) =>
      Object.entries(methods).map(([method, operation]) => route(api, path, method, operation))));
  } catch (error) {
    routes.replaceChildren(notice("bad", ...explain(error)));
  }
}

function typeOf(schema) {
  if (schema.$ref) return schema.$ref.split("/").at(-1);
  if (schema.anyOf) return schema.anyOf.filter(each => each.type !== "null").map(typeOf).join(" or ");
  if (schema.const !== undefined) return JSON.stringify(schema.const);
  if (schema.enum) return schema.enum.join(" | ");
  if (schema.type === "array") return `list of ${typeOf(schema.items)}`;
  const range = schema.maximum !== undefined ? ` ${schema.minimum ?? ""}…${bound(schema.maximum)}` : "";
  return (schema.type || "any") + range;
}

// OpenAPI writes bounds as floats: the last digits of a large one are not to be trusted.
const bound = value => (value > Number.MAX_SAFE_INTEGER ? `2^${Math.round(Math.log2(value))} − 1` : value);

function table(api, schema) {
  const named = api.components.schemas[typeOf(schema)] || schema;
  const rows = Object.entries(named.properties || {}).map(([name, field]) => h("tr", {},
    h("td", {}, name + ((named.required || []).includes(name) ? " *" : "")),
    h("td", {}, typeOf(field)),
    h("td", {}, field.description || "")));
  return h("div", { class: "scroll" }, h("table", {}, h("tbody", {}, rows)));
}

function contentOf(part) {
  return part?.content?.["application/json"]?.schema;
}

function route(api, path, method, operation) {
  const entry = h("details", { open: path === "/v1/images/generations" },
    h("summary", {}, h("b", {}, method.toUpperCase()), path),
    h("p", {}, operation.description || operation.summary));
  const request = contentOf(operation.requestBody);
  if (request) entry.append(h("h2", {}, "Request"), table(api, request));
  for (const [status, response] of Object.entries(operation.responses)) {
    const schema = contentOf(response);
    if (schema?.$ref) entry.append(h("h2", {}, `${status} ${typeOf(schema)}`), table(api, schema));
  }
  return entry;
}
