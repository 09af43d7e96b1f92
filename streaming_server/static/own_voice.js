// A voice of the user's own: a file or a recording, trimmed, named, and uploaded to be cloned.

import { refusal, send } from "./api.js";
import { byId, put } from "./dom.js";
import { language, t } from "./i18n.js";
import { wavHeader } from "./session.js";

const RATE = 24000;
const MAX_S = 30;
const SUGGESTED_S = 15;
const SHORTEST_S = 1;

export class OwnVoices {
  #dialog = byId("own-dialog");
  #samples = null;
  #recorder = null;
  // Whether the browser is asking for the microphone.
  #asking = false;
  #sound = null;
  #problem = null;
  #onAdded;

  // `onListen` is called before a recording is heard; `onAdded` with the name and the id of a new voice.
  constructor(onListen, onAdded) {
    this.#onAdded = onAdded;
    byId("own-file").addEventListener("change", ({ target }) => target.files[0] && this.#take(target.files[0]));
    byId("own-record").hidden = !navigator.mediaDevices;
    byId("own-record").addEventListener("click", () => (this.#recorder ? this.#recorder.stop() : this.#record()));
    byId("own-listen").addEventListener("click", () => {
      onListen();
      this.#listen();
    });
    for (const id of ["own-start", "own-end"]) byId(id).addEventListener("input", () => this.#showTrim(id));
    byId("own-form").addEventListener("submit", (event) => {
      event.preventDefault();
      this.#upload();
    });
    byId("own-close").addEventListener("click", () => this.#dialog.close());
    this.#dialog.addEventListener("close", () => this.#reset());
  }

  // Deletes a voice on the server, unless it is gone already.
  async remove(name) {
    const response = await send(`v1/audio/voices/${encodeURIComponent(name)}`, { method: "DELETE" });
    if (!response.ok && response.status !== 404) throw await refusal(response);
  }

  open() {
    this.#reset();
    this.#dialog.showModal();
  }

  translate() {
    this.#show();
  }

  async #take(file) {
    this.#say(null);
    try {
      const context = new OfflineAudioContext(1, 1, RATE);
      const decoded = await context.decodeAudioData(await file.arrayBuffer());
      if (decoded.duration < SHORTEST_S) throw new RangeError();
      this.#samples = mono(decoded);
      for (const id of ["own-start", "own-end"]) {
        Object.assign(byId(id), { min: 0, max: decoded.duration, step: 0.1, value: 0 });
      }
      byId("own-end").value = Math.min(decoded.duration, SUGGESTED_S);
      if (!byId("own-name").value) byId("own-name").value = suggested(file.name);
    } catch (error) {
      this.#samples = null;
      this.#say(error instanceof RangeError ? "ownShort" : "ownUnreadable");
    }
    this.#show();
  }

  async #record() {
    if (this.#asking) return;
    this.#asking = true;
    this.#say(null);
    let microphone;
    try {
      microphone = await navigator.mediaDevices.getUserMedia({ audio: true });
    } catch {
      this.#say("ownNoMicrophone");
      return;
    } finally {
      this.#asking = false;
    }
    if (!this.#dialog.open) {
      stop(microphone);
      return;
    }
    const pieces = [];
    const recorder = (this.#recorder = new MediaRecorder(microphone));
    const limit = setTimeout(() => recorder.stop(), MAX_S * 1000);
    recorder.addEventListener("dataavailable", ({ data }) => pieces.push(data));
    recorder.addEventListener("stop", async () => {
      clearTimeout(limit);
      stop(microphone);
      this.#recorder = null;
      if (this.#dialog.open) await this.#take(new Blob(pieces, { type: recorder.mimeType }));
    });
    recorder.start();
    this.#show();
  }

  get #trimmed() {
    const [from, to] = ["own-start", "own-end"].map((id) => Math.round(Number(byId(id).value) * RATE));
    const samples = Int16Array.from(this.#samples.subarray(from, to), (x) => Math.max(-1, Math.min(1, x)) * 32767);
    return new Blob([wavHeader(RATE, samples.byteLength), samples], { type: "audio/wav" });
  }

  #listen() {
    this.#quiet();
    this.#sound = new Audio(URL.createObjectURL(this.#trimmed));
    this.#sound.play().catch(() => {});
  }

  #quiet() {
    if (!this.#sound) return;
    this.#sound.pause();
    URL.revokeObjectURL(this.#sound.src);
    this.#sound = null;
  }

  async #upload() {
    const name = byId("own-name").value.trim();
    if (!this.#samples) this.#say("ownMissing");
    else if (!name) this.#say("ownNameless", {}, "own-name");
    else if (name.includes(",")) this.#say("ownComma", {}, "own-name");
    else if (!byId("own-consent").checked) this.#say("ownConsentNeeded", {}, "own-consent");
    else {
      byId("own-use").disabled = true;
      try {
        const form = new FormData();
        form.append("name", name);
        form.append("consent", t("ownConsent"));
        form.append("audio_sample", this.#trimmed, "voice.wav");
        const response = await send("v1/audio/voices", { method: "POST", body: form });
        if (!response.ok) throw await refusal(response);
        const { id } = await response.json();
        this.#dialog.close();
        this.#onAdded([name, id]);
      } catch (error) {
        this.#say(error.status ? "refused" : "unreachable", { message: error.message });
      } finally {
        byId("own-use").disabled = false;
      }
    }
  }

  #reset() {
    if (this.#recorder?.state === "recording") this.#recorder.stop();
    this.#quiet();
    this.#samples = null;
    byId("own-form").reset();
    this.#say(null);
    this.#show();
  }

  #say(word, values = {}, control = null) {
    this.#problem = word && { word, values };
    put("own-error", word ? t(word, values) : "");
    if (control) byId(control).focus();
  }

  // The ends stay a second apart, and no further than the longest recording.
  #showTrim(moved) {
    const [start, end] = ["own-start", "own-end"].map((id) => byId(id));
    const [from, to] = [Number(start.value), Number(end.value)];
    if (moved === "own-start") {
      end.value = Math.max(from + SHORTEST_S, Math.min(to, from + MAX_S));
      start.value = Math.min(from, Number(end.value) - SHORTEST_S);
    } else {
      start.value = Math.min(to - SHORTEST_S, Math.max(from, to - MAX_S));
      end.value = Math.max(to, Number(start.value) + SHORTEST_S);
    }
    this.#show();
  }

  #show() {
    put("own-record", t(this.#recorder ? "ownStop" : "ownRecord"));
    byId("own-trim").hidden = !this.#samples;
    for (const id of ["own-start", "own-end"]) {
      const seconds = Number(byId(id).value).toLocaleString(language, { maximumFractionDigits: 1 });
      put(`${id}-text`, t("seconds", { n: seconds }));
      byId(id).setAttribute("aria-valuetext", t("seconds", { n: seconds }));
    }
    if (this.#problem) put("own-error", t(this.#problem.word, this.#problem.values));
  }
}

// The name of a voice after a file, which may not have one. Requests separate names of voices by commas.
function suggested(fileName = "") {
  return fileName.replace(/\.\w+$/, "").replaceAll(/[,\p{Cc}]+\s*/gu, " ").trim().slice(0, 60);
}

function stop(microphone) {
  for (const track of microphone.getTracks()) track.stop();
}

function mono(buffer) {
  const mixed = buffer.getChannelData(0).slice();
  for (let channel = 1; channel < buffer.numberOfChannels; channel++) {
    buffer.getChannelData(channel).forEach((sample, i) => (mixed[i] += sample));
  }
  return mixed.map((sample) => sample / buffer.numberOfChannels);
}
