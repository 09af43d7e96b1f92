// The page: what the controls do, and what they show.

import { hasKey, json, onRefused } from "./api.js";
import { Clip } from "./clip.js";
import { explain, refusedText } from "./errors.js";
import { Fields, RANGES } from "./fields.js";
import { SAMPLES, language, setLanguage, t, translate } from "./i18n.js";
import { KeyDialog } from "./key_dialog.js";
import { methods } from "./playback.js";
import { Queue } from "./queue.js";
import { Session } from "./session.js";
import { Speaker } from "./speaker.js";
import { Voices } from "./voices.js";
import { Waveform } from "./waveform.js";

const OPUS_RATE = 48000;
const BITRATES = [8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 512];
const DEFAULT_BITRATE = 32;
const SHOWN_WAITING = 4;
const TITLE_CHARACTERS = 80;

const byId = (id) => document.getElementById(id);
const speaker = new Speaker();
const waveform = new Waveform(byId("wave"));
const voices = new Voices(byId("voices"), silence);
const clip = new Clip(byId("clip"), () => {
  voices.quiet();
  stop();
});
const fields = new Fields(byId("fields"));
let info = null;
let session = null;
// Whether the server has refused a request for want of a key.
let locked = false;
// What is shown as wrong: {word, values, place, retry}, and `again`, what a retry does.
let trouble = null;

// What tests and curious people may read; nothing of it can be set.
window.playerState = Object.freeze({
  get phase() { return session?.phase ?? "idle"; },
  get method() { return session?.method.name ?? chosen().name; },
  get firstAudioMs() { session?.observe(); return session?.firstAudioMs ?? null; },
  get receivedBytes() { return session?.stream.received ?? 0; },
  get resumes() { return session?.stream.resumes ?? 0; },
  get sampleRate() { return session?.playback.rate ?? null; },
  get scheduledSamples() { return session?.playback.scheduledSamples ?? 0; },
  get playedSamples() { return session?.playback.playedSamples ?? 0; },
  get underruns() { return session?.playback.underruns ?? 0; },
  get drawnSlots() { return waveform.slots; },
  get contextTime() { return speaker.context?.currentTime ?? 0; },
  get level() { return speaker.level; },
});

// ---- asking ----

function chosen() {
  return methods.find((method) => method.format === byId("format").value) ?? methods[0];
}

function request() {
  const { format } = chosen();
  const body = { text: byId("text").value, reference_audio_index: voices.index, ...fields.values() };
  if (isOpus() && bitrate() !== DEFAULT_BITRATE) body.opus_bitrate = bitrate() * 1000;
  if (format === "pcm") return { path: "synthesize_stream", body };
  return { path: "synthesize_stream_opus", body: format === "ogg" ? body : { ...body, format } };
}

function isOpus() {
  return ["ogg", "webm"].includes(chosen().format);
}

function bitrate() {
  return BITRATES[byId("bitrate").value];
}

function curl() {
  const { path, body } = request();
  const quoted = JSON.stringify(body).replaceAll("'", "'\\''");
  const url = new URL(path, document.baseURI).href;
  const key = hasKey() ? ` -H "Authorization: Bearer $API_KEY"` : "";
  return `curl -N -X POST ${url}${key} -H 'Content-Type: application/json' -d '${quoted}' -o speech.${chosen().format}`;
}

// ---- playing ----

async function play(clicked) {
  session?.stop();
  voices.quiet();
  clip.clear();
  showTrouble(null);
  const refused = refusedText(byId("text").value, info?.max_text_characters);
  if (refused) {
    session = null;
    showTrouble(refused);
    show();
    return;
  }
  const method = chosen();
  speaker.wake(method.format === "pcm" ? (info?.sample_rate ?? OPUS_RATE) : OPUS_RATE);
  waveform.clear();
  if (navigator.mediaSession) {
    navigator.mediaSession.metadata = new MediaMetadata({ title: byId("text").value.slice(0, TITLE_CHARACTERS) });
  }
  const draw = (samples, rate) => waveform.add(samples, rate);
  const mine = new Session(method, request(), speaker, draw, () => clip.load(mine.file()), clicked);
  session = mine;
  const frame = () => {
    if (session !== mine) return;
    show();
    if (mine.running) requestAnimationFrame(frame);
  };
  frame();
  await mine.run();
  if (session !== mine) return;
  speaker.rest();
  show();
}

