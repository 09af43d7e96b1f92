// What is wrong, beside the control that caused it.

import { byId, put } from "./dom.js";
import { t } from "./i18n.js";

const ANCHORS = { text: ".under-text", voice: "#voices", history: "#history" };

export class Problem {
  // {word, values, place, retry, control}, and `again`, what a retry does.
  shown = null;
  #fields;

  constructor(fields) {
    this.#fields = fields;
    byId("retry").addEventListener("click", () => this.shown.again());
  }

  // Shows it, or nothing for null. The control gets the focus if the user can correct it there.
  show(problem) {
    const same = this.shown === problem;
    this.shown = problem;
    const box = byId("problem");
    box.hidden = !problem;
    const field = this.#fields.mark(problem?.place ?? null);
    byId("text").setAttribute("aria-invalid", problem?.place === "text");
    if (!problem) {
      put("error", "");
      return;
    }
    byId("retry").hidden = !problem.retry;
    put("error", t(problem.word, problem.values));
    if (same) return;
    if (field) {
      byId("settings").open = true;
      this.#fields.row(problem.place).append(box);
    } else {
      document.querySelector(ANCHORS[problem.place] ?? ".transport").after(box);
    }
    (field ?? problem.control)?.focus();
  }
}
