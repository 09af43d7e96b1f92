// The page: what the controls do, and what they show.

import { json, onRefused, hasKey } from "./api.js";
import { snippet } from "./code.js";
import { Composer } from "./composer.js";
import { byId, copyText, put, recall, remember } from "./dom.js";
import { download, formatsOf } from "./download.js";
import { Emotion } from "./emotion.js";
import { PageError, explain } from "./errors.js";
import { Fields, RANGES } from "./fields.js";
import { History } from "./history.js";
import { SAMPLES, language, setLanguage, t, translate } from "./i18n.js";
import { KeyDialog } from "./key_dialog.js";
import { describe } from "./loaded.js";
import { methods } from "./playback.js";
import { Problem } from "./problem.js";
import { Queue } from "./queue.js";
import { about, showQueue } from "./queue_panel.js";
import { StoredStream } from "./session.js";
import { link, shared } from "./share.js";
import { ReadAlong, timesOf } from "./read_along.js";
import { SpeechStream } from "./stream.js";
import { clock } from "./time.js";
import { Transport } from "./transport.js";
import { Voices } from "./voices.js";

const OPUS_RATE = 48000;
const BITRATES = [8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 512];
const DEFAULT_BITRATE = 32;
const DRAFT = "player-draft";

const voices = new Voices(silence, voicesChanged, (error, again) => report(error, again, { place: "voice", passing: true }));
const composer = new Composer(voices, composed, (word) => problem.show(word && { word, place: "text" }));
const emotion = new Emotion(showRequest);
const fields = new Fields(byId("fields"));
const problem = new Problem(fields);
const transport = new Transport(show, (volume) => (voices.volume = volume), () => voices.quiet());
const history = new History(playClip, (error) => report(error));
const readAlong = new ReadAlong((second) => transport.seek(second));
const queue = new Queue(() => {
  showWaiting();
  show();
});
const keyDialog = new KeyDialog(begin, begin);
let info = null;
// Whether the server has refused a request for want of a key.
let locked = false;
// The voice of a draft or a link, until the voices are known.
let wanted = "";
// What a retry does for the current speech.
let again = null;
// Whether anything was changed since the page was opened.
let edited = false;

// What tests and curious people may read; nothing of it can be set.
window.playerState = Object.freeze({
  get phase() { return transport.session?.phase ?? "idle"; },
  get method() { return transport.session?.method.name ?? chosen().name; },
  get firstAudioMs() { transport.session?.observe(); return transport.session?.firstAudioMs ?? null; },
  get receivedBytes() { return transport.session?.stream.received ?? 0; },
  get resumes() { return transport.session?.stream.resumes ?? 0; },
  get sampleRate() { return transport.session?.playback.rate ?? null; },
  get scheduledSamples() { return transport.session?.playback.scheduledSamples ?? 0; },
  get playedSamples() { return transport.session?.playback.playedSamples ?? 0; },
  get playedSeconds() { return transport.session?.playback.playedSeconds ?? 0; },
  get underruns() { return transport.session?.playback.underruns ?? 0; },
  get drawnSlots() { return transport.waveform.slots; },
  get contextTime() { return transport.speaker.context?.currentTime ?? 0; },
  get level() { return transport.speaker.level; },
});

// ---- asking ----

function chosen() {
  return methods.find((method) => method.format === byId("format").value) ?? methods[0];
}

// The rate at which a method plays.
function rateOf(method) {
  return method.format === "pcm" ? (info?.sample_rate ?? OPUS_RATE) : OPUS_RATE;
}

function isOpus() {
  return ["ogg", "webm"].includes(chosen().format);
}

function bitrate() {
  return BITRATES[byId("bitrate").value];
}

// The body of `POST /player/speech`.
function request() {
  const { format } = chosen();
  const script = composer.script;
  const body = { text: script.text };
  const voice = script.voices.length ? script.voices.join(",") : voices.name;
  if (voice) body.voice = voice;
  Object.assign(body, emotion.fields, fields.values);
  if (format !== "ogg") body.format = format;
  if (isOpus() && bitrate() !== DEFAULT_BITRATE) body.opus_bitrate = bitrate() * 1000;
  return body;
}