function stop() {
  if (!session?.running) return;
  session.stop();
  speaker.rest();
  show();
}

// A recording of a voice is about to be heard.
function silence() {
  stop();
  clip.pause();
}

function pause(paused) {
  if (session?.phase !== "playing") return false;
  session.pause(paused);
  show();
  return true;
}

// Lock screens and the keys of headsets.
function setMediaSession() {
  const media = navigator.mediaSession;
  media?.setActionHandler("play", () => pause(false) || clip.play());
  media?.setActionHandler("pause", () => pause(true) || clip.pause());
  media?.setActionHandler("stop", silence);
}

function complain(error) {
  if (trouble) return;
  showTrouble({ again: () => play(performance.now()), ...explain(error, session.stream.id !== null, RANGES) });
}

// Beside the control that caused it, which gets the focus if the user can correct it there.
function showTrouble(shown) {
  const same = trouble === shown;
  trouble = shown;
  const problem = byId("problem");
  problem.hidden = !trouble;
  const field = fields.mark(trouble?.place ?? null);
  byId("text").setAttribute("aria-invalid", trouble?.place === "text");
  if (!trouble) {
    put("error", "");
    return;
  }
  byId("retry").hidden = !trouble.retry;
  put("error", t(trouble.word, trouble.values));
  if (same) return;
  if (field) {
    byId("settings").open = true;
    fields.row(trouble.place).append(problem);
  } else {
    const anchor = { text: ".under-text", voice: "#voices" }[trouble.place] ?? ".transport";
    document.querySelector(anchor).after(problem);
  }
  const control = field ?? (trouble.place === "text" ? byId("text") : null);
  control?.focus();
}

function download() {
  const file = session.file();
  const link = Object.assign(document.createElement("a"), { href: URL.createObjectURL(file), download: file.name });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
}

// ---- showing ----

const number = (value, digits) =>
  value.toLocaleString(language, { minimumFractionDigits: digits, maximumFractionDigits: digits });

function show() {
  const running = session?.running ?? false;
  const button = byId("play");
  button.dataset.action = running ? "stop" : "play";
  put("play-text", t(running ? "stop" : "play"));
  byId("pause").disabled = session?.phase !== "playing";
  put("pause", t(session?.phase === "playing" && session.paused ? "resume" : "hold"));
  byId("download").disabled = !session?.complete && (running || !session?.stream.received);
  put("status", statusText());
  showChip();
  document.title = session?.phase === "playing" ? `▶ ${t("title")}` : t("title");
  if (!session) return;
  if (session.phase === "asking" && queue.entry(session.requestId)) session.waits();
  session.observe();
  if (session.failure && session.phase !== "stopped") complain(session.failure);
  const { playback, stream } = session;
  if (running && session.method.name === "mediasource") waveform.addLevel(playback.playedSeconds, speaker.level);
  waveform.played = playback.playedSeconds;
  waveform.draw();
  const factor = session.realTimeFactor;
  put("clock", clock(playback.playedSeconds));
  put("first", session.firstAudioMs === null ? "–" : `${number(session.firstAudioMs, 0)} ms`);
  const { received } = stream;
  put("buffered", received ? t("seconds", { n: number(running ? session.bufferedSeconds : 0, 1) }) : "–");
  put("received", received ? `${number(received / 1000, received < 10_000 ? 1 : 0)} kB` : "–");
  put("factor", factor === null ? "–" : number(factor, factor < 0.1 ? 3 : 2));
}

