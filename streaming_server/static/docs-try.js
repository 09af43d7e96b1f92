// One request: as a curl line, and sent from here. Knows OpenAPI's parameters and bodies, and no route of this server.

import { element } from "./docs-fields.js";

const quoted = (value) => `'${value.replaceAll("'", `'\\''`)}'`;
const EXTENSIONS = { mpeg: "mp3", "octet-stream": "pcm", "*": "audio" };
const extension = (type) => EXTENSIONS[type.split("/")[1]] ?? type.split("/")[1];
const key = () => document.getElementById("key").value;

// Where a request goes, with the values of its parameters.
function target({ path }, values) {
  const query = new URLSearchParams();
  let filled = path;
  for (const { parameter, value } of values) {
    if (parameter.in === "path") filled = filled.replace(`{${parameter.name}}`, encodeURIComponent(value || parameter.name.toUpperCase()));
    if (parameter.in === "query" && value) query.set(parameter.name, value);
  }
  const search = query.size ? `?${query}` : "";
  return new URL(`.${filled}${search}`, location.href).href;
}

function headersOf(values, mediaType) {
  const named = values.filter(({ parameter, value }) => parameter.in === "header" && value);
  const headers = Object.fromEntries(named.map(({ parameter, value }) => [parameter.name, value]));
  return mediaType ? { "Content-Type": mediaType, ...headers } : headers;
}

function multipart(schema, example) {
  return Object.entries(schema?.properties ?? {})
    .filter(([name, field]) => name in example || field.format === "binary")
    .map(([name, field]) => `-F ${quoted(field.format === "binary" ? `${name}=@FILE` : `${name}=${example[name]}`)}`);
}

export function curlLine(api, operation, values, body) {
  const content = Object.entries(operation.requestBody?.content ?? {})[0];
  const isForm = content?.[0] === "multipart/form-data";
  const needsKey = !(operation.security ?? api.security).some((scheme) => !Object.keys(scheme).length);
  const isOpen = operation.security?.length === 0;
  const parts = ["curl"];
  if (!["GET", "POST"].includes(operation.method) || (operation.method === "POST" && !content)) parts.push(`-X ${operation.method}`);
  parts.push(quoted(target(operation, values)));
  if (needsKey && !isOpen) parts.push('-H "Authorization: Bearer $API_KEY"');
  for (const [name, value] of Object.entries(headersOf(values, isForm ? null : content?.[0]))) parts.push(`-H ${quoted(`${name}: ${value}`)}`);
  if (isForm) parts.push(...multipart(api.components.schemas[content[1].schema.$ref?.split("/").pop()], content[1].example ?? {}));
  else if (content) parts.push(`-d ${quoted(body)}`);
  const types = Object.keys(Object.entries(operation.responses).find(([status]) => status < 300)?.[1].content ?? {});
  const file = types.find((type) => type.startsWith("audio/") || type === "application/octet-stream");
  if (file) parts.push(`-o answer.${extension(file)}`);
  if (types.every((type) => type === "text/event-stream") && types.length) parts.push("-N");
  return parts.join(" ");
}

async function showText(response, outcome, isJson) {
  const shown = element("pre", { tabIndex: 0 });
  outcome.append(shown);
  if (isJson) {
    shown.textContent = JSON.stringify(await response.json(), null, 2);
    return;
  }
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  for (let part = await reader.read(); !part.done; part = await reader.read()) {
    shown.textContent = (shown.textContent + part.value).slice(-20000);
    shown.scrollTop = shown.scrollHeight;
  }
}

async function showFile(response, outcome, type) {
  const blob = await response.blob();
  const href = URL.createObjectURL(blob);
  if (type.startsWith("audio/") && type !== "audio/pcm") outcome.append(element("audio", { controls: true, src: href }));
  outcome.append(element("p", {}, element("a", { href, download: `answer.${extension(type)}` }, `Save ${blob.size} bytes`)));
}

async function show(response, outcome, beganMs) {
  const type = (response.headers.get("content-type") ?? "").split(";")[0];
  outcome.append(
    element("p", {}, element("strong", {}, `${response.status} ${response.statusText}`), ` after ${Math.round(performance.now() - beganMs)} ms`),
    element("pre", { tabIndex: 0 }, [...response.headers].map(([name, value]) => `${name}: ${value}`).join("\n")),
  );
  if (type === "application/json" || type.startsWith("text/")) await showText(response, outcome, type === "application/json");
  else if (type) await showFile(response, outcome, type);
}

function inputsOf(operation, changed) {
  const fields = (operation.parameters ?? []).map((parameter) => {
    const id = `${operation.operationId}-${parameter.name}`;
    const example = parameter.schema.examples?.[0] ?? "";
    const placeholder = parameter.schema.default === undefined || parameter.schema.default === null ? "" : String(parameter.schema.default);
    const input = element("input", { id, value: String(example), placeholder, required: parameter.required, oninput: changed, autocomplete: "off" });
    return { parameter, input, label: element("label", { htmlFor: id }, element("code", {}, parameter.name)) };
  });
  return { fields, values: () => fields.map(({ parameter, input }) => ({ parameter, value: input.value })) };
}

export function tryIt(api, operation) {
  const content = Object.entries(operation.requestBody?.content ?? {})[0];
  const curl = element("code", {});
  const changed = () => { curl.textContent = curlLine(api, operation, values(), body?.value); };
  const example = content ? JSON.stringify(content[1].example, null, 2) : "";
  const body = content && element("textarea", {
    value: example, rows: example.split("\n").length + 1, spellcheck: false, oninput: changed, ariaLabel: "Body",
  });
  const { fields, values } = inputsOf(operation, changed);
  const outcome = element("div", { className: "outcome", role: "status" });
  const copy = element("button", { type: "button" }, "Copy");
  copy.onclick = async () => {
    const selection = getSelection();
    selection.selectAllChildren(curl);
    // The clipboard's own interface is missing on plain-HTTP addresses other than this machine's.
    const done = navigator.clipboard ? await navigator.clipboard.writeText(curl.textContent).then(() => true, () => false) : document.execCommand("copy");
    copy.textContent = done ? "Copied" : "Selected";
  };
  const send = element("button", { type: "submit", className: "main" }, "Send");
  const stop = element("button", { type: "button", disabled: true }, "Stop");
  let controller;
  stop.onclick = () => controller.abort();
  const form = element(
    "form",
    {},
    fields.length && element("div", { className: "inputs" }, ...fields.flatMap(({ label, input }) => [label, input])),
    body,
    element("div", { className: "buttons" }, send, stop),
    outcome,
  );
  form.onsubmit = async (event) => {
    event.preventDefault();
    controller = new AbortController();
    send.disabled = true;
    stop.disabled = false;
    outcome.replaceChildren("Waiting for the answer …");
    const headers = headersOf(values(), content?.[0]);
    if (key()) headers["X-API-Key"] = key();
    const beganMs = performance.now();
    try {
      const response = await fetch(target(operation, values()), { method: operation.method, headers, body: body?.value, signal: controller.signal });
      outcome.replaceChildren();
      await show(response, outcome, beganMs);
    } catch (error) {
      outcome.append(element("p", {}, error.name === "AbortError" ? "Stopped." : `No answer: ${error.message}`));
    } finally {
      send.disabled = false;
      stop.disabled = true;
    }
  };
  changed();
  const canSend = !content || content[0] === "application/json";
  return [
    element("h3", {}, "Try it"),
    canSend && form,
    element("h3", {}, "With curl"),
    element("pre", {}, curl),
    element("div", { className: "buttons" }, copy),
  ];
}
