// The OpenAPI description, as a page.
import { h } from "./dom.js";

function typeOf(schema) {
  if (schema.$ref) return schema.$ref.split("/").at(-1);
  if (schema.anyOf) return schema.anyOf.filter(each => each.type !== "null").map(typeOf).join(" or ");
  if (schema.const !== undefined) return JSON.stringify(schema.const);
  if (schema.enum) return schema.enum.join(" | ");
  if (schema.type === "array") return `list of ${typeOf(schema.items)}`;
  const range = schema.maximum !== undefined ? ` ${schema.minimum ?? ""}…${schema.maximum}` : "";
  return (schema.type || "any") + range;
}

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
  const entry = h("details", { open: method === "post" },
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

fetch("/openapi.json").then(response => response.json()).then(api => {
  const entries = Object.entries(api.paths).flatMap(([path, methods]) =>
    Object.entries(methods).map(([method, operation]) => route(api, path, method, operation)));
  document.getElementById("routes").replaceChildren(...entries);
});
