// The list of this browser's clips: play again, download, delete.

import * as clips from "./clips.js";
import { button, byId, element, put, save } from "./dom.js";
import { PageError } from "./errors.js";
import { language, t } from "./i18n.js";
import { clock } from "./time.js";

export class History {
  // Resolves when the clips are known.
  ready;
  #clips = [];
  #onPlay;
  #onProblem;

  // `onPlay` gets a clip and its file, `onProblem` the error if a clip cannot be kept or is gone.
  constructor(onPlay, onProblem) {
    this.#onPlay = onPlay;
    this.#onProblem = onProblem;
    byId("clear-history").addEventListener("click", () => this.#change(clips.clear()));
    this.ready = this.#change();
  }

  async add(clip) {
    const [isKept, isStored] = await this.#change(clips.add(clip));
    if (!isKept && isStored) this.#onProblem(new PageError("notKept"));
  }

  translate() {
    put("history-count", this.#clips.length ? t("clips", { n: this.#clips.length }) : "");
    byId("history").hidden = !this.#clips.length;
    byId("clips").replaceChildren(...this.#clips.map((clip) => this.#row(clip)));
  }

  // Whether the action succeeded, and whether the browser stores clips at all. One that stores nothing has no history.
  async #change(action) {
    const succeeds = (promise) => promise.then(() => true, () => false);
    const isDone = await succeeds(Promise.resolve(action));
    this.#clips = [];
    const isStored = await succeeds(clips.list().then((all) => (this.#clips = all)));
    this.translate();
    return [isDone, isStored];
  }

  // Gives `use` the file of a clip, if it is still there.
  async #open(clip, use) {
    const file = await clips.file(clip.id).catch(() => null);
    if (file) {
      use(file);
      return;
    }
    await this.#change();
    this.#onProblem(new PageError("clipLost", "history"));
  }

  #row(clip) {
    const when = new Date(clip.created).toLocaleString(language, { dateStyle: "short", timeStyle: "short" });
    const name = clip.text.slice(0, 60);
    const label = (word) => t(word, { name });
    const play = button("listen", "", () => this.#open(clip, (file) => this.#onPlay(clip, file)));
    const load = button("icon save", "↓", () => this.#open(clip, save));
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
