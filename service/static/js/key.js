// Asks for an API key where the server wants one; it is kept for as long as the tab is open.
import { onKeyWanted, storedKey } from "./api.js";
import { byId, field, h } from "./dom.js";

let asking = null;

// Resolves to whether there is a key to try that was not there when the request was sent.
function want(used) {
  byId("key").hidden = false;
  if (storedKey() !== used) return Promise.resolve(true);
  asking ??= ask(Boolean(used)).finally(() => { asking = null; });
  return asking;
}

function ask(refused) {
  const input = h("input", { type: "password", name: "key", autocomplete: "off", required: true, spellcheck: "false" });
  const why = refused ? "The server did not accept that key." : "It is sent to this server only and forgotten when the tab closes.";
  const dialog = h("dialog", { class: "ask", "aria-labelledby": "key-title" },
    h("form", { method: "dialog" },
      h("h2", { id: "key-title" }, "This server needs an API key"),
      h("p", { class: refused ? "bad" : "quiet", role: refused ? "alert" : undefined }, why),
      field("API key", input),
      h("div", { class: "row" },
        h("button", { class: "main", type: "submit" }, "Use this key"),
        h("button", { class: "ghost", type: "button", onclick: () => dialog.close() }, "Not now"))));
  document.body.append(dialog);
  dialog.showModal();
  return new Promise(resolve => {
    let given = false;
    dialog.addEventListener("submit", () => {
      sessionStorage.setItem("key", input.value.trim());
      given = true;
    });
    dialog.addEventListener("close", () => {
      dialog.remove();
      resolve(given);
    });
  });
}

export function offerKey(changed) {
  onKeyWanted(want);
  byId("key").hidden = !storedKey();
  byId("key").addEventListener("click", async () => {
    sessionStorage.removeItem("key");
    if (await ask(false)) changed();
  });
}
