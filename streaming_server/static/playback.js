// Three ways from bytes to sound. Each has: start(headers), push(bytes), finish(), pause(paused), stop(), and what the page shows.

import { OggOpusDemuxer, join, packetSamples } from "./ogg.js";
import { Schedule } from "./schedule.js";

const OPUS_RATE = 48000;
const OPUS_CONFIG = { codec: "opus", sampleRate: OPUS_RATE, numberOfChannels: 1 };
// Further ahead than this nothing is decoded: an hour of samples would not fit a phone's memory, its packets do.
const DECODE_AHEAD_S = 30;
const APPEND_AHEAD_S = 60;
const WEBM = 'audio/webm; codecs="opus"';
const MediaSourceKind = globalThis.ManagedMediaSource ?? globalThis.MediaSource;

async function decodesOpus() {
  try {
    return (await AudioDecoder.isConfigSupported(OPUS_CONFIG)).supported;
  } catch {
    return false; // no AudioDecoder: an old browser, or a page from plain HTTP
  }
}

const plays = (type) => MediaSourceKind?.isTypeSupported(type) ?? false;

// What this browser can play while it arrives, the best first.
export const methods = [
  { name: "webcodecs", format: "ogg", usable: await decodesOpus(), create: (...all) => new OggPlayback(...all) },
  { name: "mediasource", format: "webm", usable: plays(WEBM), create: (...all) => new MediaPlayback(WEBM, ...all) },
  { name: "pcm", format: "pcm", usable: true, create: (...all) => new PcmPlayback(...all) },
  {
    name: "mediasource",
    format: "mp3",
    usable: plays("audio/mpeg"),
    create: (...all) => new MediaPlayback("audio/mpeg", ...all),
  },
].filter((method) => method.usable);

class SamplePlayback {
  constructor(speaker, onSamples) {
    this.speaker = speaker;
    this.onSamples = onSamples;
  }

  open(rate) {
    this.rate = rate;
    this.schedule = new Schedule(this.speaker, rate, () => this.refill());
  }

  get scheduledSamples() {
    return this.schedule?.scheduled ?? 0;
  }

  get playedSamples() {
    return this.schedule?.played ?? 0;
  }

  get playedSeconds() {
    return this.schedule ? this.schedule.played / this.rate : 0;
  }

  get underruns() {
    return this.schedule?.underruns ?? 0;
  }

  get soundingMs() {
    return this.schedule?.soundingMs ?? null;
  }

  write(samples) {
    this.onSamples(samples, this.rate);
    this.schedule.write(samples);
  }

  pause(paused) {
    this.speaker.pause(paused);
  }

  stop() {
    this.stopped = true;
    this.schedule?.stop();
  }
}

class OggPlayback extends SamplePlayback {
  #demuxer = new OggOpusDemuxer();
  #packets = [];
  #decoder;
  #submitted = 0;
  #decoded = 0;
  #failure = null;

  constructor(speaker, onSamples) {
    super(speaker, onSamples);
    // Without a description browsers hand out every decoded sample, so that what is cut off is decided here alone.
    this.#decoder = new AudioDecoder({ output: (data) => this.#take(data), error: (error) => (this.#failure = error) });
    this.#decoder.configure(OPUS_CONFIG);
  }

  get receivedSeconds() {
    return this.#demuxer.samples / OPUS_RATE;
  }

  start() {
    this.open(OPUS_RATE);
  }