// What a draft keeps and a link carries.
function state() {
  const settings = { ...fields.values, ...emotion.fields };
  if (byId("format").value) settings.format = byId("format").value;
  if (bitrate() !== DEFAULT_BITRATE) settings.opus_bitrate = bitrate() * 1000;
  return { ...composer.state, voice: voices.name || wanted, settings };
}

function restore({ text, turns, voices: speakers, voice, settings = {} }) {
  composer.state = { text, turns, voices: speakers };
  wanted = voice;
  fields.values = settings;
  emotion.fields = settings;
  byId("format").value = methods.some(({ format }) => format === settings.format) ? settings.format : "";
  const known = BITRATES.indexOf(settings.opus_bitrate / 1000);
  byId("bitrate").value = known < 0 ? BITRATES.indexOf(DEFAULT_BITRATE) : known;
}

// ---- playing ----

async function play(clicked) {
  voices.quiet();
  problem.show(null);
  const refused = composer.refusal();
  if (refused) {
    problem.show(refused);
    return;
  }
  const method = chosen();
  const body = request();
  const clip = { text: composer.title, voice: voiceTitles(), method: method.format };
  setWords([]);
  again = () => play(performance.now());
  await transport.begin({
    method,
    stream: new SpeechStream("player/speech", body),
    rate: rateOf(method),
    title: clip.text,
    onComplete: async (session) => {
      const before = session.playback.receivedSeconds; // 0 once another speech has replaced this one
      const { words, duration } = await timesOf(session.stream.id);
      session.playback.setTotal?.(duration);
      const seconds = duration || Math.max(before, session.playback.receivedSeconds);
      if (session === transport.session) setWords(words);
      history.add({ ...clip, words, seconds, created: Date.now(), file: session.file() });
    },
    clicked,
  });
}

function voiceTitles() {
  const { voices: names } = composer.script;
  return (names.length ? names : [voices.name]).map((name) => voices.title(name)).join(", ");
}

// A clip of the history, without another synthesis.
function playClip(clip, file) {
  const method = methods.find(({ format }) => format === clip.method);
  problem.show(null);
  if (!method) {
    report(new PageError("clipLost", "history"));
    return;
  }
  setWords([]);
  voices.quiet();
  again = () => playClip(clip, file);
  transport.begin({
    method,
    stream: new StoredStream(file),
    rate: rateOf(method),
    title: clip.text,
    onComplete: (session) => {
      session.playback.setTotal?.(clip.seconds);
      setWords(clip.words ?? []);
    },
    clicked: performance.now(),
  });
}

function setWords(words) {
  readAlong.set(words);
  showSaved();
}

// A voice is about to be heard.
function silence() {
  transport.stop();
  if (problem.shown?.passing) problem.show(null);
}

function complain(session) {
  if (session.told) return;
  session.told = true;
  const { failure, stream } = session;
  if (stream instanceof StoredStream) report(new PageError("clipLost", "history"));
  else report(failure, again, { begun: stream.id !== null });
}

// Shows what went wrong, with a retry where there is something to do `again`. A `passing` problem is one of a voice that
// is listened to: it goes with the next one.
function report(error, again = null, { begun = false, ...more } = {}) {
  const explained = explain(error, begun, RANGES);
  problem.show({ ...explained, ...more, again, retry: Boolean(explained.retry && again) });
}

// ---- showing ----

const number = (value, digits = 0) =>
  value.toLocaleString(language, { minimumFractionDigits: digits, maximumFractionDigits: digits });

