// The voices: names, languages, genders, a filter, and something to listen to of each.

import { json, refusal, send } from "./api.js";
import { button, byId, element, put } from "./dom.js";
import { PageError } from "./errors.js";
import { SAMPLES, language, t } from "./i18n.js";
import { OwnVoices } from "./own_voice.js";

// Fewer are seen at a glance.
const FILTERED_FROM = 9;

export class Voices {
  list = [];
  #rows = byId("voices");
  #audio = new Audio();
  #playing = null;
  #preview = null;
  #clones = false;
  #onListen;
  #onChange;
  #onProblem;
  #own;

  // `onListen` is called before a voice is heard, `onChange` when another is chosen, `onProblem` with an error and,
  // if there is something to retry, what does so.
  constructor(onListen, onChange, onProblem) {
    this.#onListen = onListen;
    this.#onChange = onChange;
    this.#onProblem = onProblem;
    this.#own = new OwnVoices(onListen, async (names) => {
      await this.#reload();
      // It is listed under one of them.
      for (const name of names) this.name = name;
      onChange();
    });
    byId("own-voice").addEventListener("click", () => this.#own.open());
    this.#audio.addEventListener("ended", () => this.#show(null));
    for (const name of ["voice-search", "voice-language", "voice-gender"]) {
      byId(name).addEventListener("input", () => this.#filter());
    }
    // The radio that is chosen may be hidden, and Tab then passes the others.
    byId("voice-search").addEventListener("keydown", (event) => {
      if (event.isComposing || event.ctrlKey || event.metaKey || !["Enter", "ArrowDown"].includes(event.key)) return;
      event.preventDefault();
      this.#rows.querySelector("li:not([hidden]) input:not(:disabled)")?.focus();
    });
    this.#rows.addEventListener("change", () => {
      this.#showName();
      onChange();
    });
  }

  // The API name of the voice that is chosen.
  get name() {
    return this.#rows.querySelector("input:checked")?.value ?? "";
  }

  set name(name) {
    const input = this.#input(name);
    if (!input || input.disabled) return;
    input.checked = true;
    // Only the list is scrolled, not the page.
    this.#rows.scrollTop += input.getBoundingClientRect().top - this.#rows.getBoundingClientRect().top - 60;
    this.#showName();
  }

  get count() {
    return this.list.length;
  }

  set volume(value) {
    this.#audio.volume = value;
  }

  title(name) {
    return this.list.find((voice) => voice.name === name)?.title ?? name;
  }

  // `clones`: whether the engine speaks as in a recording, so that the recording tells how it will sound.
  async load(clones) {
    const { voices } = await json("player/voices");
    const chosen = this.name;
    this.#clones = clones;
    this.list = voices;
    byId("own-voice").hidden = !clones;
    this.#rows.replaceChildren(...this.list.map((voice) => this.#row(voice)));
    const first = this.#input(chosen) ?? this.#rows.querySelector("input:not(:disabled)");
    if (first) first.checked = true;
    byId("voice-filter").hidden = this.list.length < FILTERED_FROM;
    this.translate();
  }

  // Without an answer the list stays as it is.
  async #reload() {
    await this.load(this.#clones).catch(() => {});
  }

  quiet() {
    this.#preview?.abort();
    this.#audio.pause();
    this.#show(null);
  }

  translate() {
    for (const voice of this.list) {
      const row = this.#input(voice.name).closest("li");
      row.querySelector(".about").textContent = about(voice);
      if (!voice.available) row.title = t("missing");
    }
    const languages = [...new Set(this.list.flatMap((voice) => voice.languages))].sort();
    options("voice-language", t("anyLanguage"), languages.map((code) => [code, languageName(code)]));
    const genders = [...new Set(this.list.map((voice) => voice.gender).filter(Boolean))].sort();
    options("voice-gender", t("anyGender"), genders.map((gender) => [gender, t(gender)]));
    this.#own.translate();
    this.#label();
    this.#filter();
    this.#showName();
  }

  #input(name) {
    return [...this.#rows.querySelectorAll("input")].find((input) => input.value === name);
  }

  #row(voice) {
    const choice = Object.assign(document.createElement("input"), { type: "radio", name: "voice", value: voice.name });
    choice.disabled = !voice.available;
    const about = element("span", "about quiet");
    const label = element("label", "", choice, element("span", "name", voice.title), about);
    const listen = Object.assign(element("button", "listen"), { type: "button", disabled: !voice.available });
    listen.addEventListener("click", () => this.#toggle(listen, voice));
    return element("li", "", label, listen, ...(voice.kind === "upload" ? [this.#remover(voice)] : []));
  }

  #remover(voice) {
    return button("icon remove", "×", async () => {
      await this.#own.remove(voice.name).catch((error) => this.#onProblem(error));
      await this.#reload();
      byId("own-voice").focus();
      this.#onChange();
    });
  }

  #filter() {
    const words = byId("voice-search").value.trim().toLocaleLowerCase();
    const code = byId("voice-language").value;
    const gender = byId("voice-gender").value;
    let shown = 0;
    for (const voice of this.list) {
      const row = this.#input(voice.name).closest("li");
      const text = `${voice.title} ${voice.name} ${about(voice)}`.toLocaleLowerCase();
      const fits = text.includes(words) && (!code || voice.languages.includes(code)) && (!gender || voice.gender === gender);
      row.hidden = !fits;
      shown += fits ? 1 : 0;
    }
    byId("no-voices").hidden = shown > 0 || !this.list.length;
  }

  #showName() {
    put("voice-name", this.name || "–");
  }

  async #toggle(button, voice) {
    const playing = button === this.#playing;
    this.quiet();
    if (playing) return;
    this.#onListen();
    this.#show(button);
    const { signal } = (this.#preview = new AbortController());
    try {
      const response = await this.#sound(voice, signal);
      if (!response.ok) throw await refusal(response);
      const recording = await response.blob();
      if (signal.aborted) return;
      // A media element cannot send a key, so it gets the bytes.
      URL.revokeObjectURL(this.#audio.src);
      this.#audio.src = URL.createObjectURL(recording);
      await this.#audio.play();
    } catch (error) {
      if (signal.aborted) return;
      this.#show(null);
      if (error.name === "NotAllowedError") return; // the browser wants another click
      const cannotPlay = error instanceof DOMException;
      this.#onProblem(cannotPlay ? new PageError("voiceFailed", "voice") : error, () => this.#toggle(button, voice));
    }
  }

  // The recording where the engine clones it, else a sentence in the voice.
  #sound(voice, signal) {
    if (this.#clones && voice.index !== null) return send(`download_reference_audio/${voice.index}`, { signal });
    const text = SAMPLES[language === "zh" && voice.languages.includes("zh") ? "zh" : "en"];
    return send("player/speech", {
      method: "POST",
      signal,
      headers: { "Content-Type": "application/json" },
      body: JSON.stringify({ text: Object.values(text)[0], voice: voice.name, format: "mp3" }),
    });
  }

  #show(button) {
    this.#playing?.classList.remove("on");
    button?.classList.add("on");
    this.#playing = button;
    this.#label();
  }

  #label() {
    for (const voice of this.list) {
      const listen = this.#input(voice.name).closest("li").querySelector(".listen");
      const playing = listen.classList.contains("on");
      listen.setAttribute("aria-label", t(playing ? "pause" : "listen", { name: voice.title }));
      listen.parentElement.querySelector(".remove")?.setAttribute("aria-label", t("ownRemove", { name: voice.title }));
    }
  }
}

function about({ kind, languages, gender }) {
  return [kind === "upload" ? t("own") : "", languages.map(languageName).join(", "), gender ? t(gender) : ""].filter(Boolean).join(" · ");
}

function languageName(code) {
  try {
    return new Intl.DisplayNames([language], { type: "language" }).of(code);
  } catch {
    return code;
  }
}

function options(id, all, choices) {
  const select = byId(id);
  const chosen = select.value;
  select.replaceChildren(new Option(all, ""), ...choices.map(([value, text]) => new Option(text, value)));
  select.value = choices.some(([value]) => value === chosen) ? chosen : "";
  select.hidden = choices.length < 2;
}
