// Sound through a media source: the browser's own player decodes and buffers.

import { join } from "./ogg.js";
import { sleep } from "./time.js";

const RATE = 48000;
const APPEND_AHEAD_S = 60;
// A browser's buffer for audio is limited, in Chromium to 12 MB; more than that at once is never accepted.
const MAX_APPEND_BYTES = 1_000_000;
const POLL_MS = 30;
const MediaSourceKind = globalThis.ManagedMediaSource ?? globalThis.MediaSource;

export const plays = (type) => MediaSourceKind?.isTypeSupported(type) ?? false;

export class MediaPlayback {
  underruns = 0;
  stopped = false;
  #speaker;
  #element = new Audio();
  #media = new MediaSourceKind();
  #url = URL.createObjectURL(this.#media);
  #node = null;
  #buffer = null;
  #pieces = [];
  #ending = false;
  #began = null;

  constructor(type, speaker) {
    const element = this.#element;
    this.#speaker = speaker;
    element.disableRemotePlayback = true; // ManagedMediaSource asks for it
    element.src = this.#url;
    // WebKit, the only one with a managed source, lets no sound of a media source through an AudioContext.
    if (!globalThis.ManagedMediaSource) {
      this.#node = speaker.context.createMediaElementSource(element);
      this.#node.connect(speaker.input);
    }
    this.#media.addEventListener("sourceopen", () => {
      URL.revokeObjectURL(this.#url);
      this.#buffer = this.#media.addSourceBuffer(type);
      this.#buffer.addEventListener("updateend", () => this.#append());
      this.#append();
    }, { once: true });
    element.addEventListener("playing", () => (this.#began ??= performance.now()));
    element.addEventListener("waiting", () => (this.underruns += this.#began !== null && !this.#ending ? 1 : 0));
    element.addEventListener("timeupdate", () => this.#append());
    this.#play();
  }

  get rate() {
    return RATE;
  }

  get receivedSeconds() {
    const { buffered } = this.#element;
    return buffered.length ? buffered.end(buffered.length - 1) : 0;
  }

  get playedSeconds() {
    return this.#element.currentTime;
  }

  get scheduledSamples() {
    return Math.round(this.receivedSeconds * RATE);
  }

  get playedSamples() {
    return Math.round(this.playedSeconds * RATE);
  }

  get soundingMs() {
    return this.#began === null ? null : performance.now() - this.#began;
  }

  start() {}

  push(bytes) {
    this.#check();
    for (let at = 0; at < bytes.length; at += MAX_APPEND_BYTES) {
      this.#pieces.push(bytes.subarray(at, at + MAX_APPEND_BYTES));
    }
    this.#append();
  }

  async finish() {
    this.#ending = true;
    this.#append();
    while (!this.stopped && !this.#element.ended) {
      this.#check();
      await sleep(POLL_MS);
    }
  }

  seek(seconds, paused) {
    const { buffered } = this.#element;
    const first = buffered.length ? buffered.start(0) : 0;
    this.stopped = false;
    this.#element.currentTime = Math.max(first, Math.min(seconds, this.receivedSeconds));
    if (!paused) this.#play();
  }

  setTempo(tempo) {
    this.#element.playbackRate = this.#element.defaultPlaybackRate = tempo;
  }

  // What goes through the AudioContext gets its volume there.
  setVolume(volume) {
    if (globalThis.ManagedMediaSource) this.#element.volume = volume;
  }

  pause(paused) {
    if (paused) this.#element.pause();
    else this.#play();
  }

  stop() {
    this.stopped = true;
    this.#element.pause();
  }

  // A source node keeps its element, and the element keeps the buffered audio.
  release() {
    this.#node?.disconnect();
    this.#pieces = [];
    this.#element.removeAttribute("src");
    this.#element.load();
    URL.revokeObjectURL(this.#url);
  }

  #play() {
    this.setVolume(this.#speaker.volume);
    this.#element.play().catch(() => {}); // rejected by a pause, or with the element's error
  }

  #check() {
    if (this.#element.error) throw new Error(this.#element.error.message);
  }

  // The pieces that come next, joined as far as they may be appended at once.
  #take() {
    let size = 0;
    const after = this.#pieces.findIndex(({ length }) => (size += length) > MAX_APPEND_BYTES);
    return join(this.#pieces.splice(0, after < 0 ? this.#pieces.length : after));
  }

  #append() {
    if (!this.#buffer || this.#buffer.updating || this.#media.readyState !== "open") return;
    if (this.#pieces.length && this.receivedSeconds - this.#element.currentTime < APPEND_AHEAD_S) {
      const bytes = this.#take();
      try {
        this.#buffer.appendBuffer(bytes);
      } catch (error) {
        if (error.name !== "QuotaExceededError") throw error;
        this.#pieces.unshift(bytes);
        if (this.#element.currentTime > 1) this.#buffer.remove(0, this.#element.currentTime - 1);
      }
    } else if (this.#ending && !this.#pieces.length) {
      this.#media.endOfStream();
    }
  }
}
