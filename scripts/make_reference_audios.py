"""Make the recordings that the project brings: ``voice_01.wav`` … ``voice_11.wav``, one of each hibari preset, and
the voice prompt ``belinda.wav`` with what it says in ``belinda.txt``. The same input gives the same samples.

Usage: python scripts/make_reference_audios.py [FOLDER [FOLDER OF VOICE PROMPTS]]
"""

from __future__ import annotations

import sys
from pathlib import Path

import av
import numpy as np

from streaming_server.audio.pcm import to_int16
from streaming_server.audio.pitch import median_pitch_hz
from streaming_server.engines.hibari.joins import trimmed
from streaming_server.engines.hibari.network import SAMPLE_RATE_HZ, Network
from streaming_server.engines.hibari.rendering import render
from streaming_server.engines.hibari.voices import PRESETS
from streaming_server.engines.onnx.english import EnglishPhonemes

TEXT = "This is a reference recording. It says how the voice sounds, at its own pace."
PROMPTS = {"belinda": "coral"}
"""Presets, by the names of the voice prompts."""
SEED = 0


def main(folder: Path, prompts: Path) -> None:
    frames = trimmed(Network().run(EnglishPhonemes()(TEXT)))
    by_name = {preset.name: preset for preset in PRESETS}
    wanted = [(folder / f"voice_{number:02}.wav", preset) for number, preset in enumerate(PRESETS, 1)]
    wanted += [(prompts / f"{name}.wav", by_name[preset]) for name, preset in PROMPTS.items()]
    for path, preset in wanted:
        path.parent.mkdir(parents=True, exist_ok=True)
        samples = np.concatenate(list(render(frames, preset.timbre, np.random.default_rng(SEED))))
        with av.open(path, "w") as container:
            stream = container.add_stream("pcm_s16le", rate=SAMPLE_RATE_HZ, layout="mono")
            frame = av.AudioFrame.from_ndarray(to_int16(samples)[np.newaxis], format="s16", layout="mono")
            frame.sample_rate = SAMPLE_RATE_HZ
            container.mux(stream.encode(frame))
            container.mux(stream.encode(None))
        pitch_hz = median_pitch_hz(samples, SAMPLE_RATE_HZ)
        print(f"{path}  {preset.name:8} {samples.size / SAMPLE_RATE_HZ:.2f} s  {pitch_hz:.0f} Hz")
    for name in PROMPTS:
        (prompts / f"{name}.txt").write_text(TEXT + "\n")


if __name__ == "__main__":
    given = [Path(argument) for argument in sys.argv[1:3]]
    main(*given, *[Path("reference_audios"), Path("examples/voice_prompts")][len(given) :])
