// The voice as bars: always the whole of it in the width there is, so nothing scrolls away.

const SLOT_S = 0.02;
const BAR_PX = 3;
const GAP_PX = 2;
const SHORTEST_S = 6;

export class Waveform {
  played = 0;
  // Seconds that have arrived; the width shows all of them.
  received = 0;
  #canvas;
  #peaks = [];
  #colours = null;

  constructor(canvas) {
    this.#canvas = canvas;
    new ResizeObserver(() => this.draw()).observe(canvas);
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
      this.#colours = null;
      this.draw();
    });
  }

  get slots() {
    return this.#peaks.length;
  }

  clear() {
    this.#peaks = [];
    this.played = this.received = 0;
    this.draw();
  }

  // `first`: the place of these samples in the speech. Samples that come again change nothing.
  add(samples, rate, first) {
    const slot = Math.round(rate * SLOT_S);
    for (let i = 0; i < samples.length; i++) {
      const at = Math.floor((first + i) / slot);
      const peak = Math.abs(samples[i]);
      if (!(this.#peaks[at] >= peak)) this.#peaks[at] = peak;
    }
  }

  // Seconds that the width shows.
  get shownSeconds() {
    return Math.max(this.received, this.#peaks.length * SLOT_S, SHORTEST_S);
  }

  // For ways of playing that show no samples: what sounds at a second of the speech.
  addLevel(second, level) {
    while (this.#peaks.length < second / SLOT_S) this.#peaks.push(level);
  }

  draw() {
    const canvas = this.#canvas;
    const { clientWidth: width, clientHeight: height } = canvas;
    const density = devicePixelRatio;
    if (canvas.width !== Math.round(width * density)) canvas.width = Math.round(width * density);
    if (canvas.height !== Math.round(height * density)) canvas.height = Math.round(height * density);
    const pen = canvas.getContext("2d");
    pen.setTransform(density, 0, 0, density, 0, 0);
    pen.clearRect(0, 0, width, height);
    this.#colours ??= coloursOf(canvas);
    const bars = Math.floor((width + GAP_PX) / (BAR_PX + GAP_PX));
    const perBar = this.shownSeconds / SLOT_S / bars;
    for (let bar = 0; bar < bars; bar++) {
      const peak = this.#peak(bar * perBar, (bar + 1) * perBar);
      const tall = peak === null ? BAR_PX : Math.max(BAR_PX, peak ** 0.7 * height);
      const heard = (bar + 0.5) * perBar * SLOT_S < this.played;
      pen.fillStyle = peak === null ? this.#colours.empty : heard ? this.#colours.heard : this.#colours.waiting;
      pen.beginPath();
      pen.roundRect(bar * (BAR_PX + GAP_PX), (height - tall) / 2, BAR_PX, tall, BAR_PX / 2);
      pen.fill();
    }
  }

  #peak(from, to) {
    let peak = null;
    for (let slot = Math.floor(from); slot < to && slot < this.#peaks.length; slot++) {
      // Holes are parts that were sought over and are not decoded yet.
      if (this.#peaks[slot] !== undefined) peak = Math.max(peak ?? 0, this.#peaks[slot]);
    }
    return peak;
  }
}

function coloursOf(element) {
  const style = getComputedStyle(element);
  const [empty, waiting, heard] = ["--line", "--wave", "--accent"].map((name) => style.getPropertyValue(name));
  return { empty, waiting, heard };
}
