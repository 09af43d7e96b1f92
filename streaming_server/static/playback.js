// Three ways from bytes to sound. Each has: start(headers), push(bytes), finish(), seek(seconds), setTempo(tempo),
// pause(paused), stop(), release(), and what the page shows. What was received can be played again from any place.

import { MediaPlayback, plays } from "./media_playback.js";
import { OggOpusDemuxer, join, packetSamples } from "./ogg.js";
import { Schedule } from "./schedule.js";
import { Stretch } from "./stretch.js";
import { sleep } from "./time.js";

const OPUS_RATE = 48000;
const OPUS_CONFIG = { codec: "opus", sampleRate: OPUS_RATE, numberOfChannels: 1 };
// Further ahead than this nothing is decoded: an hour of samples would not fit a phone's memory, its packets do.
const DECODE_AHEAD_S = 30;
// Decoded before a place that is sought, until the decoder has converged (RFC 7845, section 4.6).
const PRE_ROLL = 0.08 * OPUS_RATE;
const POLL_MS = 30;
const WEBM = 'audio/webm; codecs="opus"';

async function decodesOpus() {
  try {
    return (await AudioDecoder.isConfigSupported(OPUS_CONFIG)).supported;
  } catch {
    return false; // no AudioDecoder: an old browser, or a page from plain HTTP
  }
}

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

// Subclasses have: `receivedSamples`, `reset(sample)` to go on from a sample, `refill()`, and `drained`, whether all of
// what was received has been written.
class SamplePlayback {
  stopped = false;
  ending = false;
  #base = 0;
  #tempo = 1;
  #stretch = null;
  #over = false;
  #underruns = 0;
  #firstAt = null;

  // `onSamples` gets samples as they are decoded: (samples, rate, first), counted from the start of the speech.
  constructor(speaker, onSamples) {
    this.speaker = speaker;
    this.onSamples = onSamples;
  }

  open(rate) {
    this.rate = rate;
    this.#begin(0);
  }

  get receivedSeconds() {
    return this.rate ? this.receivedSamples / this.rate : 0;
  }

  get scheduledSamples() {
    return this.schedule ? this.#base + Math.round(this.schedule.scheduled * this.#tempo) : 0;
  }

  get playedSamples() {
    if (!this.schedule) return 0;
    return this.#over ? this.receivedSamples : this.#base + Math.round(this.schedule.played * this.#tempo);
  }

  get playedSeconds() {
    return this.rate ? Math.min(this.playedSamples, this.receivedSamples) / this.rate : 0;
  }

  get underruns() {
    return this.#underruns + (this.schedule?.underruns ?? 0);
  }

  get soundingMs() {
    return this.#firstAt ?? this.schedule?.soundingMs ?? null;
  }

  // `first`: the place of these samples in the speech.
  write(samples, first) {
    this.onSamples(samples, this.rate, first);
    const stretched = this.#stretch ? this.#stretch.push(samples) : samples;
    if (stretched.length) this.schedule.write(stretched);
  }

  pause(paused) {
    this.speaker.pause(paused);
  }

  seek(seconds) {
    this.stopped = false;
    this.#begin(Math.round(Math.max(0, Math.min(seconds, this.receivedSeconds)) * this.rate));
  }

