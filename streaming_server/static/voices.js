// The list of voices, each with its recording to listen to.

import { refusal, send } from "./api.js";
import { t } from "./i18n.js";

export class Voices {
  #list;
  #audio = new Audio();
  #playing = null;
  #count = 0;
  #onListen;

  // `onListen` is called before a recording is played.
  constructor(list, onListen) {
    this.#list = list;
    this.#onListen = onListen;
    this.#audio.addEventListener("ended", () => this.#show(null));
  }

  get index() {
    return Number(this.#list.querySelector("input:checked")?.value ?? 0);
  }

  get count() {
    return this.#count;
  }

  fill(recordings) {
    this.#count = recordings.length;
    this.#list.replaceChildren(...recordings.map((recording) => this.#row(recording)));
    const first = this.#list.querySelector("input:not(:disabled)");
    if (first) first.checked = true;
    this.translate();
  }

  quiet() {
    this.#audio.pause();
    this.#show(null);
  }

  translate() {
    for (const button of this.#list.querySelectorAll("button")) {
      const playing = button.classList.contains("on");
      button.setAttribute("aria-label", t(playing ? "pause" : "listen", { name: button.dataset.name }));
    }
  }

  #row({ index, filename, exists }) {
    const row = document.createElement("li");
    const name = filename.replace(/\.\w+$/, "").replaceAll("_", " ");
    const label = document.createElement("label");
    const choice = Object.assign(document.createElement("input"), { type: "radio", name: "voice", value: index });
    const number = Object.assign(document.createElement("span"), { className: "number", textContent: index });
    const title = Object.assign(document.createElement("span"), { className: "name", textContent: name });
    choice.disabled = !exists;
    if (!exists) label.title = t("missing");
    label.append(choice, number, title);
    const button = Object.assign(document.createElement("button"), { type: "button", className: "listen" });
    button.disabled = !exists;
    button.dataset.name = name;
    button.addEventListener("click", () => this.#toggle(button, index));
    row.append(label, button);
    return row;
  }

  async #toggle(button, index) {
    const playing = button === this.#playing;
    this.quiet();
    if (playing) return;
    this.#onListen();
    this.#show(button);
    try {
      const response = await send(`download_reference_audio/${index}`);
      if (!response.ok) throw await refusal(response);
      const recording = await response.blob();
      if (button !== this.#playing) return;
      // A media element cannot send a key, so it gets the bytes.
      URL.revokeObjectURL(this.#audio.src);
      this.#audio.src = URL.createObjectURL(recording);
      await this.#audio.play();
    } catch {
      if (button === this.#playing) this.#show(null);
    }
  }

  #show(button) {
    this.#playing?.classList.remove("on");
    button?.classList.add("on");
    this.#playing = button;
    this.translate();
  }
}
