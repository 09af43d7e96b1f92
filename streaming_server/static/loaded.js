// What is loaded: the engine in words, its device and its rate.

import { byId, put } from "./dom.js";
import { language, t } from "./i18n.js";

const KNOWN_ENGINES = ["hibari", "espeak", "indextts", "indextts2", "higgs", "kokoro", "pocket"];

// `info`: the answer of `model_info`; `count`: the number of voices.
export function describe({ engine, model_version: version, sample_rate: rate, device, capabilities }, count) {
  const name = t(`engine_${KNOWN_ENGINES.includes(engine) ? engine : "other"}`, { engine, version });
  const cloning = capabilities.voice_cloning === true;
  put("engine", t(cloning ? "loadedCloning" : "loadedFixed", { name, voices: t("voices", { n: count }) }));
  byId("add-model").hidden = cloning;
  const digits = rate % 1000 ? 2 : 0;
  const kilohertz = (rate / 1000).toLocaleString(language, { minimumFractionDigits: digits, maximumFractionDigits: digits });
  put("device", t("device", { engine: [`${engine} ${version}`, device, `${kilohertz} kHz`].join(" · ") }));
}
