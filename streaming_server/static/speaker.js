// The way out of the page: one AudioContext, and an analyser that knows what really leaves it.

const REST_AFTER_MS = 3000;

export class Speaker {
  context = null;
  analyser = null;
  #resting = 0;
  #window = null;

  // Has to be called inside the user's click: elsewhere browsers keep the context silent.
  wake(rate) {
    clearTimeout(this.#resting);
    if (this.context?.sampleRate !== rate) {
      this.context?.close();
      this.context = createContext(rate);
      this.analyser = this.context.createAnalyser();
      this.analyser.connect(this.context.destination);
      this.#window = new Float32Array(this.analyser.fftSize);
    }
    this.context.resume();
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
