// Short names for what the modules do with the document.

import { PageError } from "./errors.js";

export const byId = (id) => document.getElementById(id);

export function element(tag, className, ...content) {
  const made = Object.assign(document.createElement(tag), { className });
  made.append(...content);
  return made;
}

export function button(className, text, onClick) {
  const made = Object.assign(element("button", className, text), { type: "button" });
  made.addEventListener("click", onClick);
  return made;
}

// Writing what stands there already would make screen readers say it again.
export function put(id, text) {
  const target = byId(id);
  if (target.textContent !== text) target.textContent = text;
}

// Saves a file where the browser keeps downloads.
export function save(file) {
  const link = Object.assign(document.createElement("a"), { href: URL.createObjectURL(file), download: file.name });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
}

// Into the clipboard.
//
// Throws a PageError if the browser does not allow it.
export async function copyText(text) {
  try {
    await navigator.clipboard.writeText(text);
    return;
  } catch {
    // without a secure context a page has no clipboard of its own
  }
  const holder = Object.assign(element("textarea", "hidden"), { value: text });
  document.body.append(holder);
  holder.select();
  const isCopied = document.execCommand("copy");
  holder.remove();
  if (!isCopied) throw new PageError("notCopied");
}

// What a browser keeps for the page, by name; null where it keeps nothing.
export function recall(name) {
  try {
    return JSON.parse(localStorage.getItem(name));
  } catch {
    return null;
  }
}

export function remember(name, value) {
  try {
    if (value === null) localStorage.removeItem(name);
    else localStorage.setItem(name, JSON.stringify(value));
  } catch {
    // a browser that stores nothing, or no more
  }
}
