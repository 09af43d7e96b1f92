// A text, its voice and its settings as the fragment of a link, which browsers send to no server.

// `state`: {text or turns, voice, settings}.
export function link(state) {
  const { text, turns, voice, settings } = state;
  const query = new URLSearchParams();
  if (turns) query.set("turns", JSON.stringify(turns));
  else query.set("text", text);
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
  const [turns, settings] = ["turns", "settings"].map((name) => parsed(query.get(name)));
  return {
    ...(Array.isArray(turns) ? { turns } : { text: query.get("text") ?? "" }),
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
