"""Make the recordings that the project brings: ``voice_01.wav`` … ``voice_11.wav``, one of each espeak-ng preset, and
the voice prompt ``belinda.wav`` with what it says in ``belinda.txt``.

Usage: python scripts/make_reference_audios.py [FOLDER [FOLDER OF VOICE PROMPTS]]
"""

from __future__ import annotations

import sys
from pathlib import Path

import av
import numpy as np

from streaming_server.audio.pcm import to_float32
from streaming_server.audio.pitch import median_pitch_hz
from streaming_server.engines.espeak.library import EspeakLibrary, find_files
from streaming_server.engines.espeak.voices import PRESETS

TEXT = "This is a reference recording. It says how the voice sounds, at its own pace."
PROMPTS = {"belinda": "coral"}
"""Presets, by the names of the voice prompts."""


def main(folder: Path, prompts: Path) -> None:
    library = EspeakLibrary(*find_files())
    by_name = {preset.name: preset for preset in PRESETS}
    wanted = [(folder / f"voice_{number:02}.wav", preset) for number, preset in enumerate(PRESETS, 1)]
    wanted += [(prompts / f"{name}.wav", by_name[preset]) for name, preset in PROMPTS.items()]
    for path, preset in wanted:
        path.parent.mkdir(parents=True, exist_ok=True)
        chunks: list[bytes] = []
        library.speak(TEXT, "en-us", preset.timbre, chunks.append)
        samples = np.frombuffer(b"".join(chunks), np.int16)
        with av.open(path, "w") as container:
            stream = container.add_stream("pcm_s16le", rate=library.sample_rate_hz, layout="mono")
            frame = av.AudioFrame.from_ndarray(samples[np.newaxis], format="s16", layout="mono")
            frame.sample_rate = library.sample_rate_hz
            container.mux(stream.encode(frame))
            container.mux(stream.encode(None))
        pitch_hz = median_pitch_hz(to_float32(samples), library.sample_rate_hz)
        print(f"{path}  {preset.name:8} {samples.size / library.sample_rate_hz:.2f} s  {pitch_hz:.0f} Hz")
    for name in PROMPTS:
        (prompts / f"{name}.txt").write_text(TEXT + "\n")


if __name__ == "__main__":
    given = [Path(argument) for argument in sys.argv[1:3]]
    main(*given, *[Path("reference_audios"), Path("examples/voice_prompts")][len(given) :])
