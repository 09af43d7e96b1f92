// The complete speech in the browser's own player: replay, seek, volume and speed without another synthesis.

export class Clip {
  #element;

  // `onTaken` is called when the user plays it or seeks in it.
  constructor(element, onTaken) {
    this.#element = element;
    element.addEventListener("play", onTaken);
    element.addEventListener("seeking", () => {
      if (element.dataset.measuring) return;
      onTaken();
      element.play().catch(() => {});
    });
  }

  clear() {
    this.#element.pause();
    URL.revokeObjectURL(this.#element.src);
    this.#element.removeAttribute("src");
    this.#element.load();
  }

  load(file) {
    this.clear();
    const element = this.#element;
    element.src = URL.createObjectURL(file);
    element.addEventListener("loadedmetadata", () => measure(element), { once: true });
  }

  play() {
    this.#element.play().catch(() => {});
  }

  pause() {
    this.#element.pause();
  }
}

// A WebM file that was streamed does not tell its duration: the browser finds it by going to the end.
function measure(element) {
  if (Number.isFinite(element.duration)) return;
  element.dataset.measuring = "true";
  element.addEventListener("durationchange", () => (element.currentTime = 0), { once: true });
  element.addEventListener("seeked", function back() {
    if (element.currentTime > 0) return;
    element.removeEventListener("seeked", back);
    delete element.dataset.measuring;
  });
  element.currentTime = Number.MAX_SAFE_INTEGER;
}
