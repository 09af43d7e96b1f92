// What plays: the current session, its waveform to seek in, volume, tempo, and the keys of headsets and lock screens.

import { byId, recall, remember } from "./dom.js";
import { language, t } from "./i18n.js";
import { Session } from "./session.js";
import { Speaker } from "./speaker.js";
import { clock } from "./time.js";
import { Waveform } from "./waveform.js";

const TEMPOS = [0.5, 0.75, 1, 1.25, 1.5, 1.75, 2];
const STEP_S = 5;
const TITLE_CHARACTERS = 80;
const STORED_VOLUME = "player-volume";

export class Transport {
  session = null;
  speaker = new Speaker();
  waveform = new Waveform(byId("wave"));
  #onShow;
  #onVolume;
  #onReplay;

  // `onShow` is called at every change and, while something plays, for every frame; `onVolume` with a new volume;
  // `onReplay` before what has ended is played again.
  constructor(onShow, onVolume, onReplay) {
    this.#onShow = onShow;
    this.#onReplay = onReplay;
    this.#onVolume = onVolume;
    byId("tempo").append(...TEMPOS.map((tempo) => new Option("", tempo)));
    byId("tempo").value = 1;
    byId("tempo").addEventListener("change", () => this.session?.playback.setTempo(this.tempo));
    byId("volume").value = recall(STORED_VOLUME) ?? 1;
    byId("volume").addEventListener("input", () => this.#setVolume());
    byId("wave").addEventListener("pointerdown", (event) => this.#grab(event));
    byId("wave").addEventListener("keydown", (event) => this.#key(event));
    this.#setVolume();
    this.#setMediaSession();
  }

  get tempo() {
    return Number(byId("tempo").value);
  }

  get running() {
    return this.session?.running ?? false;
  }

  // Starts the sound device, which may take long, when a click on Play is likely. No page may do so before it is used.
  prepare(rate) {
    const { context } = this.speaker;
    const other = context !== null && context.sampleRate !== rate;
    if (this.running || other || navigator.userActivation?.hasBeenActive !== true) return;
    this.speaker.wake(rate);
    this.speaker.rest();
  }

  // Plays a stream as it arrives. Has to be called in the handler of a click or key. Resolves at its end.
  async begin({ method, stream, rate, title, onComplete, clicked }) {
    this.session?.close();
    this.speaker.wake(rate);
    this.waveform.clear();
    if (navigator.mediaSession) {
      navigator.mediaSession.metadata = new MediaMetadata({ title: title.slice(0, TITLE_CHARACTERS) });
    }
    const draw = (...decoded) => this.waveform.add(...decoded);
    const session = new Session(method, stream, this.speaker, draw, () => onComplete(session), clicked);
    session.playback.setTempo(this.tempo);
    this.session = session;
    await this.#follow(session.run());
  }

  stop() {
    if (!this.running) return;
    this.session.stop();
    this.speaker.rest();
    this.#onShow();
  }

  // Pauses, resumes, or plays again what has ended. False if there is nothing to do so with.
  toggle() {
    if (this.session?.phase === "playing") return this.pause(!this.session.paused);
    return this.replay();
  }

  pause(paused) {
    if (this.session?.phase !== "playing") return false;
    this.session.pause(paused);
    this.#onShow();
    return true;
  }

  replay() {
    if (!this.session?.playable || this.running) return false;
    this.seek(0);
    return true;
  }

  seek(second) {
    const { session } = this;
    if (!session?.playable) return;
    if (session.running) {
      session.seek(second);
      this.#onShow();
      return;
    }
    this.#onReplay();
    this.speaker.wake(session.playback.rate);
    session.playback.setTempo(this.tempo);
    this.#follow(session.seek(second));
  }

  translate() {
    for (const option of byId("tempo").options) {
      option.textContent = `${Number(option.value).toLocaleString(language)}×`;
    }
    this.show();
  }

  show() {
    const { session } = this;
    const played = session?.playback.playedSeconds ?? 0;
    const received = session?.playback.receivedSeconds ?? 0;
    if (session) {
      if (this.running && session.method.name === "mediasource") {
        this.waveform.addLevel(played, this.speaker.level / Math.max(this.speaker.volume, 0.05));
      }
      Object.assign(this.waveform, { played, received });
      this.waveform.draw();
    }
    const slider = byId("wave");
    for (const [name, value] of [["valuemax", Math.round(received)], ["valuenow", Math.round(played)]]) {
      if (slider.getAttribute(`aria-${name}`) === String(value)) continue;
      slider.setAttribute(`aria-${name}`, value);
      slider.setAttribute("aria-valuetext", t("positionOf", { at: clock(played), all: clock(received) }));
    }
    slider.classList.toggle("seekable", session?.playable ?? false);
  }

  async #follow(running) {
    const { session } = this;
    const frame = () => {
      if (this.session !== session) return;
      this.#onShow();
      if (session.running) requestAnimationFrame(frame);
    };
    frame();
    await running;
    if (this.session !== session || session.running) return;
    this.speaker.rest();
    this.#onShow();
  }

  #setVolume() {
    const volume = Number(byId("volume").value);
    this.speaker.volume = volume;
    this.session?.playback.setVolume?.(volume);
    this.#onVolume(volume);
    remember(STORED_VOLUME, volume);
    byId("volume").setAttribute("aria-valuetext", volume.toLocaleString(language, { style: "percent" }));
  }

  #grab(event) {
    if (event.button || !this.session?.playable) return;
    const slider = byId("wave");
    const to = ({ clientX }) => {
      const { left, width } = slider.getBoundingClientRect();
      this.seek(Math.max(0, Math.min(1, (clientX - left) / width)) * this.waveform.shownSeconds);
    };
    slider.setPointerCapture(event.pointerId);
    slider.addEventListener("pointerup", to, { once: true });
  }

  #key(event) {
    const { playback } = this.session ?? {};
    if (!playback || event.ctrlKey || event.metaKey || event.altKey) return;
    const at = playback.playedSeconds;
    const places = {
      ArrowLeft: at - STEP_S,
      ArrowDown: at - STEP_S,
      ArrowRight: at + STEP_S,
      ArrowUp: at + STEP_S,
      Home: 0,
      End: playback.receivedSeconds,
    };
    if (!(event.key in places)) return;
    event.preventDefault();
    this.seek(places[event.key]);
  }

  #setMediaSession() {
    const media = navigator.mediaSession;
    const handlers = {
      play: () => this.pause(false) || this.replay(),
      pause: () => this.pause(true),
      stop: () => this.stop(),
      seekbackward: () => this.seek((this.session?.playback.playedSeconds ?? 0) - STEP_S),
      seekforward: () => this.seek((this.session?.playback.playedSeconds ?? 0) + STEP_S),
    };
    for (const [name, handler] of Object.entries(handlers)) media?.setActionHandler(name, handler);
  }
}