function show() {
  const { session, running } = transport;
  const again = !running && session?.playable;
  byId("play").dataset.action = running ? "stop" : "play";
  put("play-text", t(running ? "stop" : "play"));
  byId("pause").disabled = session?.phase !== "playing" && !again;
  put("pause", t(again ? "replay" : session?.phase === "playing" && session.paused ? "resume" : "hold"));
  const saved = session && (session.complete || (!running && session.stream.received > 0));
  byId("download").disabled = !saved;
  put("status", statusText());
  showChip();
  document.title = session?.phase === "playing" ? `▶ ${t("title")}` : t("title");
  transport.show();
  showSaved();
  if (!session) return;
  if (session.phase === "asking" && queue.entry(session.requestId)) session.waits();
  session.observe();
  if (session.failure && session.phase !== "stopped") complain(session);
  const { playback, stream } = session;
  const factor = session.realTimeFactor;
  readAlong.follow(playback.playedSeconds);
  put("clock", clock(playback.playedSeconds));
  put("first", session.firstAudioMs === null ? "–" : `${number(session.firstAudioMs)} ms`);
  const { received } = stream;
  put("buffered", received ? t("seconds", { n: number(running ? session.bufferedSeconds : 0, 1) }) : "–");
  put("received", received ? `${number(received / 1000, received < 10_000 ? 1 : 0)} kB` : "–");
  put("factor", factor === null ? "–" : number(factor, factor < 0.1 ? 3 : 2));
}

function statusText() {
  const { session } = transport;
  if (!session) return "";
  const entry = queue.entry(session.requestId);
  if (session.phase === "asking" && entry) return t("waitingAt", { n: entry.position, wait: about(entry) });
  if (session.running && session.stream.resuming) return t("resuming");
  return t(session.phase === "playing" && session.paused ? "held" : session.phase);
}

function showChip() {
  const { status } = queue;
  const { session } = transport;
  const here = session?.phase !== "playing" ? "idle" : session.paused ? "held" : "playing";
  const now = locked ? "locked" : !status ? "unknown" : status.is_processing ? "busy" : here;
  byId("chip").dataset.state = now;
  put("chip-text", t(status?.waiting ? "busyWaiting" : now, { n: status?.waiting }));
}

function showWaiting() {
  const { session } = transport;
  showQueue(queue, { mine: session?.requestId, receiving: session?.receiving, locked });
}

function showRequest() {
  fields.follow(info?.capabilities ?? {}, isOpus());
  emotion.show();
  composer.showCount();
  const changed = Object.keys(fields.values).length;
  put("changed", changed ? t("changed", { n: changed }) : "");
  byId("reset").hidden = !changed;
  byId("bitrate-row").hidden = !isOpus();
  byId("bitrate").setAttribute("aria-valuetext", `${bitrate()} kb/s`);
  put("bitrate-text", `${bitrate()} kb/s`);
  put("method", t(`by_${chosen().name}`));
  put("snippet", snippet(document.querySelector("[name=code]:checked").value, request()));
  showSaved();
  if (edited) remember(DRAFT, state());
}

// From now on the page has a draft of its own, in place of the link that it may have been opened by.
function edit() {
  if (!edited && location.hash) window.history.replaceState(null, "", location.pathname + location.search);
  edited = true;
}

// The text is another one, or the dialogue.
function composed() {
  readAlong.uncover();
  showRequest();
}

function showSaved() {
  const saved = byId("save-as");
  const selected = saved.value;
  const names = formatsOf((transport.session?.method ?? chosen()).format, readAlong.words.length > 0);
  if ([...saved.options].map(({ value }) => value).join() === names.join()) return;
  saved.replaceChildren(...names.map((name) => new Option(t(name), name)));
  if (names.includes(selected)) saved.value = selected;
}

// Another voice is chosen, or there are others to choose from.
function voicesChanged() {
  composer.voicesChanged();
  const recordings = voices.list.filter(({ kind, available }) => kind !== "preset" && available);
  emotion.follow(info?.capabilities ?? {}, recordings);
  put("voice-count", t("voices", { n: voices.count }));
  showLoaded();
  showRequest();
}

function showLoaded() {
  if (info) describe(info, voices.count);
}

