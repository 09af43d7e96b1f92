// One synthesis over HTTP: its bytes in order, whatever happens to the connections that carry them.

import { ServerError, refusal, send } from "./api.js";

// The server goes on for 10 s without a connection, so the waits together stay below that.
const RETRY_WAITS_MS = [0, 200, 500, 1000, 2000, 4000];
// A network that vanished says nothing. Asking again costs little: the bytes continue where they were.
const SILENCE_MS = 8000;

export class SpeechStream {
  received = 0;
  resumes = 0;
  // Whether the connection is being looked for right now.
  resuming = false;
  id = null;
  // Whether the server goes on without a connection, so that a silent one may be given up.
  #resumable = false;
  #stopping = new AbortController();
  #connection = null;
  #response = null;

  constructor(path, body) {
    this.path = path;
    this.body = body;
    this.requestId = randomId();
  }

  // Resolves with the headers, which come with the first audio.
  async open() {
    this.#response = await this.#fetch(this.path, {
      method: "POST",
      headers: { "Content-Type": "application/json", "X-Request-Id": this.requestId, "X-Resumable": "true" },
      body: JSON.stringify(this.body),
    });
    if (!this.#response.ok) throw await refusal(this.#response);
    this.id = this.#response.headers.get("X-Stream-Id");
    this.#resumable = this.#response.headers.get("X-Resumable") === "true";
    return this.#response.headers;
  }

  async *chunks() {
    for (let response = this.#response; response; response = await this.#resume()) {
      const reader = response.body.getReader();
      try {
        for (;;) {
          const { done, value } = await this.#patiently(reader.read());
          if (done) return;
          this.received += value.length;
          yield value;
        }
      } catch (error) {
        if (this.#stopping.signal.aborted || !this.id) throw error;
        this.#connection.abort();
      }
    }
  }

  stop() {
    this.#stopping.abort();
    this.#release();
  }

  // Without this the server would take the missing connection for a weak network and go on for a while.
  #release() {
    if (this.id) send(`streams/${this.id}`, { method: "DELETE", keepalive: true }).catch(() => {});
  }

  async #resume() {
    this.resuming = true;
    try {
      return await this.#reconnect();
    } finally {
      this.resuming = false;
    }
  }

  async #reconnect() {
    for (const wait of RETRY_WAITS_MS) {
      await pause(wait, this.#stopping.signal);
      let response;
      try {
        response = await this.#patiently(this.#fetch(`streams/${this.id}?from=${this.received}`));
      } catch (error) {
        if (this.#stopping.signal.aborted) throw error;
        continue;
      }
      if (!response.ok) throw await refusal(response);
      if (Number(response.headers.get("X-Stream-Offset")) !== this.received) {
        throw new ServerError(`the stream did not continue at byte ${this.received}`);
      }
      this.resumes++;
      return response;
    }
    throw new TypeError("the connection did not come back");
  }

  #fetch(path, options = {}) {
    this.#connection = new AbortController();
    const signal = anySignal(this.#stopping.signal, this.#connection);
    return send(path, { ...options, signal, cache: "no-store" });
  }

  async #patiently(reading) {
    if (!this.#resumable) return reading;
    const connection = this.#connection;
    const timer = setTimeout(() => connection.abort(), SILENCE_MS);
    try {
      return await reading;
    } finally {
      clearTimeout(timer);
    }
  }
}

function randomId() {
  return Array.from(crypto.getRandomValues(new Uint8Array(16)), (n) => n.toString(16).padStart(2, "0")).join("");
}

// AbortSignal.any is younger than the browsers that this should run in.
function anySignal(signal, controller) {
  if (signal.aborted) controller.abort();
  signal.addEventListener("abort", () => controller.abort(), { once: true });
  return controller.signal;
}

function pause(milliseconds, signal) {
  return new Promise((resolve, reject) => {
    const timer = setTimeout(resolve, milliseconds);
    signal.addEventListener("abort", () => {
      clearTimeout(timer);
      reject(new DOMException("stopped", "AbortError"));
    }, { once: true });
  });
}
