// Samples laid end to end on the clock of an AudioContext. Everything is counted in whole samples: sums of seconds would
// round, and a rounded start is a click.

// Decoders hand out packets of at most 20 ms one by one. The first ones are laid down together, so that the next are
// decoded while they sound; a stream that brings less at first is not kept waiting for more.
const FIRST_GATHERED_S = 0.06;
const FIRST_WAIT_MS = 10;
// Between now and the first sample: the device takes samples in blocks, and a start within the current one is too late.
const LEAST_LEAD_S = 0.02;
const FIRST_LEAD_S = 0.04;
const MOST_LEAD_S = 1;
// Behind this much, samples are gathered into larger buffers: thousands of waiting nodes cost a phone its battery. It is
// more than the second between two timers of a page in the background.
const GATHER_BEYOND_S = 2;
const GATHERED_S = 0.5;
const FADE_S = 0.015;

export class Schedule {
  underruns = 0;
  scheduled = 0;
  #speaker;
  #rate;
  #gain;
  #sources = new Set();
  #waiting = [];
  #waitingSamples = 0;
  #lead;
  // Since the last interruption: where on the clock it began, and with which sample.
  #run = null;
  #timer;
  #beginning = null;

  // `refill` is called regularly, to bring more where `ahead` has become small.
  constructor(speaker, rate, refill = () => {}) {
    this.#speaker = speaker;
    this.#rate = rate;
    const blocks = 2 * (speaker.context.baseLatency || 0);
    this.#lead = Math.min(FIRST_LEAD_S, Math.max(LEAST_LEAD_S, blocks));
    this.#gain = speaker.context.createGain();
    this.#gain.connect(speaker.input);
    this.#timer = setInterval(() => {
      refill();
      this.#layDown();
    }, 100);
  }

  // Seconds that are certain to sound without another sample.
  get ahead() {
    return (this.scheduled - this.played) / this.#rate;
  }

  get played() {
    if (!this.#run) return 0;
    const since = Math.floor(this.#speaker.context.currentTime * this.#rate) - this.#run.start;
    return Math.min(this.scheduled, this.#run.offset + Math.max(0, since));
  }

  // How long ago the first sample sounded, in milliseconds; null before.
  get soundingMs() {
    if (this.firstAt === undefined) return null;
    const since = this.#speaker.context.currentTime - this.firstAt;
    return since < 0 ? null : since * 1000;
  }

  write(samples) {
    this.#waiting.push(samples);
    this.#waitingSamples += samples.length;
    this.#layDown();
  }

  // Whether all that was written has sounded.
  get idle() {
    return !this.#sources.size && !this.#waitingSamples;
  }

  // Nothing follows what was written: no more is gathered.
  flush() {
    this.#layDown(true);
  }

  close() {
    clearInterval(this.#timer);
    clearTimeout(this.#beginning);
    this.#gain.disconnect();
  }

  stop() {
    clearInterval(this.#timer);
    clearTimeout(this.#beginning);
    const { currentTime } = this.#speaker.context;
    this.scheduled = this.played; // what is behind this place is not going to sound
    this.#waiting = [];
    this.#gain.gain.setValueAtTime(1, currentTime);
    this.#gain.gain.linearRampToValueAtTime(0, currentTime + FADE_S);
    for (const source of this.#sources) source.stop(currentTime + FADE_S);
  }

  #layDown(all = false) {
    const enough = this.#waitingSamples >= GATHERED_S * this.#rate || this.ahead < GATHER_BEYOND_S || all;
    if (!this.#waitingSamples || !enough) return;
    if (!this.#run && !all && this.#waitingSamples < FIRST_GATHERED_S * this.#rate) {
      this.#beginning ??= setTimeout(() => this.#layDown(true), FIRST_WAIT_MS);
      return;
    }
    const buffer = this.#speaker.context.createBuffer(1, this.#waitingSamples, this.#rate);
    let at = 0;
    for (const samples of this.#waiting) {
      buffer.copyToChannel(samples, 0, at);
      at += samples.length;
    }
    this.#waiting = [];
    this.#waitingSamples = 0;
    this.#start(buffer);
  }

  #start(buffer) {
    const now = this.#speaker.context.currentTime * this.#rate;
    if (!this.#run || this.#run.start + this.scheduled - this.#run.offset <= now) {
      if (this.#run) {
        this.underruns++;
        this.#lead = Math.min(MOST_LEAD_S, this.#lead * 2);
      }
      this.#run = { start: Math.ceil(now + this.#lead * this.#rate), offset: this.scheduled };
      this.firstAt ??= this.#run.start / this.#rate;
    }
    const source = this.#speaker.context.createBufferSource();
    source.buffer = buffer;
    source.connect(this.#gain);
    source.addEventListener("ended", () => {
      source.disconnect();
      this.#sources.delete(source);
    });
    this.#sources.add(source);
    source.start((this.#run.start + this.scheduled - this.#run.offset) / this.#rate);
    this.scheduled += buffer.length;
  }
}
