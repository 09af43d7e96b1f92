// A text, its voice and its settings as the fragment of a link, which browsers send to no server.

// `state`: {text or turns, voices of the speakers of a text, voice, settings}.
export function link(state) {
  const { text, turns, voices, voice, settings } = state;
  const query = new URLSearchParams();
  if (turns) query.set("turns", JSON.stringify(turns));
  else query.set("text", text);
  if (voices) query.set("voices", JSON.stringify(voices));
  if (voice) query.set("voice", voice);
  if (Object.keys(settings).length) query.set("settings", JSON.stringify(settings));
  const url = new URL(location.href);
  url.hash = query.toString();
  return url.href;
}

// The state of this page's address, or null.
export function shared() {
  const query = new URLSearchParams(location.hash.slice(1));
  if (!query.has("text") && !query.has("turns")) return null;
  const [turns, voices, settings] = ["turns", "voices", "settings"].map((name) => parsed(query.get(name)));
  return {
    ...(Array.isArray(turns) ? { turns } : { text: query.get("text") ?? "", voices }),
    voice: query.get("voice") ?? "",
    settings: settings && typeof settings === "object" ? settings : {},
  };
}

function parsed(text) {
  try {
    return JSON.parse(text);
  } catch {
    return null;
  }
}
