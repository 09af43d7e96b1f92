// Asks for the API key, and keeps it once the server accepts it.

import { accepts, forgetKey, hasKey, setKey } from "./api.js";
import { t } from "./i18n.js";

export class KeyDialog {
  #dialog = document.getElementById("key-dialog");
  #input = document.getElementById("key-input");
  #error = document.getElementById("key-error");
  #message = "";

  // `onAccepted` is called with every new key, `onForgotten` once the key is forgotten.
  constructor(onAccepted, onForgotten) {
    document.getElementById("key-form").addEventListener("submit", async (event) => {
      event.preventDefault();
      const value = this.#input.value.trim();
      this.#say(await problem(value));
      if (this.#message) {
        this.#input.focus();
        return;
      }
      setKey(value, document.getElementById("key-keep").checked);
      this.#dialog.close();
      onAccepted();
    });
    document.getElementById("key-close").addEventListener("click", () => this.#dialog.close());
    document.getElementById("key-forget").addEventListener("click", () => {
      forgetKey();
      this.#dialog.close();
      onForgotten();
    });
    this.#dialog.addEventListener("close", () => (this.#input.value = ""));
  }

  open() {
    if (this.#dialog.open) return;
    this.#say("");
    document.getElementById("key-forget").hidden = !hasKey();
    this.#dialog.showModal();
  }

  translate() {
    this.#say(this.#message);
  }

  #say(message) {
    this.#message = message;
    this.#error.textContent = message ? t(message) : "";
    this.#input.setAttribute("aria-invalid", message !== "");
  }
}

// The word of what is wrong with a key; empty if nothing is.
async function problem(value) {
  // A header cannot carry control characters.
  if (!value || /\p{Cc}/u.test(value)) return "keyRefused";
  try {
    return (await accepts(value)) ? "" : "keyRefused";
  } catch {
    return "unreachable";
  }
}
