// A form that sends one request of the API reference and shows the answer.

import { send, setKey } from "./api.js";
import { button, element } from "./dom.js";

// More text than this is not shown: some answers never end.
const MAX_CHARACTERS = 20_000;

let description = null;

// Shows the form of an operation, once.
export async function offer(operation) {
  if (operation.querySelector(".form")) return;
  description ??= fetch("openapi.json").then((response) => response.json());
  const api = await description;
  const [path, item] = Object.entries(api.paths).find(([, item]) => methodOf(item, operation.id));
  if (operation.querySelector(".form")) return;
  const form = new Form(api, path, methodOf(item, operation.id), item);
  operation.querySelector("pre").after(form.element);
  form.element.querySelector("input, textarea, button").focus();
}

function methodOf(item, id) {
  return Object.keys(item).find((method) => item[method].operationId === id);
}

class Form {
  element = element("form", "form");
  #path;
  #method;
  #inputs = [];
  #body = null;
  #files = false;
  #status = element("p", "quiet");
  #answer = element("div", "");
  #sending = null;

  constructor(api, path, method, item) {
    this.#path = path;
    this.#method = method.toUpperCase();
    const { parameters = [], requestBody, security = api.security } = item[method];
    const locked = security.length > 0 && security.every((schemes) => Object.keys(schemes).length > 0);
    // Left empty, the key that was given before is sent.
    if (locked) this.#add({ name: "API key", in: "key", type: "password" });
    for (const parameter of parameters) {
      const [value = ""] = parameter.required ? (parameter.schema.examples ?? []) : [];
      this.#add({ ...parameter, value });
    }
    for (const [mediaType, { schema, example }] of Object.entries(requestBody?.content ?? {})) {
      if (mediaType === "multipart/form-data") this.#addFields(api, schema, example);
      else this.#addBody(example);
    }
    this.#status.setAttribute("role", "status");
    const stop = button("plain", "Stop", () => this.#sending?.abort());
    const buttons = element("div", "buttons", Object.assign(element("button", "plain", "Send"), { type: "submit" }), stop);
    this.element.append(buttons, this.#status, this.#answer);
    this.element.addEventListener("submit", (event) => {
      event.preventDefault();
      this.#send();
    });
  }

  #add({ name, in: place, type = "text", value = "", required = false }) {
    const input = Object.assign(document.createElement("input"), { type, required });
    if (type !== "file") input.value = value;
    this.#inputs.push({ name, place, input });
    this.element.append(element("label", "", name, input));
  }

  #addBody(example) {
    this.#body = Object.assign(document.createElement("textarea"), { value: JSON.stringify(example, null, 2) });
    this.#body.spellcheck = false;
    this.element.append(element("label", "", "Body", this.#body));
  }

  #addFields(api, schema, example) {
    this.#files = true;
    const { properties, required = [] } = api.components.schemas[schema.$ref.split("/").at(-1)];
    for (const [name, field] of Object.entries(properties)) {
      const type = [field, ...(field.anyOf ?? [])].some(({ format }) => format === "binary") ? "file" : "text";
      this.#add({ name, in: "form", type, value: example[name] ?? "", required: required.includes(name) });
    }
  }

  async #send() {
    this.#sending?.abort();
    const sending = (this.#sending = new AbortController());
    this.#answer.replaceChildren();
    this.#status.textContent = "Waiting for the answer";
    try {
      const response = await send(...this.#request(sending.signal));
      const type = response.headers.get("Content-Type") ?? "";
      this.#status.textContent = [response.status, response.statusText, type].filter(Boolean).join(" ");
      if (response.ok && type.startsWith("audio/")) await this.#hear(response);
      else await this.#read(response, sending);
    } catch (error) {
      if (!sending.signal.aborted) this.#status.textContent = `No answer: ${error.message}`;
    }
  }

  #request(signal) {
    const query = new URLSearchParams();
    const headers = this.#body ? { "Content-Type": "application/json" } : {};
    const fields = new FormData();
    let path = this.#path.slice(1);
    for (const { name, place, input } of this.#inputs) {
      const value = input.type === "file" ? input.files[0] : input.value;
      if (place === "path") path = path.replace(`{${name}}`, encodeURIComponent(value));
      else if (!value) continue;
      else if (place === "key") setKey(value, false);
      else if (place === "query") query.set(name, value);
      else if (place === "header") headers[name] = value;
      else fields.append(name, value);
    }
    const url = query.size ? `${path}?${query}` : path;
    return [url, { method: this.#method, headers, body: this.#files ? fields : this.#body?.value, signal }];
  }

  async #hear(response) {
    const url = URL.createObjectURL(await response.blob());
    const player = Object.assign(document.createElement("audio"), { controls: true, src: url });
    this.#answer.replaceChildren(player);
  }

  async #read(response, sending) {
    const shown = element("pre", "");
    this.#answer.replaceChildren(shown);
    if (!response.body) return;
    const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
    while (shown.textContent.length < MAX_CHARACTERS) {
      const { done, value } = await reader.read();
      if (done) return;
      shown.textContent += value;
    }
    sending.abort();
  }
}
