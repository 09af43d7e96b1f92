// Text files as text to speak.

// More than any text that the server takes.
const MAX_BYTES = 1_000_000;
const SRT_TIME = /^\s*(\d+:)?\d+:\d+[.,]\d+\s*-->.*$/;

// The words of a .txt, .md or .srt file.
//
// Throws an Error whose message is the word of what is wrong.
export async function readText(file) {
  if (file.size > MAX_BYTES) throw new Error("fileTooLarge");
  let text;
  try {
    text = new TextDecoder("utf-8", { fatal: true }).decode(await file.arrayBuffer()); // a folder cannot be read
  } catch {
    throw new Error("fileNotText");
  }
  // eslint-disable-next-line no-control-regex
  if (/[\u0000-\u0008]/.test(text)) throw new Error("fileNotText");
  text = text.replaceAll("\r\n", "\n");
  if (/\.(srt|vtt)$/i.test(file.name)) return subtitles(text);
  return /\.md$/i.test(file.name) ? markdown(text) : text.trim();
}

// The lines between the times, without their numbers.
function subtitles(text) {
  const blocks = text.split(/\n\s*\n/).map((block) => {
    const lines = block.split("\n");
    const time = lines.findIndex((line) => SRT_TIME.test(line));
    return time < 0 ? "" : lines.slice(time + 1).join(" ");
  });
  return blocks.map((block) => block.replaceAll(/<[^>]*>|\{[^}]*\}/g, "").trim()).filter(Boolean).join("\n");
}

// What is read aloud of Markdown: no code, no addresses, no marks.
function markdown(text) {
  return text
    .replaceAll(/^---\n[\s\S]*?\n---\n/g, "")
    .replaceAll(/^(```|~~~)[\s\S]*?^\1[^\n]*$/gm, "")
    .replaceAll(/<!--[\s\S]*?-->/g, "")
    .replaceAll(/!\[([^\]]*)\]\([^)]*\)/g, "$1")
    .replaceAll(/\[([^\]]+)\](\([^)]*\)|\[[^\]]*\])/g, "$1")
    .replaceAll(/^[ \t]{0,3}(#{1,6}|>|[-*+]|\d+\.)[ \t]+/gm, "")
    .replaceAll(/^[ \t]*([-*_][ \t]*){3,}$/gm, "")
    .replaceAll(/(\*\*|__|~~|`)(.+?)\1/g, "$2")
    .replaceAll(/(^|[\s(])([*_])(\S.*?)\2(?=[\s.,;:!?)]|$)/gm, "$1$3")
    .replaceAll(/\n{3,}/g, "\n\n")
    .trim();
}