function statusText() {
  if (!session) return "";
  const entry = queue.entry(session.requestId);
  if (session.phase === "asking" && entry) return t("waitingAt", { n: entry.position, wait: about(entry) });
  if (session.stream.resuming) return t("resuming");
  return t(session.phase === "playing" && session.paused ? "held" : session.phase);
}

function about(entry) {
  return t("aboutSeconds", { n: number(Math.ceil(entry.expected_wait_seconds), 0) });
}

function clock(seconds) {
  const tenths = Math.floor(seconds * 10);
  const rest = tenths % 600;
  return `${Math.floor(tenths / 600)}:${String(Math.floor(rest / 10)).padStart(2, "0")}.${rest % 10}`;
}

// Writing what stands there already would make screen readers say it again.
function put(id, text) {
  const element = byId(id);
  if (element.textContent !== text) element.textContent = text;
}

function showChip() {
  const { status } = queue;
  const playing = session?.phase === "playing";
  const state = locked ? "locked" : !status ? "unknown" : status.is_processing ? "busy" : playing ? "playing" : "idle";
  byId("chip").dataset.state = state;
  put("chip-text", t(status?.waiting ? "busyWaiting" : state, { n: status?.waiting }));
}

function showQueue() {
  const { status } = queue;
  const panel = byId("queue");
  if (!status || (!status.is_processing && !status.waiting)) {
    panel.replaceChildren(element("p", "quiet", t(status ? "nobody" : locked ? "keyNeeded" : "lost")));
    return;
  }
  const list = element("ol", "");
  const current = status.current_request;
  if (current) {
    const elapsed = t("seconds", { n: number(queue.busySeconds, 0) });
    // Without previews the server sends no text.
    const text = current.text_preview || t(session?.receiving ? "you" : "someone");
    list.append(queueRow("now", t("now"), text, elapsed));
  }
  for (const entry of status.queue) {
    const mine = entry.request_id === session?.requestId;
    if (entry.position <= SHOWN_WAITING || mine) {
      list.append(queueRow(mine ? "mine" : "", entry.position, t(mine ? "you" : "someone"), about(entry)));
    }
  }
  panel.replaceChildren(list);
  const others = status.waiting - SHOWN_WAITING;
  if (others > 0) panel.append(element("p", "quiet", t("others", { n: others })));
}

function queueRow(className, ...cells) {
  const row = element("li", className);
  row.append(...cells.map((cell) => element("span", "", cell)));
  return row;
}

function element(tag, className, text = "") {
  return Object.assign(document.createElement(tag), { className, textContent: text });
}

function showRequest() {
  fields.follow(info?.capabilities ?? {}, isOpus());
  const changed = Object.keys(fields.values()).length;
  put("count", counted(byId("text").value));
  put("changed", changed ? t("changed", { n: changed }) : "");
  byId("reset").hidden = !changed;
  byId("bitrate-row").hidden = !isOpus();
  byId("bitrate").setAttribute("aria-valuetext", `${bitrate()} kb/s`);
  put("bitrate-text", `${bitrate()} kb/s`);
  put("method", t(`by_${chosen().name}`));
  put("curl", curl());
}

function counted(text) {
  const n = [...text].length;
  const limit = info?.max_text_characters;
  const count = t(limit ? "ofLimit" : "characters", { n, limit });
  return text.trim() ? t("estimated", { count, n: estimatedSeconds(text) }) : count;
}

// An average pace: a Chinese character or another syllable takes as long as three letters.
function estimatedSeconds(text) {
  const syllables = text.match(/[\p{scx=Han}\p{scx=Hangul}\p{scx=Hiragana}\p{scx=Katakana}]/gu)?.length ?? 0;
  return Math.max(1, Math.round(syllables / 4.5 + ([...text].length - syllables) / 15));
}

