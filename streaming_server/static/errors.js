// What went wrong: the words for it in the page's language, the control beside which they belong, and whether to offer
// a retry.

import { ServerError } from "./api.js";

// A failure in the browser, by its word.
export class PageError extends Error {
  constructor(word, place = "play") {
    super(word);
    this.place = place;
  }
}

const BLANK = "文本不能为空";
const LOADING = "模型未加载";
const VOICE = /^参考音频|reference audio/;

// `begun`: whether audio had arrived. `ranges`: what is valid, {range, whole}, by the name of a field.
export function explain(error, begun, ranges) {
  if (error instanceof PageError) return { word: error.message, place: error.place };
  if (!(error instanceof ServerError)) return { word: begun ? "broken" : "unreachable", place: "play", retry: true };
  const { message, status, problems } = error;
  const [problem] = problems;
  if (problem && problem.field in ranges) {
    const { range, whole } = ranges[problem.field];
    const values = { name: problem.field, message: problem.message, range };
    return { word: whole ? "badInteger" : range ? "badValue" : "badField", values, place: problem.field };
  }
  if (message === BLANK) return { word: "blank", place: "text" };
  if (message === LOADING) return { word: "loading", place: "play", retry: true };
  if (VOICE.test(message) || problem?.field === "voice") return { word: "voiceFailed", place: "voice", retry: true };
  if (status === 401) return { word: "keyNeeded", place: "play", retry: true };
  if (status === 503) return { word: "busyNow", place: "play", retry: true };
  if (status >= 500) return { word: "serverFailed", place: "play", retry: true };
  if (begun) return { word: "broken", place: "play", retry: true };
  return { word: "refused", values: { message }, place: problem?.field === "text" ? "text" : "play" };
}
