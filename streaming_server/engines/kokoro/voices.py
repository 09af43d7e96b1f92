"""Kokoro's voices: languages, genders, styles, and the assignment of recordings to voices."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from streaming_server.domain import FloatSamples, Gender, Voice, parse_blend
from streaming_server.engines.recording_voices import nearest_in_pitch
from streaming_server.errors import EngineFailed, VoiceUnknown

STYLES = 510
"""Number of rows of a voice, one per number of phonemes."""
_WIDTH = 256
_TIMBRE = 128
"""Number of values of a style that determine the timbre; the others determine durations and pitch."""
_LANGUAGES = {"a": "en-us", "b": "en-us", "j": "ja", "z": "cmn"}
"""By the first letter of a voice's name, as below."""
_LATIN_LANGUAGES = {"e": "es", "f": "fr", "i": "it", "p": "pt-br"}
"""Languages in Latin script other than English."""
_LANGUAGES |= {**_LATIN_LANGUAGES, "h": "hi"}
LATIN = frozenset({"en-us", *_LATIN_LANGUAGES.values()})
"""Languages in Latin script."""
_CODES = {"a": "en-US", "b": "en-GB", "e": "es", "f": "fr", "h": "hi", "i": "it", "j": "ja", "p": "pt-BR", "z": "zh"}
_GENDERS: dict[str, Gender] = {"f": "female", "m": "male"}
"""By the second letter."""
_NATIVE = {
    ("en-us", "f"): "af_heart",
    ("en-us", "m"): "am_michael",
    ("cmn", "f"): "zf_xiaoxiao",
    ("cmn", "m"): "zm_yunxi",
    ("es", "f"): "ef_dora",
    ("es", "m"): "em_alex",
    ("fr", "f"): "ff_siwis",
    ("it", "f"): "if_sara",
    ("it", "m"): "im_nicola",
    ("pt-br", "f"): "pf_dora",
    ("pt-br", "m"): "pm_alex",
    ("ja", "f"): "jf_alpha",
    ("ja", "m"): "jm_kumo",
    ("hi", "f"): "hf_alpha",
    ("hi", "m"): "hm_omega",
}
"""Voices that provide durations and pitch for a foreign language, by gender."""
OPENAI = {
    "alloy": "af_alloy",
    "echo": "am_echo",
    "fable": "bm_fable",
    "onyx": "am_onyx",
    "nova": "af_nova",
    "shimmer": "af_sky",
    "ash": "am_michael",
    "ballad": "bm_george",
    "coral": "af_bella",
    "sage": "af_sarah",
    "verse": "am_puck",
}
_BY_PITCH_HZ = {95.0: "am_onyx", 120.0: "am_michael", 185.0: "af_heart", 220.0: "af_nova"}
"""Candidates for recordings of other speakers."""


@dataclass(frozen=True, slots=True)
class Style:
    """The style of a voice for one language, shape ``(510, 256)``."""

    rows: FloatSamples

    def of(self, tokens: int) -> FloatSamples:
        """Return the row for a number of phonemes, shape ``(1, 256)``."""
        row = min(tokens, STYLES - 1)
        return self.rows[row : row + 1]


class VoiceStyles:
    """The voices of a folder, each read once."""

    def __init__(self, files: Mapping[str, Path]) -> None:
        self._files = files
        self._loaded: dict[str, FloatSamples] = {}

    def style(self, voice: str, language: str) -> Style:
        """Return the style of a voice or a blend for a language.

        The timbre is the weighted mean of all its voices. Durations and pitch are those of the voices of the language,
        or, if there is none, of a native voice of the same gender.

        Raises:
            VoiceUnknown: the voice does not exist.
            EngineFailed: a voice's file is damaged.
        """
        blend = [(OPENAI.get(name, name), weight) for name, weight in parse_blend(voice)]
        if unknown := [name for name, _ in blend if name not in self._files]:
            raise VoiceUnknown(unknown[0], list(self._files))
        natives = [(name, weight) for name, weight in blend if _LANGUAGES.get(name[0]) == language]
        if not natives:
            sex = blend[0][0][1:2]
            native = _NATIVE.get((language, sex if sex == "m" else "f"), "")
            natives = [(native, 1.0)] if native in self._files else list(blend)
        rows = self._mean(blend)
        rows[:, _TIMBRE:] = self._mean(natives)[:, _TIMBRE:]
        return Style(rows)

    def _mean(self, blend: Sequence[tuple[str, float]]) -> FloatSamples:
        total = sum(weight for _, weight in blend)
        mean = sum(self._rows(name) * np.float32(weight / total) for name, weight in blend)
        return np.asarray(mean, np.float32)

    def _rows(self, name: str) -> FloatSamples:
        if name not in self._loaded:
            self._loaded[name] = _read(self._files[name], name)
        return self._loaded[name]


def _read(path: Path, name: str) -> FloatSamples:
    try:
        if path.stem == name:
            rows = np.fromfile(path, np.float32)
        else:
            with np.load(path) as archive:
                rows = np.asarray(archive[name], np.float32)
        rows = rows.reshape(STYLES, _WIDTH)
    except (OSError, ValueError, KeyError) as error:
        raise EngineFailed(f"the voice {name} cannot be read from {path.name}: {error}") from error
    if not np.isfinite(rows).all():
        raise EngineFailed(f"the voice {name} in {path.name} holds numbers that are not finite")
    return rows


def latin_language(voice: str) -> str:
    """Return the language of a voice, or of the first one of a blend, for Latin script."""
    first = parse_blend(voice)[0][0]
    return _LATIN_LANGUAGES.get(OPENAI.get(first, first)[:1], "en-us")


def presets(files: Mapping[str, Path]) -> tuple[Voice, ...]:
    """Return the voices of a folder, with OpenAI's names for some of them."""
    named = {name: name for name in files} | {name: voice for name, voice in OPENAI.items() if voice in files}
    return tuple(
        Voice(
            name,
            is_preset=True,
            title=name.partition("_")[2].capitalize(),
            languages=tuple(filter(None, [_CODES.get(voice[0])])),
            gender=_GENDERS.get(voice[1:2]),
        )
        for name, voice in named.items()
    )


def voice_of_pitch(pitch_hz: float | None) -> str:
    """Return the voice nearest in pitch; the default one for a recording without a pitch."""
    if pitch_hz is None:
        return _NATIVE["en-us", "f"]
    return _BY_PITCH_HZ[nearest_in_pitch(_BY_PITCH_HZ, lambda hertz: hertz, pitch_hz)]
