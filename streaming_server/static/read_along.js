// The words as they are said: shown in place of the text while it plays, and saved as subtitles.

import { json } from "./api.js";
import { byId, element, recall, remember } from "./dom.js";

const STORED = "player-read-along";
// A subtitle has at most two lines.
const MAX_CUE_CHARACTERS = 80;
const MAX_CUE_S = 6;
// Words of these scripts touch, and so does what follows their punctuation.
const WIDE = /[\p{scx=Han}\p{scx=Hiragana}\p{scx=Katakana}\p{scx=Hangul}\uff00-\uffef]/u;
const SENTENCE_END = /[.!?…。！？][”"')\]]*$/;

// The duration of a stream that is complete, 0 where it is not known, and its words: [{text, start, end, space}].
export async function timesOf(streamId) {
  try {
    return await json(`player/streams/${streamId}/words`);
  } catch {
    return { duration: 0, words: [] };
  }
}

export class ReadAlong {
  words = [];
  #panel = byId("reading");
  #toggle = byId("read-along");
  #spans = [];
  #current = null;
  #on = recall(STORED) === true;
  // Whether the words are no longer those of the text.
  #outdated = false;

  // `onSeek` gets the start of a word that is clicked.
  constructor(onSeek) {
    this.#toggle.addEventListener("click", () => {
      this.#on = this.#panel.hidden;
      this.#outdated = false;
      remember(STORED, this.#on);
      this.#show();
    });
    this.#panel.addEventListener("click", ({ target }) => {
      const at = this.#spans.indexOf(target);
      if (at >= 0) onSeek(this.words[at].start);
    });
    this.#show();
  }

  // Shows other words, or none.
  set(words) {
    this.words = words;
    this.#current = null;
    // Words that come after the text has been replaced are still those of the earlier one.
    if (!words.length) this.#outdated = false;
    this.#spans = words.map(({ text }) => element("span", "", text));
    this.#panel.replaceChildren(...this.#spans.flatMap((span, i) => [span, gap(words[i], words[i + 1])]));
    this.#show();
  }

  // Shows the text again, which is another one now, until there are other words.
  uncover() {
    this.#outdated = true;
    this.#show();
  }

  // Marks the word that is said at a second.
  follow(second) {
    if (this.#panel.hidden) return;
    const after = this.words.findIndex(({ start }) => start > second);
    const span = this.#spans[(after < 0 ? this.words.length : after) - 1] ?? null;
    if (span === this.#current) return;
    this.#current?.classList.remove("now");
    span?.classList.add("now");
    this.#current = span;
    if (span) this.#panel.scrollTop = span.offsetTop - this.#panel.clientHeight / 2;
  }

  #show() {
    const known = this.words.length > 0;
    this.#toggle.disabled = !known;
    const on = this.#on && !this.#outdated;
    this.#toggle.setAttribute("aria-pressed", String(on));
    this.#panel.hidden = !known || !on;
    for (const id of ["text", "dialogue"]) byId(id).classList.toggle("covered", !this.#panel.hidden);
    byId("text").inert = !this.#panel.hidden;
  }
}

// Subtitles of words as SubRip or WebVTT.
export function subtitles(words, format) {
  const blocks = cues(words).map(({ text, start, end }, i) => {
    const times = [start, end].map((seconds) => stamp(seconds, format === "srt" ? "," : "."));
    return `${format === "srt" ? `${i + 1}\n` : ""}${times.join(" --> ")}\n${text}\n`;
  });
  return (format === "vtt" ? "WEBVTT\n\n" : "") + blocks.join("\n");
}

// The words in groups that end with a sentence or before they become too long.
function cues(words) {
  const found = [];
  let open = null;
  for (const [i, { text, start, end }] of words.entries()) {
    const full = open && (open.text.length + text.length > MAX_CUE_CHARACTERS || end - open.start > MAX_CUE_S);
    if (open && !full) Object.assign(open, { text: open.text + gap(words[i - 1], words[i]) + text, end });
    else found.push((open = { text, start, end }));
    if (SENTENCE_END.test(text)) open = null;
  }
  return found;
}

// What stands between two words. Clips of earlier versions, and the ends of passages, do not tell.
function gap(word, next) {
  if (!next) return "";
  const spaced = word.space ?? !(WIDE.test([...word.text].at(-1)) || WIDE.test([...next.text][0]));
  return spaced ? " " : "";
}

function stamp(seconds, point) {
  const all = Math.round(seconds * 1000);
  const parts = [Math.floor(all / 3_600_000), Math.floor(all / 60_000) % 60, Math.floor(all / 1000) % 60];
  return parts.map((part) => String(part).padStart(2, "0")).join(":") + point + String(all % 1000).padStart(3, "0");
}