  push(bytes) {
    if (this.#failure) throw this.#failure;
    this.#packets.push(...this.#demuxer.push(bytes));
    this.refill();
  }

  refill() {
    while (this.#packets.length && this.#submitted - this.playedSamples < DECODE_AHEAD_S * OPUS_RATE) {
      const data = this.#packets.shift();
      const timestamp = (this.#submitted / OPUS_RATE) * 1e6;
      this.#submitted += packetSamples(data);
      this.#decoder.decode(new EncodedAudioChunk({ type: "key", timestamp, data }));
    }
  }

  async finish() {
    while (this.#packets.length && !this.stopped) await new Promise((resolve) => setTimeout(resolve, 100));
    if (this.stopped) return;
    await this.#decoder.flush();
    this.#decoder.close();
    await this.schedule.finish();
  }

  stop() {
    super.stop();
    if (this.#decoder.state !== "closed") this.#decoder.close();
  }

  #take(data) {
    const samples = new Float32Array(data.numberOfFrames);
    data.copyTo(samples, { planeIndex: 0, format: "f32-planar" });
    data.close();
    const { preSkip, ended, samples: length } = this.#demuxer;
    const from = Math.max(0, preSkip - this.#decoded);
    const to = ended ? Math.min(samples.length, preSkip + length - this.#decoded) : samples.length;
    this.#decoded += samples.length;
    if (to > from && !this.stopped) this.write(samples.subarray(from, to));
  }
}

class PcmPlayback extends SamplePlayback {
  #pieces = [];
  #odd = new Uint8Array(0);
  #received = 0;

  get receivedSeconds() {
    return this.rate ? this.#received / this.rate : 0;
  }

  start(headers) {
    this.open(Number(headers.get("X-Sample-Rate")));
  }

  push(bytes) {
    const whole = join([this.#odd, bytes]);
    const count = whole.length >> 1;
    this.#odd = whole.slice(count * 2);
    if (count) this.#pieces.push(new DataView(whole.buffer, 0, count * 2));
    this.#received += count;
    this.refill();
  }

  refill() {
    while (this.#pieces.length && this.schedule.ahead < DECODE_AHEAD_S) {
      const piece = this.#pieces.shift();
      const samples = new Float32Array(piece.byteLength / 2);
      for (let i = 0; i < samples.length; i++) samples[i] = piece.getInt16(i * 2, true) / 32768;
      this.write(samples);
    }
  }

  async finish() {
    while (this.#pieces.length && !this.stopped) await new Promise((resolve) => setTimeout(resolve, 100));
    if (!this.stopped) await this.schedule.finish();
  }
}

class MediaPlayback {
  underruns = 0;
  #element = new Audio();
  #media = new MediaSourceKind();
  #buffer = null;
  #pieces = [];
  #ending = false;
  #began = null;
  #over;

  constructor(type, speaker) {
    const element = this.#element;
    this.#over = new Promise((resolve, reject) => {
      element.addEventListener("ended", resolve);
      element.addEventListener("emptied", resolve);
      element.addEventListener("error", () => reject(new Error(element.error.message)));
    });
    this.#over.catch(() => {}); // it is looked at when the stream has ended
    element.disableRemotePlayback = true; // ManagedMediaSource asks for it
    element.src = URL.createObjectURL(this.#media);
    // WebKit, the only one with a managed source, lets no sound of a media source through an AudioContext.
    if (!globalThis.ManagedMediaSource) speaker.context.createMediaElementSource(element).connect(speaker.analyser);
    this.#media.addEventListener("sourceopen", () => {
      URL.revokeObjectURL(element.src);
      this.#buffer = this.#media.addSourceBuffer(type);
      this.#buffer.addEventListener("updateend", () => this.#append());
      this.#append();
    }, { once: true });
    element.addEventListener("playing", () => (this.#began ??= performance.now()));
    element.addEventListener("waiting", () => (this.underruns += this.#began !== null && !this.#ending ? 1 : 0));
    element.addEventListener("timeupdate", () => this.#append());
    element.play().catch(() => {}); // rejected by stop() alone, or with the element's error
  }

  get rate() {
    return OPUS_RATE;
  }

  get receivedSeconds() {
    return this.#bufferedTo();
  }

  get playedSeconds() {
    return this.#element.currentTime;
  }

  get scheduledSamples() {
    return Math.round(this.#bufferedTo() * OPUS_RATE);
  }

  get playedSamples() {
    return Math.round(this.playedSeconds * OPUS_RATE);
  }

  get soundingMs() {
    return this.#began === null ? null : performance.now() - this.#began;
  }

  start() {}

  push(bytes) {
    if (this.#element.error) throw new Error(this.#element.error.message);
    this.#pieces.push(bytes);
    this.#append();
  }

  async finish() {
    this.#ending = true;
    this.#append();
    await this.#over;
  }

  pause(paused) {
    if (paused) this.#element.pause();
    else this.#element.play().catch(() => {});
  }

  stop() {
    this.#element.pause();
    this.#element.removeAttribute("src");
    this.#element.load();
  }

  #bufferedTo() {
    const { buffered } = this.#element;
    return buffered.length ? buffered.end(buffered.length - 1) : 0;
  }

  #append() {
    if (!this.#buffer || this.#buffer.updating || this.#media.readyState !== "open") return;
    if (this.#pieces.length && this.#bufferedTo() - this.#element.currentTime < APPEND_AHEAD_S) {
      const bytes = join(this.#pieces);
      this.#pieces = [];
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
