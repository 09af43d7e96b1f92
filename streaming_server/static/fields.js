// The generation fields of a request. The server alone checks the values.

import { HINTS, language } from "./i18n.js";

// `needs`: the capability of the engine without which a field has no effect. `whole`: whether it takes integers alone.
const SAMPLING = "generation_parameters";
const FIELDS = [
  { name: "speed", range: "0.25 – 4", initial: 1 },
  { name: "stream_granularity", needs: "token_streaming", choices: ["token", "sentence"], initial: "token" },
  { name: "temperature", needs: SAMPLING, range: "> 0", initial: 1.2 },
  { name: "top_p", needs: SAMPLING, range: "0 – 1", initial: 0.95 },
  { name: "top_k", needs: SAMPLING, range: "≥ 0", whole: true, initial: 30 },
  { name: "num_beams", needs: SAMPLING, range: "1 – 10", whole: true, initial: 3 },
  { name: "repetition_penalty", needs: SAMPLING, range: "> 0", initial: 10 },
  { name: "length_penalty", needs: SAMPLING, initial: 0 },
  { name: "max_text_tokens_per_sentence", needs: SAMPLING, range: "≥ 1", whole: true, initial: 120 },
  { name: "max_mel_tokens", needs: SAMPLING, range: "≥ 1", whole: true, initial: 600 },
  { name: "seed", needs: "seed", range: "−2⁶³ – 2⁶³−1", whole: true, initial: null },
  { name: "opus_complexity", range: "0 – 10", whole: true, initial: 10, opus: true },
  { name: "do_sample", needs: SAMPLING, initial: true },
  { name: "verbose", initial: false },
];

// What is valid, by name.
export const RANGES = Object.fromEntries(FIELDS.map(({ name, range = "", whole = false }) => [name, { range, whole }]));

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

  // Shows the fields that have an effect on this engine, in this format.
  follow(capabilities, opus) {
    for (const { name, needs, opus: onlyOpus } of FIELDS) {
      const effective = (!needs || capabilities[needs] === true) && (opus || !onlyOpus);
      this.row(name).hidden = !effective;
    }
  }

  row(name) {
    return this.#controls.get(name).parentElement;
  }

  // Those that differ from the server's defaults, as a request's JSON has them.
  get values() {
    const changed = {};
    for (const { name, initial } of FIELDS) {
      const value = read(this.#controls.get(name), initial);
      if (value !== initial && !this.row(name).hidden) changed[name] = value;
    }
    return changed;
  }

  // Names that are not fields are ignored.
  set values(values) {
    for (const { name, initial } of FIELDS) {
      const value = values[name] ?? initial;
      const control = this.#controls.get(name);
      if (control.type === "checkbox") control.checked = value === true;
      else control.value = value ?? "";
    }
    this.mark(null);
  }

  reset() {
    this.values = {};
  }

  // Marks the field that the server refused, or none; the control, if there is one.
  mark(name) {
    for (const [each, control] of this.#controls) control.setAttribute("aria-invalid", each === name);
    return this.#controls.get(name) ?? null;
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
