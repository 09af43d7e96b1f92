// The text to speak, as one text or as a dialogue: examples, files, the counter.

import { Dialogue, isDialogue, tagged, turnsOf } from "./dialogue.js";
import { button, byId, put } from "./dom.js";
import { readText } from "./files.js";
import { DIALOGUE, SAMPLES, language, t } from "./i18n.js";

export class Composer {
  limit = null;
  #field = byId("text");
  #voices;
  #dialogue;
  // The voices of the speakers of a dialogue that is shown as text.
  #kept = [];
  #onChange;

  // `voices`: those of the page. `onProblem` gets the word of why a file cannot be opened, null if one was opened.
  constructor(voices, onChange, onProblem) {
    this.#voices = voices;
    this.#onChange = onChange;
    this.#dialogue = new Dialogue(onChange);
    for (const input of document.querySelectorAll("[name=mode]")) {
      input.addEventListener("change", () => this.#switch(input.value));
    }
    byId("open").addEventListener("click", () => byId("file").click());
    const read = async (file) => {
      try {
        this.text = await readText(file);
        onProblem(null);
      } catch (error) {
        onProblem(error.message);
      }
    };
    byId("file").addEventListener("change", ({ target }) => {
      if (target.files[0]) read(target.files[0]);
      target.value = "";
    });
    const card = document.querySelector(".composer");
    card.addEventListener("dragover", (event) => event.dataTransfer.types.includes("Files") && event.preventDefault());
    card.addEventListener("drop", (event) => {
      const [file] = event.dataTransfer.files;
      if (!file) return;
      event.preventDefault();
      read(file);
    });
    this.#field.addEventListener("paste", () => {
      const { selectionStart, selectionEnd, value } = this.#field;
      if (selectionStart === 0 && selectionEnd === value.length) this.#kept = []; // another text
      setTimeout(() => this.isDialogue || this.#import());
    });
    this.#field.addEventListener("input", () => {
      if (!this.#field.value) this.#kept = [];
    });
  }

  get isDialogue() {
    return byId("dialogue").hidden === false;
  }

  // The text as it is sent, and the voices of its speakers; without any, the one that is chosen speaks.
  get script() {
    if (this.isDialogue) return tagged(this.#dialogue.turns);
    const text = this.#field.value;
    return isDialogue(text) ? tagged(this.#cast(text)) : { text, voices: [] };
  }

  // A text with tags becomes a dialogue.
  set text(text) {
    this.#kept = [];
    this.#mode("text");
    this.#field.value = text;
    this.#import();
    this.#onChange();
  }

  get state() {
    if (this.isDialogue) return { turns: this.#dialogue.turns };
    const text = this.#field.value;
    return this.#kept.length && isDialogue(text) ? { text, voices: this.#kept } : { text };
  }

  // Links are made by anybody.
  set state({ text, turns, voices }) {
    this.#kept = Array.isArray(voices) ? voices.map(String) : [];
    if (Array.isArray(turns)) {
      this.#dialogue.turns = turns.map((turn) => ({ voice: turn?.voice?.toString(), text: String(turn?.text ?? "") }));
      this.#mode("dialogue");
    } else {
      this.#field.value = text ?? "";
      this.#mode("text");
    }
  }

  // The words of the text, for titles.
  get title() {
    return this.isDialogue ? this.#dialogue.turns.map((turn) => turn.text.trim()).join(" – ") : this.#field.value.trim();
  }

  // Why the text cannot be sent, or null; and the control with the problem.
  refusal() {
    const { text } = this.script;
    const n = [...text].length;
    if (this.isDialogue && this.#dialogue.blank) return { word: "blankTurn", place: "text", control: this.#dialogue.blank };
    if (!text.trim()) return { word: "blank", place: "text", control: this.#field };
    const values = { n, limit: this.limit };
    return this.limit && n > this.limit ? { word: "tooLong", values, place: "text", control: this.control } : null;
  }

  // What gets the focus where the text is to be corrected.
  get control() {
    return this.isDialogue ? byId("turns").querySelector("textarea") : this.#field;
  }

  voicesChanged() {
    this.#dialogue.voices = this.#voices.list;
  }

  translate() {
    byId("samples").replaceChildren(
      ...Object.entries(SAMPLES[language]).map(([name, text]) => button("", name, () => this.#take(text))),
      button("", t("sampleDialogue"), () => this.#take(DIALOGUE[language])),
    );
    this.#dialogue.translate();
    this.showCount();
  }

  showCount() {
    const { text } = this.script;
    const n = [...text].length;
    const count = t(this.limit ? "ofLimit" : "characters", { n, limit: this.limit });
    put("count", text.trim() ? t("estimated", { count, time: duration(estimatedSeconds(text)) }) : count);
    byId("count").classList.toggle("over", Boolean(this.limit) && n > this.limit);
  }

  #take(text) {
    this.text = text;
    this.control.focus();
    this.#field.setSelectionRange(0, 0);
    this.#field.scrollTop = 0;
  }

  #import() {
    if (!isDialogue(this.#field.value)) return;
    this.#dialogue.turns = this.#cast(this.#field.value);
    this.#mode("dialogue");
    this.#onChange();
  }

  #switch(mode) {
    if (mode === "dialogue") {
      const text = this.#field.value;
      this.#dialogue.turns = isDialogue(text) ? this.#cast(text) : [{ voice: this.#voices.name, text }];
    } else {
      const { text, voices } = tagged(this.#dialogue.turns);
      this.#kept = voices;
      const isPlain = voices.length === 1 && voices[0] === this.#voices.name;
      this.#field.value = isPlain ? this.#dialogue.turns.map((turn) => turn.text.trim()).join("\n") : text;
    }
    this.#mode(mode);
    this.#onChange();
  }

  #mode(mode) {
    document.querySelector(`[name=mode][value=${mode}]`).checked = true;
    byId("dialogue").hidden = mode !== "dialogue";
    this.#field.hidden = mode === "dialogue";
  }

  // A speaker keeps a voice. Otherwise the first one has the chosen voice, the others those that follow in the list.
  #cast(text) {
    const names = this.#voices.list.filter((voice) => voice.available).map((voice) => voice.name);
    const from = Math.max(0, names.indexOf(this.#voices.name));
    return turnsOf(text).map(({ speaker, text: words }) => ({
      voice: this.#kept[speaker] ?? names[(from + speaker) % names.length] ?? "",
      text: words,
    }));
  }
}

// An average pace: a Chinese character or another syllable takes as long as three letters.
function estimatedSeconds(text) {
  const words = text.replaceAll(/\[SPEAKER\d+\]/g, "");
  const syllables = words.match(/[\p{scx=Han}\p{scx=Hangul}\p{scx=Hiragana}\p{scx=Katakana}]/gu)?.length ?? 0;
  return Math.max(1, Math.round(syllables / 4.5 + ([...words].length - syllables) / 15));
}

function duration(seconds) {
  if (seconds < 100) return t("seconds", { n: seconds });
  return t("minutes", { n: Math.round(seconds / 60) });
}
