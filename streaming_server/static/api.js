// Requests to the server, with the API key where one is set. The key goes into a header only: URLs end up in logs.

const STORED = "player-api-key";

let key = read("sessionStorage") ?? read("localStorage") ?? "";
let refused = () => {};

export class ServerError extends Error {
  // `problems`: the fields that the server refused, each {field, message}.
  constructor(message, status = 0, problems = []) {
    super(message);
    this.status = status;
    this.problems = problems;
  }
}

export const hasKey = () => key !== "";

// Calls back whenever the server asks for a key, or for another one.
export function onRefused(callback) {
  refused = callback;
}

// Keeps the key until the tab closes, or on this device.
export function setKey(value, onDevice) {
  forgetKey();
  key = value;
  write(onDevice ? "localStorage" : "sessionStorage");
}

export function forgetKey() {
  key = "";
  for (const storage of ["sessionStorage", "localStorage"]) write(storage);
}

// Whether the server accepts a key.
export async function accepts(value) {
  const response = await fetch("model_info", { headers: authorization(value), cache: "no-store" });
  return response.status !== 401;
}

export async function send(path, options = {}) {
  const used = key;
  const response = await fetch(path, { ...options, headers: { ...options.headers, ...authorization(used) } });
  if (response.status === 401 && used === key) refused();
  return response;
}

export async function json(path) {
  const response = await send(path);
  if (!response.ok) throw await refusal(response);
  return response.json();
}

// The data of each server-sent event. An EventSource cannot send a key.
export async function* events(path, signal) {
  const response = await send(path, { signal, cache: "no-store", headers: { Accept: "text/event-stream" } });
  if (!response.ok) throw await refusal(response);
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    const complete = (rest + value).split("\n\n");
    rest = complete.pop();
    for (const event of complete) if (event.startsWith("data:")) yield JSON.parse(event.slice("data:".length));
  }
}

export async function refusal(response) {
  const body = await response.json().catch(() => ({}));
  const detail = body.detail ?? body.error?.message;
  const { status } = response;
  if (!Array.isArray(detail)) return new ServerError(detail ?? `${status} ${response.statusText}`, status);
  const problems = detail.map(({ loc, msg }) => ({ field: String(loc.at(-1)), message: msg }));
  const text = problems.map((problem) => `${problem.field}: ${problem.message}`).join("; ");
  return new ServerError(text, status, problems);
}

// A header carries bytes, each given as one character; the server compares them with the key in UTF-8.
function authorization(value) {
  const bytes = String.fromCharCode(...new TextEncoder().encode(value));
  return value ? { Authorization: `Bearer ${bytes}` } : {};
}

function read(storage) {
  try {
    return globalThis[storage].getItem(STORED);
  } catch {
    return null;
  }
}

function write(storage) {
  try {
    if (key) globalThis[storage].setItem(STORED, key);
    else globalThis[storage].removeItem(STORED);
  } catch {
    // a browser that stores nothing asks again next time
  }
}
