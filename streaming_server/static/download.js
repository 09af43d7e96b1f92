// The speech as a file, in the format that it came in or as WAV, and its words as subtitles.

import { save } from "./dom.js";
import { PageError } from "./errors.js";
import { subtitles } from "./read_along.js";
import { wavHeader } from "./session.js";

const RATE = 48000;

// The formats in which a session can be saved, the one that it came in first. `timed`: whether its words are known.
export function formatsOf(format, timed) {
  return [...(format === "pcm" ? ["wav"] : [format, "wav"]), ...(timed ? ["srt", "vtt"] : [])];
}

// `words`: those of the speech, with their times.
//
// Throws a PageError if the browser cannot decode the speech.
export async function download(file, format, words) {
  if (format === "srt" || format === "vtt") {
    const name = file.name.replace(/\.\w+$/, `.${format}`);
    save(new File([subtitles(words, format)], name, { type: format === "vtt" ? "text/vtt" : "application/x-subrip" }));
    return;
  }
  save(format === "wav" && file.type !== "audio/wav" ? await asWav(file) : file);
}

async function asWav(file) {
  let decoded;
  try {
    const context = new OfflineAudioContext(1, 1, RATE);
    decoded = (await context.decodeAudioData(await file.arrayBuffer())).getChannelData(0);
  } catch {
    throw new PageError("notConverted");
  }
  const samples = Int16Array.from(decoded, (sample) => Math.max(-1, Math.min(1, sample)) * 32767);
  const name = file.name.replace(/\.\w+$/, ".wav");
  return new File([wavHeader(RATE, samples.byteLength), samples], name, { type: "audio/wav" });
}
