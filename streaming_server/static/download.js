// The speech as a file, in the format that it came in or as WAV.

import { save } from "./dom.js";
import { wavHeader } from "./session.js";

const RATE = 48000;

// The formats in which a session can be saved, the one that it came in first.
export function formatsOf(format) {
  return format === "pcm" ? ["wav"] : [format, "wav"];
}

export async function download(file, format) {
  save(format === "wav" && file.type !== "audio/wav" ? await asWav(file) : file);
}

async function asWav(file) {
  const context = new OfflineAudioContext(1, 1, RATE);
  const decoded = (await context.decodeAudioData(await file.arrayBuffer())).getChannelData(0);
  const samples = Int16Array.from(decoded, (sample) => Math.max(-1, Math.min(1, sample)) * 32767);
  const name = file.name.replace(/\.\w+$/, ".wav");
  return new File([wavHeader(RATE, samples.byteLength), samples], name, { type: "audio/wav" });
}
