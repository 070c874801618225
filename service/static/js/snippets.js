// The request of a run as curl, Python and JavaScript, to be copied.
import { copy, h } from "./dom.js";
import { requestOf } from "./generate.js";
import { stringify } from "./numbers.js";

const TABS = { curl, Python: python, JavaScript: javascript };
const OWN = ["seed", "num_inference_steps"];

function curl(request, origin, key) {
  const body = stringify(request).replaceAll("'", "'\\''");
  const auth = key ? ` \\\n  -H "Authorization: Bearer $FEWSTEP_KEY"` : "";
  return `curl ${origin}/v1/images/generations${auth} \\\n  -H 'Content-Type: application/json' \\\n  -d '${body}'`;
}

function python(request, origin, key) {
  const own = OWN.filter(name => name in request).map(name => `"${name}": ${request[name]}`).join(", ");
  const rest = Object.entries(request).filter(([name]) => !OWN.includes(name)).map(([name, value]) => `    ${name}=${JSON.stringify(value)},`);
  return [
    "import base64", ...(key ? ["import os"] : []), "from pathlib import Path", "", "from openai import OpenAI", "",
    `client = OpenAI(base_url="${origin}/v1", api_key=${key ? 'os.environ["FEWSTEP_KEY"]' : '"none"'})`,
    "answer = client.images.generate(", ...rest, `    extra_body={${own}},`, ")",
    "for index, image in enumerate(answer.data):",
    `    Path(f"{index}.${request.output_format}").write_bytes(base64.b64decode(image.b64_json))`,
  ].join("\n");
}

function javascript(request, origin, key) {
  const auth = key ? ', Authorization: `Bearer ${key}`' : "";
  return [
    `const response = await fetch("${origin}/v1/images/generations", {`, '  method: "POST",',
    `  headers: { "Content-Type": "application/json"${auth} },`,
    // As text: a seed may be larger than a JavaScript number is exact.
    `  body: ${JSON.stringify(stringify(request))},`, "});", "const { data } = await response.json();",
    `const pictures = data.map(({ b64_json }) => \`data:image/${request.output_format};base64,\${b64_json}\`);`,
  ].join("\n");
}

export function snippets(settings, withKey) {
  const code = h("code", {}), pre = h("pre", { tabindex: 0, role: "region", "aria-label": "Request as code" }, code);
  const buttons = Object.keys(TABS).map(name => h("button", { type: "button", class: "ghost", "aria-pressed": "false", onclick: () => show(name) }, name));
  const said = h("button", { type: "button", class: "push", onclick: async () => {
    await copy(code.textContent);
    said.textContent = "Copied";
    setTimeout(() => { said.textContent = "Copy"; }, 1500);
  } }, "Copy");

  function show(name) {
    for (const button of buttons) button.setAttribute("aria-pressed", String(button.textContent === name));
    code.textContent = TABS[name](requestOf(settings), location.origin, withKey);
  }

  show("curl");
  return h("details", { class: "snippets" }, h("summary", {}, "As code"), h("div", { class: "row" }, h("div", { class: "row", role: "group", "aria-label": "Language" }, buttons), said), pre);
}