  setTempo(tempo) {
    if (tempo === this.#tempo) return;
    const at = this.playedSeconds;
    this.#tempo = tempo;
    if (this.schedule && !this.#over && !this.stopped) this.seek(at);
  }

  // Resolves when the last sample has sounded; nothing more is pushed.
  async finish() {
    this.ending = true;
    let flushed = null;
    while (!this.stopped) {
      this.refill();
      if (this.drained && flushed !== this.schedule) {
        flushed = this.schedule;
        if (this.#stretch) this.schedule.write(this.#stretch.finish());
        this.schedule.flush();
      }
      if (flushed === this.schedule && this.schedule.idle) break;
      await sleep(POLL_MS);
    }
    if (this.stopped) return;
    this.#over = true;
    this.schedule.close();
    this.release();
  }

  stop() {
    this.stopped = true;
    this.schedule?.stop();
    this.release();
  }

  release() {}

  #begin(sample) {
    this.#firstAt ??= this.schedule?.soundingMs ?? null;
    this.#underruns = this.underruns;
    if (this.schedule && !this.#over) this.schedule.stop();
    this.#over = false;
    this.#base = sample;
    this.#stretch = this.#tempo === 1 ? null : new Stretch(this.rate, this.#tempo);
    this.schedule = new Schedule(this.speaker, this.rate, () => this.refill());
    this.reset(sample);
    this.refill();
  }
}

class OggPlayback extends SamplePlayback {
  drained = false;
  #demuxer = new OggOpusDemuxer();
  // Each {data, start}: `start` counts decoded samples, of which the first `preSkip` are no part of the speech.
  #packets = [];
  #packetsEnd = 0;
  #next = 0;
  #decoder = null;
  #decoded = 0;
  #from = 0;
  #flushing = false;
  #failure = null;

  // The decoder starts while the request is under way.
  constructor(...all) {
    super(...all);
    this.open(OPUS_RATE);
  }

  get receivedSamples() {
    return this.#demuxer.samples;
  }

  start() {}

  push(bytes) {
    if (this.#failure) throw this.#failure;
    for (const data of this.#demuxer.push(bytes)) {
      this.#packets.push({ data, start: this.#packetsEnd });
      this.#packetsEnd += packetSamples(data);
    }
    this.refill();
  }

  reset(sample) {
    this.release();
    this.drained = this.#flushing = false;
    this.#from = sample;
    const place = sample ? this.#demuxer.preSkip + sample - PRE_ROLL : 0;
    const after = this.#packets.findIndex(({ start }) => start > place);
    this.#next = Math.max(0, (after < 0 ? this.#packets.length : after) - 1);
    this.#decoded = this.#packets[this.#next]?.start ?? 0;
    const decoder = new AudioDecoder({
      output: (data) => (this.#decoder === decoder ? this.#take(data) : data.close()),
      error: (error) => (this.#failure = error),
    });
    // Without a description browsers hand out every decoded sample, so that what is cut off is decided here alone.
    decoder.configure(OPUS_CONFIG);
    this.#decoder = decoder;
  }

  refill() {
    const decoder = this.#decoder;
    if (decoder?.state !== "configured" || this.#flushing) return;
    const limit = this.#demuxer.preSkip + this.playedSamples + DECODE_AHEAD_S * OPUS_RATE;
    for (; this.#next < this.#packets.length && this.#packets[this.#next].start < limit; this.#next++) {
      const { data, start } = this.#packets[this.#next];
      decoder.decode(new EncodedAudioChunk({ type: "key", timestamp: (start / OPUS_RATE) * 1e6, data }));
    }
    if (!this.ending || this.#next < this.#packets.length) return;
    this.#flushing = true;
    decoder.flush().then(() => (this.drained ||= decoder === this.#decoder), () => {}); // rejected when it is closed
  }

  release() {
    if (this.#decoder && this.#decoder.state !== "closed") this.#decoder.close();
    this.#decoder = null;
  }

  #take(data) {
    const samples = new Float32Array(data.numberOfFrames);
    data.copyTo(samples, { planeIndex: 0, format: "f32-planar" });
    data.close();
    const { preSkip, ended, samples: length } = this.#demuxer;
    const from = Math.max(0, preSkip + this.#from - this.#decoded);
    const to = ended ? Math.min(samples.length, preSkip + length - this.#decoded) : samples.length;
    const first = this.#decoded + from - preSkip;
    this.#decoded += samples.length;
    if (to > from && !this.stopped) this.write(samples.subarray(from, to), first);
  }
}

class PcmPlayback extends SamplePlayback {
  receivedSamples = 0;
  #pieces = [];
  #odd = new Uint8Array(0);
  #next = 0;
  #skip = 0;

  start(headers) {
    this.open(Number(headers.get("X-Sample-Rate")));
  }

  get drained() {
    return this.#next === this.#pieces.length;
  }

  push(bytes) {
    const whole = join([this.#odd, bytes]);
    const count = whole.length >> 1;
    this.#odd = whole.slice(count * 2);
    if (count) this.#pieces.push({ view: new DataView(whole.buffer, 0, count * 2), start: this.receivedSamples, count });
    this.receivedSamples += count;
    this.refill();
  }

  reset(sample) {
    const found = this.#pieces.findIndex(({ start, count }) => start + count > sample);
    this.#next = found < 0 ? this.#pieces.length : found;
    this.#skip = found < 0 ? 0 : sample - this.#pieces[found].start;
  }

  refill() {
    while (this.#next < this.#pieces.length && this.scheduledSamples - this.playedSamples < DECODE_AHEAD_S * this.rate) {
      const { view, start, count } = this.#pieces[this.#next++];
      const samples = new Float32Array(count - this.#skip);
      for (let i = 0; i < samples.length; i++) samples[i] = view.getInt16((i + this.#skip) * 2, true) / 32768;
      const first = start + this.#skip;
      this.#skip = 0;
      this.write(samples, first);
    }
  }
}
