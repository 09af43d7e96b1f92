// The generation fields as the server knows them. It alone judges the values: its sentence is better than a browser's.

import { HINTS, language } from "./i18n.js";

const FIELDS = [
  { name: "stream_granularity", choices: ["token", "sentence"], initial: "token" },
  { name: "temperature", range: "> 0", initial: 1.2 },
  { name: "top_p", range: "0 – 1", initial: 0.95 },
  { name: "top_k", range: "≥ 0", initial: 30 },
  { name: "num_beams", range: "1 – 10", initial: 3 },
  { name: "repetition_penalty", range: "> 0", initial: 10 },
  { name: "length_penalty", initial: 0 },
  { name: "max_text_tokens_per_sentence", range: "≥ 1", initial: 120 },
  { name: "max_mel_tokens", range: "≥ 1", initial: 600 },
  { name: "seed", initial: null },
  { name: "opus_complexity", range: "0 – 10", initial: 10, opus: true },
  { name: "do_sample", initial: true },
  { name: "verbose", initial: false },
];

export class Fields {
  #controls = new Map();

  constructor(container) {
    for (const field of FIELDS) {
      const { row, control } = fieldRow(field);
      this.#controls.set(field.name, control);
      container.append(row);
    }
    this.translate();
    this.reset();
  }

  // Those that differ from the server's defaults, as a request's JSON has them.
  values(opus) {
    const changed = {};
    for (const { name, initial, opus: onlyOpus } of FIELDS) {
      const value = read(this.#controls.get(name), initial);
      if (value !== initial && (opus || !onlyOpus)) changed[name] = value;
    }
    return changed;
  }

  reset() {
    for (const { name, initial } of FIELDS) {
      const control = this.#controls.get(name);
      if (control.type === "checkbox") control.checked = initial;
      else control.value = initial ?? "";
    }
    this.mark([]);
  }

  // Show which ones the server refused; the first of them, or null.
  mark(names) {
    for (const [name, control] of this.#controls) control.setAttribute("aria-invalid", names.includes(name));
    return this.#controls.get(names.find((name) => this.#controls.has(name))) ?? null;
  }

  translate() {
    for (const { name } of FIELDS) document.getElementById(`hint-${name}`).textContent = HINTS[language][name];
  }
}

function fieldRow({ name, range = "", choices, initial }) {
  const row = document.createElement("div");
  const flag = typeof initial === "boolean";
  row.className = flag ? "field flag" : "field";
  const control = document.createElement(choices ? "select" : "input");
  if (flag) control.type = "checkbox";
  else if (choices) control.append(...choices.map((choice) => new Option(choice, choice)));
  else Object.assign(control, { type: "number", step: "any", placeholder: "–" });
  control.id = control.name = name;
  control.setAttribute("aria-describedby", `hint-${name}`);
  const label = Object.assign(document.createElement("label"), { htmlFor: name, textContent: name });
  const limits = Object.assign(document.createElement("span"), { className: "range", textContent: range });
  const hint = Object.assign(document.createElement("small"), { id: `hint-${name}` });
  row.append(label, limits, control, hint);
  return { row, control };
}

function read(control, initial) {
  if (control.type === "checkbox") return control.checked;
  if (control.tagName === "SELECT") return control.value;
  return control.value === "" ? initial : Number(control.value);
}
