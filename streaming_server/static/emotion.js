// How something is said: one emotion, a mixture, a description or a recording, and how strongly.

import { button, byId, element, put } from "./dom.js";
import { language, t } from "./i18n.js";

// In the order of the server's vector.
const EMOTIONS = ["happy", "angry", "sad", "afraid", "disgusted", "melancholic", "surprised", "calm"];

export class Emotion {
  #capabilities = {};
  #sliders = new Map();
  // A recording that was asked for before the recordings were known.
  #wanted = "";
  #onChange;

  constructor(onChange) {
    this.#onChange = onChange;
    for (const name of EMOTIONS) {
      const input = Object.assign(document.createElement("input"), { type: "range", min: 0, max: 1, step: 0.05, value: 0 });
      input.addEventListener("input", () => this.#only("vector"));
      const label = element("label", "", element("span", "", ""), input);
      this.#sliders.set(name, { input, label });
      byId("emotion-sliders").append(label);
    }
    byId("emotion-text").addEventListener("input", () => this.#only("text"));
    byId("emotion-audio").addEventListener("input", () => this.#only("audio"));
  }

  // The fields of a request.
  get fields() {
    const weight = Number(byId("strength").value);
    const strength = weight === 1 ? {} : { emo_weight: weight };
    const text = byId("emotion-text").value.trim();
    if (this.#has("text") && text) return { emo_text: text, ...strength };
    if (this.#has("reference") && this.#audio) return { emo_audio: this.#audio, ...strength };
    const vector = this.#vector;
    return this.#has("vector") && vector.some(Boolean) ? { emo_vector: vector, ...strength } : {};
  }

  set fields({ emo_text: text = "", emo_vector: vector = [], emo_audio: audio = "", emo_weight: weight = 1 }) {
    const numbers = Array.isArray(vector) ? vector : []; // links are made by anybody
    byId("emotion-text").value = text;
    byId("emotion-audio").value = this.#wanted = audio;
    byId("strength").value = weight;
    EMOTIONS.forEach((name, i) => (this.#sliders.get(name).input.value = numbers[i] ?? 0));
    this.show();
  }

  // Shows what the engine honours. `recordings`: voices whose emotion can be taken.
  follow(capabilities, recordings) {
    this.#capabilities = capabilities;
    const chosen = this.#audio || this.#wanted;
    this.#wanted = "";
    byId("emotion-audio").replaceChildren(
      new Option("–", ""),
      ...recordings.map(({ name, title }) => new Option(title, name)),
    );
    byId("emotion-audio").value = chosen;
    byId("emotion").hidden = !capabilities.emotion_control;
    byId("emotion-text-row").hidden = !this.#has("text");
    byId("emotion-chips").hidden = byId("emotion-sliders").hidden = !this.#has("vector");
    byId("emotion-audio-row").hidden = !this.#has("reference") || !recordings.length;
    byId("emotion-more").hidden = !this.#has("vector") && byId("emotion-audio-row").hidden;
    this.show();
  }

  translate() {
    for (const [name, { label }] of this.#sliders) label.firstChild.textContent = t(`emotion_${name}`);
    byId("emotion-chips").replaceChildren(
      ...EMOTIONS.map((name) => {
        const chip = button("", t(`emotion_${name}`), () => {
          const on = chip.getAttribute("aria-pressed") === "true";
          for (const each of EMOTIONS) this.#sliders.get(each).input.value = each === name && !on ? 1 : 0;
          this.#only("vector");
          this.#onChange();
        });
        chip.dataset.emotion = name;
        return chip;
      }),
    );
    this.show();
  }

  show() {
    const fields = this.fields;
    const [only, ...others] = EMOTIONS.filter((_, i) => fields.emo_vector?.[i]);
    for (const chip of byId("emotion-chips").children) {
      const on = others.length === 0 && chip.dataset.emotion === only;
      chip.setAttribute("aria-pressed", String(on));
    }
    const strength = Number(byId("strength").value).toLocaleString(language, { style: "percent" });
    byId("strength").disabled = !Object.keys(fields).length;
    byId("strength").setAttribute("aria-valuetext", strength);
    put("strength-text", strength);
    const name = only ? (others.length ? t("emotionMixed") : t(`emotion_${only}`)) : "";
    put("emotion-now", name || fields.emo_text || (fields.emo_audio ? t("emotionAudio") : ""));
  }

  get #audio() {
    return byId("emotion-audio").value;
  }

  get #vector() {
    return EMOTIONS.map((name) => Number(this.#sliders.get(name).input.value));
  }

  #has(kind) {
    return this.#capabilities[`emotion_${kind}`] === true;
  }

  // The server takes one source: the one that was touched last.
  #only(kind) {
    if (kind !== "text") byId("emotion-text").value = "";
    if (kind !== "audio") byId("emotion-audio").value = "";
    if (kind !== "vector") for (const { input } of this.#sliders.values()) input.value = 0;
    this.show();
  }
}
