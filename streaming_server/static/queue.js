// What the server is doing; the server sends it at every change.

import { events } from "./api.js";

const RETRY_MS = 5000;

export class Queue {
  // null while nothing is known.
  status = null;
  #connection = null;
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

  // Connect again, with another key.
  reopen() {
    this.#close();
    this.#open();
  }

  async #open() {
    if (this.#connection || document.hidden) return;
    const connection = (this.#connection = new AbortController());
    try {
      for await (const status of events("opus_queue_status/events", connection.signal)) {
        this.#show(status);
      }
    } catch (error) {
      // Without a key there is nothing to retry; `reopen` follows a new one.
      if (error.status === 401) connection.abort();
    }
    if (this.#connection !== connection) return;
    this.#show(null);
    this.#connection = null;
    if (!connection.signal.aborted) setTimeout(() => this.#open(), RETRY_MS);
  }

  #show(status) {
    this.status = status;
    if (status) this.#skewMs = status.timestamp * 1000 - Date.now();
    this.onChange();
  }

  #close() {
    this.#connection?.abort();
    this.#connection = null;
  }
}
