// The server, as the page sees it: requests with the key, answers or errors, events of a stream.
import { parse, stringify } from "./numbers.js";

export class ApiError extends Error {
  constructor(status, body, headers) {
    super(body?.message ?? `The server answered ${status}.`);
    Object.assign(this, { status, code: body?.code ?? null, requestId: headers?.get("x-request-id") ?? "" });
    const wait = Number(headers?.get("retry-after-ms")) / 1000 || Number(headers?.get("retry-after"));
    this.retryAfter = headers?.get("x-should-retry") === "false" || !wait ? null : wait;
  }
}

export class GoneError extends Error {
  constructor() {
    super("The server does not answer.");
  }
}

const hooks = { key: async () => null, gone: () => {} };

// What is done when a key is wanted and when nobody answers; given by those who can ask and look.
export const onKeyWanted = hook => { hooks.key = hook; };
export const onGone = hook => { hooks.gone = hook; };
export const storedKey = () => sessionStorage.getItem("key");

export async function call(path, { method = "GET", body, file, signal, headers = {} } = {}) {
  const key = storedKey();
  if (key) headers = { ...headers, Authorization: `Bearer ${key}` };
  if (body !== undefined) headers = { ...headers, "Content-Type": "application/json" };
  const response = await reach(path, { method, headers, signal, body: file ?? (body === undefined ? undefined : stringify(body)) });
  if (response.ok) return response;
  const error = await response.json().then(answer => answer.error, () => null);
  if (response.status === 401 && await hooks.key(key)) return call(path, { method, body, file, signal });
  throw new ApiError(response.status, error, response.headers);
}

async function reach(path, options) {
  try {
    return await fetch(path, { cache: "no-store", ...options });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    hooks.gone();
    throw new GoneError();
  }
}

export async function json(path, options) {
  return parse(await (await call(path, options)).text());
}

// The events of a stream, each as its data; an event `error` is thrown.
export async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  try {
    for (;;) {
      const { done, value } = await read(reader);
      if (done) return;
      const blocks = (rest + value).split(/\r?\n\r?\n/);
      rest = blocks.pop();
      for (const block of blocks) {
        const event = parsed(block);
        if (event) yield event;
      }
    }
  } finally {
    reader.cancel().catch(() => {}); // it has ended already where the server went away
  }
}

async function read(reader) {
  try {
    return await reader.read();
  } catch (error) {
    if (error.name === "AbortError") throw error;
    hooks.gone();
    throw new GoneError();
  }
}

function parsed(block) {
  const fields = block.split(/\r?\n/).map(line => line.match(/^(event|data|id): ?(.*)$/)).filter(Boolean);
  const data = fields.filter(([, name]) => name === "data").map(([, , text]) => text).join("\n");
  const kind = fields.find(([, name]) => name === "event")?.[2];
  if (!data || data === "[DONE]") return null;
  const content = parse(data);
  if (kind === "error") throw new ApiError(content.error?.code === "deadline_exceeded" ? 504 : 500, content.error);
  return content;
}

// What happened, in words, and what to do about it.
export function explain(error) {
  if (error instanceof GoneError) return ["The server does not answer", "It may be restarting. This page keeps looking for it."];
  if (!(error instanceof ApiError)) return ["Something went wrong on this page", String(error.message ?? error)];
  const text = error.requestId ? `${error.message} (${error.requestId})` : error.message;
  if (error.status === 429 && error.code === "rate_limit_exceeded") return ["This key has used up its share for now", text];
  if (error.status === 429) return ["The server is full", text];
  if (error.status === 401) return ["An API key is needed", error.message];
  if (error.status === 403) return ["This key may not do that", text];
  if (error.status === 503) return ["The server is not taking work", text];
  if (error.status === 504) return ["It could not be done in time", text];
  return [error.status < 500 ? "The server cannot do that" : "The server failed", text];
}
