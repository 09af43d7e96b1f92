// The page: what the controls do, and what they show.

import { Fields } from "./fields.js";
import { SAMPLES, language, setLanguage, t, translate } from "./i18n.js";
import { methods } from "./playback.js";
import { Queue } from "./queue.js";
import { Session } from "./session.js";
import { Speaker } from "./speaker.js";
import { ServerError, refusal } from "./stream.js";
import { Voices } from "./voices.js";
import { Waveform } from "./waveform.js";

const OPUS_RATE = 48000;
const BITRATES = [8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 512];
const DEFAULT_BITRATE = 32;
const SHOWN_WAITING = 4;

const byId = (id) => document.getElementById(id);
const speaker = new Speaker();
const waveform = new Waveform(byId("wave"));
const voices = new Voices(byId("voices"));
const fields = new Fields(byId("fields"));
let info = null;
let session = null;

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
  const opus = format === "ogg" || format === "webm";
  const body = { text: byId("text").value, reference_audio_index: voices.index, ...fields.values(opus) };
  if (opus && bitrate() !== DEFAULT_BITRATE) body.opus_bitrate = bitrate() * 1000;
  if (format === "pcm") return { path: "synthesize_stream", body };
  return { path: "synthesize_stream_opus", body: format === "ogg" ? body : { ...body, format } };
}

function bitrate() {
  return BITRATES[byId("bitrate").value];
}

function curl() {
  const { path, body } = request();
  const quoted = JSON.stringify(body).replaceAll("'", "'\\''");
  const url = new URL(path, document.baseURI).href;
  return `curl -N -X POST ${url} -H 'Content-Type: application/json' -d '${quoted}' -o speech.${chosen().format}`;
}

// ---- playing ----

async function play(clicked) {
  session?.stop();
  voices.quiet();
  const method = chosen();
  speaker.wake(method.format === "pcm" ? (info?.sample_rate ?? OPUS_RATE) : OPUS_RATE);
  waveform.clear();
  byId("error").hidden = true;
  fields.mark([]);
  const mine = new Session(method, request(), speaker, (samples, rate) => waveform.add(samples, rate), clicked);
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

function complain(error) {
  if (!byId("error").hidden) return;
  const cut = error instanceof TypeError || error.name === "AbortError";
  put("error", cut ? t(session.stream.id ? "broken" : "unreachable") : error.message);
  byId("error").hidden = false;
  if (!(error instanceof ServerError)) return;
  const control = fields.mark(error.fields);
  if (control) {
    byId("settings").open = true;
    control.focus();
  }
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
  byId("download").disabled = running || !session?.stream.received;
  put("status", statusText());
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
  return t(session.phase);
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

function showQueue() {
  const { status } = queue;
  const state = !status ? "unknown" : status.is_processing ? "busy" : "idle";
  byId("chip").dataset.state = state;
  put("chip-text", t(status?.waiting ? "busyWaiting" : state, { n: status?.waiting }));
  const panel = byId("queue");
  if (!status || (!status.is_processing && !status.waiting)) {
    panel.replaceChildren(element("p", "quiet", t(status ? "nobody" : "lost")));
    return;
  }
  const list = element("ol", "");
  const current = status.current_request;
  if (current) {
    const elapsed = t("seconds", { n: number(queue.busySeconds, 0) });
    list.append(queueRow("now", t("now"), current.text_preview, elapsed));
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
  const { format } = chosen();
  const changed = Object.keys(fields.values(true)).length;
  put("count", t("characters", { n: number([...byId("text").value].length, 0) }));
  put("changed", changed ? t("changed", { n: changed }) : "");
  byId("reset").hidden = !changed;
  byId("bitrate").disabled = format !== "ogg" && format !== "webm";
  byId("bitrate").setAttribute("aria-valuetext", `${bitrate()} kb/s`);
  put("bitrate-text", `${bitrate()} kb/s`);
  put("method", t(`by_${chosen().name}`));
  put("curl", curl());
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

async function json(path) {
  const response = await fetch(path);
  if (!response.ok) throw await refusal(response);
  return response.json();
}

async function load() {
  const [model, recordings] = await Promise.all([json("model_info"), json("reference_audios")]);
  info = model;
  const rate = `${number(info.sample_rate / 1000)} kHz`;
  byId("engine").textContent = [`${info.engine} ${info.model_version}`, info.device, rate].join(" · ");
  voices.fill(recordings.reference_audios);
  showWords();
}

const queue = new Queue(() => {
  showQueue();
  show();
});

Object.assign(byId("bitrate"), { min: 0, max: BITRATES.length - 1, value: BITRATES.indexOf(DEFAULT_BITRATE) });
byId("text").value = Object.values(SAMPLES[language])[1];
byId("play").addEventListener("click", (event) => (session?.running ? stop() : play(event.timeStamp)));
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
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
    event.preventDefault();
    play(event.timeStamp);
  } else if (event.key === "Escape") {
    stop();
  }
});
addEventListener("pagehide", stop);
setInterval(() => queue.status?.is_processing && showQueue(), 1000);
showWords();
load().catch((error) => {
  byId("error").textContent = error instanceof ServerError ? error.message : t("unreachable");
  byId("error").hidden = false;
});
