// One speech: the stream that brings it, its sound, and what can be measured of both.

const MEDIA_TYPES = { ogg: "audio/ogg", webm: "audio/webm", mp3: "audio/mpeg", pcm: "audio/wav" };

export class Session {
  // asking, playing; at the end done, stopped or failed. Played again, it is playing once more.
  phase = "asking";
  firstAudioMs = null;
  failure = null;
  // Whether the page has shown the failure.
  told = false;
  // Whether all of the speech has arrived.
  complete = false;
  paused = false;
  #clicked;
  #begun;
  #lastByte = 0;
  #pieces = [];

  // `stream`: a SpeechStream, or a StoredStream. `onComplete` is called once all of the speech has arrived.
  // `clicked`: when, on the clock of performance.now().
  constructor(method, stream, speaker, onSamples, onComplete, clicked) {
    this.onComplete = onComplete;
    this.method = method;
    this.speaker = speaker;
    this.playback = method.create(speaker, onSamples);
    this.stream = stream;
    this.#clicked = this.#begun = clicked;
  }

  get requestId() {
    return this.stream.requestId;
  }

  // Whether the server is still sending to it.
  get receiving() {
    return this.running && this.stream.received > 0 && !this.complete;
  }

  get running() {
    return this.phase === "asking" || this.phase === "playing";
  }

  // Whether there is sound that can be played again.
  get playable() {
    return this.stream.received > 0 && this.playback.receivedSeconds > 0;
  }

  get bufferedSeconds() {
    return Math.max(0, this.playback.receivedSeconds - this.playback.playedSeconds);
  }

  // What it took to make a second of speech, as far as it can be seen from here.
  get realTimeFactor() {
    const seconds = this.playback.isBehind ? 0 : this.playback.receivedSeconds;
    return seconds && this.#lastByte ? (this.#lastByte - this.#begun) / 1000 / seconds : null;
  }

  // Ends when the last sample has sounded; `failure` tells why it ended otherwise.
  async run() {
    try {
      const headers = await this.stream.open();
      if (!this.running) return;
      this.playback.start(headers);
      await this.#receive();
      await this.playback.finish();
    } catch (error) {
      if (this.running) this.failure ??= error; // stopping aborts the stream, which is no failure
    }
    if (!this.running) return;
    const phase = this.failure ? "failed" : "done";
    if (this.failure) this.stop();
    this.phase = phase;
  }

  // Goes on from a second of what was received; as `run`, where it had ended.
  async seek(second) {
    if (this.running) {
      this.playback.seek(second, this.paused);
      return;
    }
    this.phase = "playing";
    this.paused = false;
    this.playback.seek(second);
    await this.playback.finish();
    if (this.running) this.phase = "done";
  }

  async #receive() {
    try {
      for await (const bytes of this.stream.chunks()) {
        if (!this.running) return;
        this.phase = "playing";
        this.#lastByte = performance.now();
        this.#pieces.push(bytes);
        this.playback.push(bytes);
      }
      this.complete = true;
      this.onComplete();
    } catch (error) {
      if (this.running) this.failure = error; // what arrived before it is still worth hearing
    }
  }

  // Receiving goes on while the sound pauses.
  pause(paused) {
    this.paused = paused;
    this.playback.pause(paused);
  }

  stop() {
    if (!this.running) return;
    this.phase = "stopped";
    if (!this.complete) this.stream.stop();
    this.playback.stop();
  }

  // Stops, and releases the decoder and the buffered audio: it is not played again.
  close() {
    this.stop();
    this.playback.release();
  }

  // Its turn has not come: time spent waiting is none of the engine's.
  waits() {
    this.#begun = performance.now();
  }

  observe() {
    const ago = this.playback.soundingMs;
    if (this.firstAudioMs === null && ago !== null) this.firstAudioMs = performance.now() - ago - this.#clicked;
  }

  // What has arrived, as a file that players open.
  file(name = "speech") {
    const pcm = this.method.format === "pcm";
    const head = pcm ? [wavHeader(this.playback.rate, this.stream.received)] : [];
    const blob = new Blob([...head, ...this.#pieces], { type: MEDIA_TYPES[this.method.format] });
    return new File([blob], `${name}.${pcm ? "wav" : this.method.format}`, { type: blob.type });
  }
}

// What a history kept, in place of a stream from the server.
export class StoredStream {
  received = 0;
  resumes = 0;
  resuming = false;
  id = null;
  requestId = "";
  #file;

  constructor(file) {
    this.#file = file;
  }

  async open() {
    const bytes = new Uint8Array(await this.#file.arrayBuffer());
    const wav = this.#file.type === MEDIA_TYPES.pcm;
    this.bytes = wav ? bytes.subarray(WAV_HEADER_BYTES) : bytes;
    return new Headers(wav ? { "X-Sample-Rate": new DataView(bytes.buffer).getUint32(24, true) } : {});
  }

  async *chunks() {
    this.received = this.bytes.length;
    yield this.bytes;
  }

  stop() {}
}

const WAV_HEADER_BYTES = 44;

export function wavHeader(rate, received) {
  const size = received & ~1;
  const view = new DataView(new ArrayBuffer(WAV_HEADER_BYTES));
  const letters = (at, text) => [...text].forEach((letter, i) => view.setUint8(at + i, letter.charCodeAt(0)));
  letters(0, "RIFF");
  view.setUint32(4, 36 + size, true);
  letters(8, "WAVEfmt ");
  view.setUint32(16, 16, true);
  view.setUint16(20, 1, true);
  view.setUint16(22, 1, true);
  view.setUint32(24, rate, true);
  view.setUint32(28, rate * 2, true);
  view.setUint16(32, 2, true);
  view.setUint16(34, 16, true);
  letters(36, "data");
  view.setUint32(40, size, true);
  return view.buffer;
}
