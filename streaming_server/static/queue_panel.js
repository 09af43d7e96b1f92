// The queue as a list.

import { byId, element } from "./dom.js";
import { language, t } from "./i18n.js";

const SHOWN_WAITING = 4;

// `mine`: the request of this page; `receiving`: whether the server is sending to it; `locked`: whether a key is missing.
export function showQueue(queue, { mine, receiving, locked }) {
  const { status } = queue;
  const panel = byId("queue");
  if (!status || (!status.is_processing && !status.waiting)) {
    panel.replaceChildren(element("p", "quiet", t(status ? "nobody" : locked ? "keyNeeded" : "lost")));
    return;
  }
  const list = element("ol", "");
  const current = status.current_request;
  if (current) {
    const elapsed = t("seconds", { n: Math.round(queue.busySeconds) });
    // Without previews the server sends no text.
    list.append(row("now", t("now"), current.text_preview || t(receiving ? "you" : "someone"), elapsed));
  }
  let others = status.waiting;
  for (const entry of status.queue) {
    const own = entry.request_id === mine;
    if (entry.position <= SHOWN_WAITING || own) {
      others--;
      list.append(row(own ? "mine" : "", entry.position.toLocaleString(language), t(own ? "you" : "someone"), about(entry)));
    }
  }
  panel.replaceChildren(list);
  if (others > 0) panel.append(element("p", "quiet", t("others", { n: others })));
}

// How long an entry is going to wait.
export function about(entry) {
  return t("aboutSeconds", { n: Math.ceil(entry.expected_wait_seconds) });
}

function row(className, ...cells) {
  return element("li", className, ...cells.map((cell) => element("span", "", cell)));
}
