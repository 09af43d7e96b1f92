// The audio output of the page: one AudioContext, the volume, and an analyser of what leaves it.

const REST_AFTER_MS = 3000;

export class Speaker {
  context = null;
  analyser = null;
  #gain = null;
  #volume = 1;
  #resting = 0;
  #window = null;

  // Has to be called in the handler of a click or key: elsewhere browsers keep the context silent.
  wake(rate) {
    clearTimeout(this.#resting);
    if (this.context?.sampleRate !== rate) {
      this.context?.close();
      this.context = createContext(rate);
      this.#gain = this.context.createGain();
      this.#gain.gain.value = this.#volume;
      this.analyser = this.context.createAnalyser();
      this.#gain.connect(this.analyser).connect(this.context.destination);
      this.#window = new Float32Array(this.analyser.fftSize);
    }
    this.context.resume();
  }

  // Where playbacks connect.
  get input() {
    return this.#gain;
  }

  get volume() {
    return this.#volume;
  }

  // From 0 to 1.
  set volume(value) {
    this.#volume = value;
    if (this.#gain) this.#gain.gain.setTargetAtTime(value, this.context.currentTime, 0.01);
  }

  // Stops the clock by which samples are played, or lets it run on.
  pause(paused) {
    if (paused) this.context.suspend();
    else this.context.resume();
  }

  // An idle context would keep the sound device, and a laptop's processor, awake.
  rest() {
    clearTimeout(this.#resting);
    this.#resting = setTimeout(() => this.context?.suspend(), REST_AFTER_MS);
  }

  // The highest sample of the last 2048.
  get level() {
    if (this.context?.state !== "running") return 0;
    this.analyser.getFloatTimeDomainData(this.#window);
    return this.#window.reduce((peak, sample) => Math.max(peak, Math.abs(sample)), 0);
  }
}

function createContext(sampleRate) {
  try {
    return new AudioContext({ sampleRate, latencyHint: "interactive" });
  } catch {
    return new AudioContext(); // a device that only knows its own rate; buffers are then resampled one by one
  }
}
