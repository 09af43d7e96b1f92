// A dialogue as turns, each with a voice, and as the text with [SPEAKERn] tags that the server takes.

import { button, byId, element } from "./dom.js";
import { t } from "./i18n.js";

const TAG = /\[SPEAKER(\d{1,4})\]/;
// The server takes no more voices in one request.
const MAX_SPEAKERS = 64;

export const isDialogue = (text) => TAG.test(text);

// The turns of a text with tags: {speaker, text}. What stands before the first tag belongs to the first speaker.
export function turnsOf(text) {
  const [before, ...rest] = text.split(TAG);
  const turns = before.trim() ? [{ speaker: 0, text: before.trim() }] : [];
  for (let i = 0; i < rest.length; i += 2) {
    turns.push({ speaker: Math.min(Number(rest[i]), MAX_SPEAKERS - 1), text: rest[i + 1].trim() });
  }
  return turns;
}

// The text of turns {voice, text}, and the voices of its speakers.
export function tagged(turns) {
  const voices = [...new Set(turns.map((turn) => turn.voice))];
  const lines = turns.map((turn) => `[SPEAKER${voices.indexOf(turn.voice)}] ${turn.text.trim()}`);
  return { text: lines.join("\n"), voices };
}

export class Dialogue {
  #turns = byId("turns");
  #voices = [];
  #onChange;

  constructor(onChange) {
    this.#onChange = onChange;
    byId("add-turn").addEventListener("click", () => {
      const voices = this.turns.map((turn) => turn.voice);
      // A conversation alternates.
      const voice = voices.at(-2) ?? this.#voices.find(({ name }) => name !== voices.at(-1))?.name ?? voices.at(-1);
      this.#add({ voice, text: "" }).querySelector("textarea").focus();
      this.#changed();
    });
  }

  get turns() {
    return [...this.#turns.children].map((row) => ({
      voice: row.querySelector("select").value,
      text: row.querySelector("textarea").value,
    }));
  }

  set turns(turns) {
    this.#turns.replaceChildren();
    for (const turn of turns) this.#add(turn);
    this.#number();
  }

  set voices(voices) {
    this.#voices = voices.filter((voice) => voice.available);
    for (const select of this.#turns.querySelectorAll("select")) this.#offer(select, select.value);
  }

  // The first turn without words, or null.
  get blank() {
    return [...this.#turns.querySelectorAll("textarea")].find((field) => !field.value.trim()) ?? null;
  }

  translate() {
    this.#number();
  }

  #add({ voice, text }) {
    const select = document.createElement("select");
    const field = Object.assign(document.createElement("textarea"), { rows: 2, value: text, spellcheck: false });
    const row = element("li", "turn");
    const tools = element(
      "div",
      "turn-tools",
      button("icon up", "↑", () => this.#move(row, row.previousElementSibling, "up")),
      button("icon down", "↓", () => this.#move(row, row.nextElementSibling?.nextElementSibling ?? null, "down")),
      button("icon remove", "×", () => {
        const next = row.nextElementSibling ?? row.previousElementSibling;
        row.remove();
        (next?.querySelector("textarea") ?? byId("add-turn")).focus();
        this.#changed();
      }),
    );
    row.append(select, tools, field);
    this.#offer(select, voice);
    this.#turns.append(row);
    return row;
  }

  #move(row, before, side) {
    this.#turns.insertBefore(row, before);
    this.#changed();
    // At an end the button that moved it can do no more.
    const [own, other] = [side, side === "up" ? "down" : "up"].map((name) => row.querySelector(`.${name}`));
    (own.disabled ? other : own).focus();
  }

  #offer(select, chosen) {
    select.replaceChildren(...this.#voices.map(({ name, title }) => new Option(title, name)));
    // A voice that is gone stays chosen, so that the server says so.
    if (chosen && !this.#voices.some(({ name }) => name === chosen)) select.append(new Option(chosen, chosen));
    select.value = chosen || (this.#voices[0]?.name ?? "");
  }

  #changed() {
    this.#number();
    this.#onChange();
  }

  #number() {
    const rows = [...this.#turns.children];
    rows.forEach((row, i) => {
      const n = i + 1;
      row.querySelector("select").setAttribute("aria-label", t("turnVoice", { n }));
      row.querySelector("textarea").setAttribute("aria-label", t("turnText", { n }));
      for (const [name, word] of [["up", "turnUp"], ["down", "turnDown"], ["remove", "turnRemove"]]) {
        row.querySelector(`.${name}`).setAttribute("aria-label", t(word, { n }));
      }
      row.querySelector(".up").disabled = i === 0;
      row.querySelector(".down").disabled = i === rows.length - 1;
      row.querySelector(".remove").disabled = rows.length === 1;
    });
  }
}