function showWords() {
  translate(document);
  const other = byId("language");
  other.textContent = t("other");
  other.lang = language === "zh" ? "en" : "zh-CN";
  showFormats();
  put("voice-count", t("voices", { n: voices.count }));
  for (const part of [voices, composer, emotion, fields, keyDialog, history, transport]) part.translate();
  showLoaded();
  problem.show(problem.shown);
  showRequest();
  showWaiting();
  show();
}

function showFormats() {
  const format = byId("format");
  const selected = format.value;
  const choices = methods.map((method) => new Option(t(method.format), method.format));
  format.replaceChildren(new Option(t("auto", { name: t(methods[0].format) }), ""), ...choices);
  format.value = selected;
  byId("save-as").replaceChildren();
}

async function flash(id, text) {
  try {
    await copyText(text);
  } catch (error) {
    report(error);
    return;
  }
  put(id, t("copied"));
  setTimeout(() => put(id, t(byId(id).dataset.text)), 1500);
}

// ---- beginning ----

async function load() {
  try {
    info = await json("model_info");
    composer.limit = info.max_text_characters;
    await voices.load(info.capabilities.voice_cloning === true);
    if (wanted) voices.name = wanted;
    wanted = "";
    voicesChanged();
    problem.show(null);
    lock(false);
  } catch (error) {
    if (error.status !== 401) report(error, begin);
  }
  // What depends on the engine takes its place before it is seen.
  await history.ready;
  delete document.body.dataset.loading;
}

function lock(on) {
  locked = on;
  byId("key").hidden = !locked && !hasKey();
  showWords();
}

function begin() {
  load();
  queue.reopen();
}

Object.assign(byId("bitrate"), { min: 0, max: BITRATES.length - 1, value: BITRATES.indexOf(DEFAULT_BITRATE) });
byId("play").addEventListener("click", (event) => (transport.running ? transport.stop() : play(event.timeStamp)));
byId("play").addEventListener("pointerenter", () => transport.prepare(rateOf(chosen())));
byId("pause").addEventListener("click", () => transport.toggle());
byId("download").addEventListener("click", () => {
  const { session } = transport;
  download(session.file(), byId("save-as").value, readAlong.words).catch((error) => report(error));
});
byId("share").addEventListener("click", () => flash("share", link(state())));
byId("copy-voice").addEventListener("click", () => flash("copy-voice", voices.name));
byId("copy").addEventListener("click", () => flash("copy", byId("snippet").textContent));
for (const kind of ["input", "click", "paste", "drop"]) byId("form").addEventListener(kind, edit, true);
byId("form").addEventListener("input", showRequest);
byId("form").addEventListener("submit", (event) => event.preventDefault());
byId("reset").addEventListener("click", () => {
  fields.reset();
  showRequest();
});
byId("language").addEventListener("click", () => {
  setLanguage(language === "zh" ? "en" : "zh");
  showWords();
});
addEventListener("keydown", (event) => {
  if (event.isComposing || event.repeat || document.querySelector("dialog[open]")) return;
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
    event.preventDefault();
    play(event.timeStamp);
  } else if (event.key === "Escape") {
    const { type, value } = event.target;
    if (type !== "search" || !value) transport.stop(); // a search with words is cleared by the browser
  }
});
addEventListener("pagehide", () => transport.stop());
addEventListener("hashchange", open);
setInterval(() => queue.status?.is_processing && showWaiting(), 1000);
byId("add-model").addEventListener("click", () => byId("models-dialog").showModal());
byId("key").addEventListener("click", () => keyDialog.open());
onRefused(() => {
  lock(true);
  keyDialog.open();
});
showFormats();
restore(shared() ?? recall(DRAFT) ?? { text: Object.values(SAMPLES[language])[1], voice: "" });
showWords();
load();

// A link to a text was opened in this tab.
function open() {
  const given = shared();
  if (!given) return;
  edited = false;
  readAlong.uncover();
  restore(given);
  if (wanted) voices.name = wanted;
  showWords();
}