function showLoaded() {
  if (!info) return;
  const { engine, model_version: version, capabilities } = info;
  const known = ["hibari", "espeak", "indextts", "indextts2", "higgs"].includes(engine);
  const name = t(`engine_${known ? engine : "other"}`, { engine, version });
  const cloning = capabilities.voice_cloning === true;
  put("engine", t(cloning ? "loadedCloning" : "loadedFixed", { name, voices: t("voices", { n: voices.count }) }));
  byId("add-model").hidden = cloning;
  const rate = `${number(info.sample_rate / 1000)} kHz`;
  put("device", t("device", { engine: [`${engine} ${version}`, info.device, rate].join(" · ") }));
}

function showWords() {
  translate(document);
  const other = byId("language");
  other.textContent = t("other");
  other.lang = language === "zh" ? "en" : "zh-CN";
  const format = byId("format");
  const selected = format.value;
  const choices = methods.map((method) => new Option(t(method.format), method.format));
  format.replaceChildren(new Option(t("auto", { name: t(methods[0].format) }), ""), ...choices);
  format.value = selected;
  byId("samples").replaceChildren(...Object.entries(SAMPLES[language]).map(([name, text]) => sample(name, text)));
  put("voice-count", t("voices", { n: voices.count }));
  voices.translate();
  fields.translate();
  keyDialog.translate();
  showLoaded();
  showTrouble(trouble);
  showRequest();
  showQueue();
  show();
}

function sample(name, text) {
  const button = Object.assign(element("button", "", name), { type: "button" });
  button.addEventListener("click", () => {
    byId("text").value = text;
    byId("text").focus();
    showRequest();
  });
  return button;
}

async function copy() {
  const text = byId("curl").textContent;
  if (navigator.clipboard) {
    await navigator.clipboard.writeText(text);
  } else {
    // a page from plain HTTP has no clipboard of its own
    getSelection().selectAllChildren(byId("curl"));
    document.execCommand("copy");
    getSelection().removeAllRanges();
  }
  byId("copy").textContent = t("copied");
  setTimeout(() => (byId("copy").textContent = t("copy")), 1500);
}

// ---- beginning ----

async function load() {
  try {
    const [model, recordings] = await Promise.all([json("model_info"), json("reference_audios")]);
    info = model;
    voices.fill(recordings.reference_audios);
    showTrouble(null);
    lock(false);
  } catch (error) {
    if (error.status !== 401) showTrouble({ again: begin, ...explain(error, false, RANGES) });
  }
}

function lock(state) {
  locked = state;
  byId("key").hidden = !locked && !hasKey();
  showWords();
}

function begin() {
  load();
  queue.reopen();
}

const queue = new Queue(() => {
  showQueue();
  show();
});

const keyDialog = new KeyDialog(begin, begin);

Object.assign(byId("bitrate"), { min: 0, max: BITRATES.length - 1, value: BITRATES.indexOf(DEFAULT_BITRATE) });
byId("text").value = Object.values(SAMPLES[language])[1];
byId("play").addEventListener("click", (event) => (session?.running ? stop() : play(event.timeStamp)));
byId("pause").addEventListener("click", () => pause(!session.paused));
byId("download").addEventListener("click", download);
byId("copy").addEventListener("click", copy);
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
  if (document.querySelector("dialog[open]")) return;
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
    event.preventDefault();
    play(event.timeStamp);
  } else if (event.key === "Escape") {
    stop();
  }
});
addEventListener("pagehide", stop);
setInterval(() => queue.status?.is_processing && showQueue(), 1000);
byId("retry").addEventListener("click", () => trouble.again());
byId("add-model").addEventListener("click", () => byId("models-dialog").showModal());
byId("key").addEventListener("click", () => keyDialog.open());
onRefused(() => {
  lock(true);
  keyDialog.open();
});
setMediaSession();
showWords();
load();
