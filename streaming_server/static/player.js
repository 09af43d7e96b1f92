// Plays raw PCM while it arrives: it needs no decoder, so it works in every browser and on plain-HTTP addresses too.

const byId = (id) => document.getElementById(id);
const form = byId("form"), play = byId("play"), stop = byId("stop"), status = byId("status");
let running = null;

async function fillVoices() {
  const listed = await (await fetch("/reference_audios")).json();
  for (const voice of listed.reference_audios) {
    byId("voice").add(new Option(`${voice.index} · ${voice.filename}`, voice.index));
  }
}

async function explain(response) {
  const detail = (await response.json().catch(() => ({}))).detail ?? response.statusText;
  return Array.isArray(detail) ? detail.map((problem) => problem.msg).join("; ") : detail;
}

async function speak(context, signal) {
  const clicked = performance.now();
  const body = { text: byId("text").value, reference_audio_index: Number(byId("voice").value || 0) };
  const response = await fetch("/synthesize_stream", {
    method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body), signal,
  });
  if (!response.ok) throw new Error(await explain(response));
  const rate = Number(response.headers.get("X-Sample-Rate"));
  const reader = response.body.getReader();
  let rest = new Uint8Array(0), end = 0, seconds = 0;
  for (;;) {
    const { done, value } = await reader.read();
    if (done) break;
    const bytes = new Uint8Array(rest.length + value.length);
    bytes.set(rest);
    bytes.set(value, rest.length);
    const count = bytes.length >> 1;
    rest = bytes.slice(count * 2);
    if (!count) continue;
    const samples = new DataView(bytes.buffer);
    const buffer = context.createBuffer(1, count, rate);
    const channel = buffer.getChannelData(0);
    for (let i = 0; i < count; i++) channel[i] = samples.getInt16(i * 2, true) / 32768;
    const source = context.createBufferSource();
    source.buffer = buffer;
    source.connect(context.destination);
    if (!seconds) status.textContent = `First audio after ${Math.round(performance.now() - clicked)} ms`;
    end = Math.max(end, context.currentTime);
    source.start(end);
    end += buffer.duration;
    seconds += buffer.duration;
  }
  status.textContent += ` · ${seconds.toFixed(1)} s of speech`;
  const left = (end - context.currentTime) * 1000;
  await new Promise((resolve) => {
    const timer = setTimeout(resolve, left);
    signal.addEventListener("abort", () => { clearTimeout(timer); resolve(); });
  });
}

form.addEventListener("submit", async (event) => {
  event.preventDefault();
  const context = new AudioContext();
  running = new AbortController();
  play.disabled = true;
  stop.disabled = false;
  status.textContent = "…";
  try {
    await context.resume();
    await speak(context, running.signal);
  } catch (error) {
    status.textContent = error.name === "AbortError" ? "Stopped 已停止" : error.message;
  } finally {
    await context.close();
    play.disabled = false;
    stop.disabled = true;
  }
});

stop.addEventListener("click", () => running?.abort());
fillVoices();
