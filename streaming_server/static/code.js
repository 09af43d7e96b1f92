// The request that the page sends, as lines for a terminal, for Python and for JavaScript.

import { hasKey } from "./api.js";

// OpenAI's route takes no longer text.
const OPENAI_MAX_CHARACTERS = 4096;
const OPENAI_FORMATS = { ogg: "opus", mp3: "mp3" };
const OPENAI_FIELDS = new Set(["text", "voice", "emo_text", "speed", "format"]);

// `kind`: curl, python or javascript. `body`: of `POST /player/speech`.
export function snippet(kind, body) {
  return { curl, python, javascript }[kind](body);
}

const address = (path) => new URL(path, document.baseURI).href;
const fileName = (body) => `speech.${body.format ?? "ogg"}`;

function curl(body) {
  const quoted = JSON.stringify(body).replaceAll("'", "'\\''");
  const key = hasKey() ? ` -H "Authorization: Bearer $API_KEY"` : "";
  const content = "-H 'Content-Type: application/json'";
  return `curl -N -X POST ${address("player/speech")}${key} ${content} -d '${quoted}' -o ${fileName(body)}`;
}

function python(body) {
  return openaiTakes(body) ? openai(body) : urllib(body);
}

function openaiTakes(body) {
  return (
    Object.keys(body).every((name) => OPENAI_FIELDS.has(name)) &&
    body.text.length <= OPENAI_MAX_CHARACTERS &&
    !/\[SPEAKER\d+\]/.test(body.text) &&
    (body.format ?? "ogg") in OPENAI_FORMATS
  );
}

function openai(body) {
  const format = OPENAI_FORMATS[body.format ?? "ogg"];
  const lines = [
    `model="tts-1",`,
    body.voice && `voice=${JSON.stringify(body.voice)},`,
    `input=${literal(body.text)},`,
    body.emo_text && `instructions=${literal(body.emo_text)},`,
    body.speed && `speed=${body.speed},`,
    `response_format="${format}",`,
  ];
  const key = hasKey() ? `os.environ["API_KEY"]` : `"none"`;
  return [
    ...(hasKey() ? ["import os", ""] : []),
    "from openai import OpenAI",
    "",
    `client = OpenAI(base_url="${address("v1")}", api_key=${key})`,
    "with client.audio.speech.with_streaming_response.create(",
    ...lines.filter(Boolean).map((line) => `    ${line}`),
    ") as response:",
    `    response.stream_to_file("speech.${format}")`,
  ].join("\n");
}

// What OpenAI's route has no field for.
function urllib(body) {
  const key = hasKey() ? [`    "Authorization": "Bearer " + os.environ["API_KEY"],`] : [];
  const fields = Object.entries(body).map(([name, value]) => `    "${name}": ${literal(value)},`);
  return [
    "import json",
    ...(hasKey() ? ["import os"] : []),
    "import shutil",
    "import urllib.request",
    "",
    "body = {",
    ...fields,
    "}",
    "headers = {",
    `    "Content-Type": "application/json",`,
    ...key,
    "}",
    "request = urllib.request.Request(",
    `    "${address("player/speech")}", json.dumps(body).encode(), headers`,
    ")",
    `with urllib.request.urlopen(request) as response, open("${fileName(body)}", "wb") as file:`,
    "    shutil.copyfileobj(response, file)",
  ].join("\n");
}

// JSON is Python but for three words, and for letters outside the basic plane, which it may hold as they are.
function literal(value) {
  if (value === true) return "True";
  if (value === false) return "False";
  return value === null ? "None" : JSON.stringify(value);
}

function javascript(body) {
  const key = hasKey() ? [`    Authorization: \`Bearer \${process.env.API_KEY}\`,`] : [];
  const json = JSON.stringify(body, null, 2).replaceAll("\n", "\n  ");
  return [
    `import { writeFile } from "node:fs/promises";`,
    "",
    `const response = await fetch("${address("player/speech")}", {`,
    `  method: "POST",`,
    "  headers: {",
    `    "Content-Type": "application/json",`,
    ...key,
    "  },",
    `  body: JSON.stringify(${json}),`,
    "});",
    "if (!response.ok) throw new Error(await response.text());",
    `await writeFile("${fileName(body)}", response.body);`,
  ].join("\n");
}
