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
  // All that was received, in pieces that may be appended at once, and the index of the next one.
  #pieces = [];
  #next = 0;
  // The first and the last second that were ever buffered, and the duration as the server tells it.
  #first = null;
  #last = 0;
  #total = 0;
  // The end of what was appended since the last rewinding.
  #end = 0;
  // A place that is sought and not appended yet.
  #target = null;
  #rewinding = false;
  // Whether buffered audio is being removed.
  #evicting = false;
  #paused = false;
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
      this.#buffer.addEventListener("updateend", () => {
        this.#first ??= element.buffered.length ? element.buffered.start(0) : null;
        this.#end = Math.max(this.#end, this.#bufferedEnd);
        this.#last = Math.max(this.#last, this.#end);
        if (this.#evicting && this.#target !== null) this.#rewinding ||= this.#isGone(this.#target);
        this.#evicting = false;
        this.#append();
      });
      this.#append();
    }, { once: true });
    element.addEventListener("playing", () => (this.#began ??= performance.now()));
    element.addEventListener("waiting", () => {
      if (this.#began !== null && !this.#ending && !element.seeking && this.#target === null) this.underruns++;
    });
    element.addEventListener("timeupdate", () => this.#append());
    this.#play();
  }

  get rate() {
    return RATE;
  }

  get receivedSeconds() {
    return Math.max(this.#total, this.#last);
  }

  // Whether more has arrived than `receivedSeconds` tells.
  get isBehind() {
    return !this.#total && this.#next < this.#pieces.length;
  }

  get playedSeconds() {
    return this.#target ?? this.#element.currentTime;
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
    while (!this.stopped && !(this.#element.ended && this.#target === null)) {
      this.#check();
      await sleep(POLL_MS);
    }
  }

  seek(seconds, paused) {
    const place = Math.max(this.#first ?? 0, Math.min(seconds, this.receivedSeconds));
    this.stopped = false;
    this.#paused = Boolean(paused);
    this.#target = place;
    this.#rewinding ||= this.#isGone(place);
    this.#append();
    if (this.#target !== null) this.#element.pause();
  }

  setTempo(tempo) {
    this.#element.playbackRate = this.#element.defaultPlaybackRate = tempo;
  }

  // The duration of all that arrives, which is appended later.
  setTotal(seconds) {
    this.#total = seconds;
  }

  // What goes through the AudioContext gets its volume there.
  setVolume(volume) {
    if (globalThis.ManagedMediaSource) this.#element.volume = volume;
  }

  pause(paused) {
    this.#paused = paused;
    if (paused) this.#element.pause();
    else if (this.#target === null) this.#play();
  }

  stop() {
    this.stopped = this.#paused = true;
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

  get #bufferedEnd() {
    const { buffered } = this.#element;
    return buffered.length ? buffered.end(buffered.length - 1) : 0;
  }

  #holds(second) {
    const { buffered } = this.#element;
    return [...Array(buffered.length).keys()].some((i) => buffered.start(i) <= second && second <= buffered.end(i));
  }

  // Whether a second was appended and is no longer buffered: it has to be appended again.
  #isGone(second) {
    return second < this.#end && !this.#holds(second);
  }

  #arrive(second) {
    this.#target = null;
    this.#element.currentTime = second;
    if (!this.#paused) this.#play();
  }

  // The pieces that come next, as far as they may be appended at once.
  #take() {
    let size = 0;
    const after = this.#pieces.findIndex(({ length }, i) => i >= this.#next && (size += length) > MAX_APPEND_BYTES);
    return this.#pieces.slice(this.#next, after < 0 ? this.#pieces.length : after);
  }

  #append() {
    const buffer = this.#buffer;
    const isStable = !this.#rewinding && !this.#evicting;
    if (this.#target !== null && isStable && this.#holds(this.#target)) this.#arrive(this.#target);
    if (!buffer || buffer.updating || this.#media.readyState === "closed") return;
    const place = this.playedSeconds;
    if (this.#rewinding) {
      this.#rewinding = false;
      this.#next = this.#end = 0;
      this.#evicting = true;
      buffer.remove(0, Infinity);
    } else if (this.#next < this.#pieces.length && this.#bufferedEnd - place < APPEND_AHEAD_S) {
      const pieces = this.#take();
      try {
        if (this.#next === 0 && this.#last > 0) {
          buffer.abort(); // resets the parser
          buffer.timestampOffset = 0;
        }
        buffer.appendBuffer(join(pieces));
        this.#next += pieces.length;
      } catch (error) {
        if (error.name !== "QuotaExceededError") throw error;
        if (this.#element.buffered.start(0) >= place - 1) return;
        this.#evicting = true;
        buffer.remove(0, place - 1);
      }
    } else if (this.#next === this.#pieces.length) {
      if (this.#target !== null) this.#arrive(this.#bufferedEnd); // a little before what the server told
      if (this.#ending && this.#media.readyState === "open") this.#media.endOfStream();
    }
  }
}
