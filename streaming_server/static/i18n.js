// The page's own words in two languages. What the server says is shown as it says it.

import * as en from "./words_en.js";
import * as zh from "./words_zh.js";

export const WORDS = { en: en.WORDS, zh: zh.WORDS };
export const HINTS = { en: en.HINTS, zh: zh.HINTS };
export const SAMPLES = { en: en.SAMPLES, zh: zh.SAMPLES };
export const DIALOGUE = { en: en.DIALOGUE, zh: zh.DIALOGUE };

const STORED = "player-language";

export let language = stored() ?? (navigator.language.toLowerCase().startsWith("zh") ? "zh" : "en");

// A word with its values; numbers in the language's own form. Words with plural forms choose theirs by `n`.
export function t(key, values = {}) {
  const word = WORDS[language][key];
  const form = typeof word === "string" ? word : word[new Intl.PluralRules(language).select(values.n)] ?? word.other;
  return form.replace(/\{(\w+)\}/g, (_, name) => {
    const value = values[name];
    return typeof value === "number" ? value.toLocaleString(language) : value;
  });
}

export function setLanguage(name) {
  language = name;
  try {
    localStorage.setItem(STORED, name);
  } catch {
    // a browser that stores nothing asks again next time
  }
}

// Every element that names its words.
export function translate(root) {
  document.documentElement.lang = language === "zh" ? "zh-CN" : "en";
  for (const element of root.querySelectorAll("[data-text]")) element.textContent = t(element.dataset.text);
  for (const element of root.querySelectorAll("[data-label]")) {
    element.setAttribute("aria-label", t(element.dataset.label));
  }
  for (const element of root.querySelectorAll("[data-placeholder]")) {
    element.placeholder = t(element.dataset.placeholder);
  }
}

function stored() {
  try {
    const name = localStorage.getItem(STORED);
    return name in WORDS ? name : null;
  } catch {
    return null;
  }
}
