// Changes the tempo of speech without its pitch (waveform similarity overlap-add).

const FRAME_S = 0.03;
const SEARCH_S = 0.01;
// Of the samples compared when frames are aligned; pitch periods are far longer than this step.
const STEP = 4;

export class Stretch {
  #tempo;
  #half;
  #search;
  #window;
  #input = new Float32Array(0);
  // Samples that were dropped from the front of `#input`.
  #dropped = 0;
  #frames = 0;
  // Where the previous frame was taken from, and its faded second half.
  #previous = null;
  #tail;

  // `tempo`: 2 is twice as fast.
  constructor(rate, tempo) {
    this.#tempo = tempo;
    this.#half = Math.round((rate * FRAME_S) / 2);
    this.#search = Math.round(rate * SEARCH_S);
    this.#window = Float32Array.from({ length: this.#half }, (_, i) => 0.5 - 0.5 * Math.cos((Math.PI * (i + 0.5)) / this.#half));
    this.#tail = new Float32Array(this.#half);
  }

  // The output that these samples complete.
  push(samples) {
    this.#append(samples);
    const pieces = [];
    for (let piece; (piece = this.#frame()); ) pieces.push(piece);
    return joined(pieces);
  }

  // The output of what is left.
  finish() {
    const last = this.push(new Float32Array(2 * this.#half + 2 * this.#search));
    return joined([last, this.#tail]);
  }

  #append(samples) {
    this.#input = joined([this.#input, samples]);
  }

  #frame() {
    const half = this.#half;
    const ideal = Math.round(this.#frames * half * this.#tempo) - this.#dropped;
    if (ideal + this.#search + 2 * half > this.#input.length) return null;
    const from = this.#previous === null ? Math.max(0, ideal) : this.#aligned(ideal);
    const piece = new Float32Array(half);
    for (let i = 0; i < half; i++) {
      const fade = this.#frames ? this.#window[i] : 1;
      piece[i] = this.#tail[i] + this.#input[from + i] * fade;
      this.#tail[i] = this.#input[from + half + i] * this.#window[half - 1 - i];
    }
    this.#frames++;
    this.#previous = from + half;
    this.#forget();
    return piece;
  }

  // The place around `ideal` that continues the previous frame best.
  #aligned(ideal) {
    let best = ideal;
    let highest = -Infinity;
    for (let from = Math.max(0, ideal - this.#search); from <= ideal + this.#search; from += STEP) {
      let sum = 0;
      for (let i = 0; i < this.#half; i += STEP) sum += this.#input[from + i] * this.#input[this.#previous + i];
      if (sum > highest) [highest, best] = [sum, from];
    }
    return best;
  }

  // Drops the input that no further frame needs.
  #forget() {
    const next = Math.round(this.#frames * this.#half * this.#tempo) - this.#dropped - this.#search;
    const count = Math.max(0, Math.min(next, this.#previous));
    if (count < this.#input.length / 2) return;
    this.#input = this.#input.slice(count);
    this.#dropped += count;
    this.#previous -= count;
  }
}

function joined(pieces) {
  const whole = new Float32Array(pieces.reduce((sum, piece) => sum + piece.length, 0));
  let at = 0;
  for (const piece of pieces) {
    whole.set(piece, at);
    at += piece.length;
  }
  return whole;
}
