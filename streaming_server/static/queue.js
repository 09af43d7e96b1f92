// What the server is doing, told by itself at every change.

const RETRY_MS = 5000;

export class Queue {
  // null while nothing is known.
  status = null;
  #source = null;
  #skewMs = 0;

  constructor(onChange) {
    this.onChange = onChange;
    // A browser opens six connections to a host at most; a tab nobody looks at should hold none of them.
    document.addEventListener("visibilitychange", () => (document.hidden ? this.#close() : this.#open()));
    this.#open();
  }

  // The waiting entry of a request, if it waits.
  entry(requestId) {
    return this.status?.queue.find((entry) => entry.request_id === requestId);
  }

  // How long the current request has been at it, by the server's clock.
  get busySeconds() {
    const began = this.status.current_request.start_time * 1000;
    return Math.max(0, (Date.now() + this.#skewMs - began) / 1000);
  }

  #open() {
    if (this.#source || document.hidden) return;
    this.#source = new EventSource("opus_queue_status/events");
    this.#source.addEventListener("message", (event) => {
      this.status = JSON.parse(event.data);
      this.#skewMs = this.status.timestamp * 1000 - Date.now();
      this.onChange();
    });
    this.#source.addEventListener("error", () => {
      this.status = null;
      this.onChange();
      if (this.#source?.readyState !== EventSource.CLOSED) return;
      this.#close();
      setTimeout(() => this.#open(), RETRY_MS);
    });
  }

  #close() {
    this.#source?.close();
    this.#source = null;
  }
}
