// The list of this browser's clips: play again, download, delete.

import * as clips from "./clips.js";
import { button, byId, element, put, save } from "./dom.js";
import { language, t } from "./i18n.js";
import { clock } from "./time.js";

export class History {
  // Resolves when the clips are known.
  ready;
  #clips = [];
  #onPlay;

  // `onPlay` gets a clip and its file.
  constructor(onPlay) {
    this.#onPlay = onPlay;
    byId("clear-history").addEventListener("click", () => this.#change(clips.clear()));
    this.ready = this.#change();
  }

  add(clip) {
    return this.#change(clips.add(clip));
  }

  translate() {
    put("history-count", this.#clips.length ? t("clips", { n: this.#clips.length }) : "");
    byId("history").hidden = !this.#clips.length;
    byId("clips").replaceChildren(...this.#clips.map((clip) => this.#row(clip)));
  }

  // A browser that stores nothing has no history.
  async #change(action) {
    try {
      await action;
      this.#clips = await clips.list();
    } catch {
      this.#clips = [];
    }
    this.translate();
  }

  #row(clip) {
    const when = new Date(clip.created).toLocaleString(language, { dateStyle: "short", timeStyle: "short" });
    const name = clip.text.slice(0, 60);
    const label = (word) => t(word, { name });
    const play = button("listen", "", async () => this.#onPlay(clip, await clips.file(clip.id)));
    const load = button("icon save", "↓", async () => save(await clips.file(clip.id)));
    const drop = button("icon remove", "×", async () => {
      await this.#change(clips.remove(clip.id));
      (byId("clips").querySelector("button") ?? byId("text")).focus();
    });
    play.setAttribute("aria-label", label("replayClip"));
    load.setAttribute("aria-label", label("downloadClip"));
    drop.setAttribute("aria-label", label("deleteClip"));
    const about = element("span", "quiet", [clip.voice, clock(clip.seconds), when].filter(Boolean).join(" · "));
    return element("li", "", play, element("div", "clip-text", element("span", "name", clip.text), about), load, drop);
  }
}
