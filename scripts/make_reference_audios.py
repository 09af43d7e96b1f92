"""Make ``reference_audios/voice_01.wav`` … ``voice_11.wav``: one recording of each espeak-ng preset.

Usage: python scripts/make_reference_audios.py [FOLDER]
"""

from __future__ import annotations

import sys
from pathlib import Path

import av
import numpy as np

from streaming_server.audio.pcm import to_float32
from streaming_server.audio.pitch import median_pitch_hz
from streaming_server.domain import IntSamples
from streaming_server.engines.espeak.library import EspeakLibrary
from streaming_server.engines.espeak.voices import COMMENT, PRESETS

TEXT = "This is a reference recording. It says how the voice sounds, at its own pace."


def main(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    library = EspeakLibrary()
    for number, preset in enumerate(PRESETS, 1):
        chunks: list[IntSamples] = []
        library.speak(TEXT, "en-us", preset.timbre, lambda chunk, chunks=chunks: chunks.append(chunk) or True)  # type: ignore[misc]
        samples = np.concatenate(chunks)
        path = folder / f"voice_{number:02}.wav"
        with av.open(path, "w") as container:
            container.metadata["comment"] = COMMENT + preset.name
            stream = container.add_stream("pcm_s16le", rate=library.sample_rate_hz, layout="mono")
            frame = av.AudioFrame.from_ndarray(samples[np.newaxis], format="s16", layout="mono")
            frame.sample_rate = library.sample_rate_hz
            container.mux(stream.encode(frame))
            container.mux(stream.encode(None))
        pitch_hz = median_pitch_hz(to_float32(samples), library.sample_rate_hz)
        print(f"{path}  {preset.name:8} {samples.size / library.sample_rate_hz:.2f} s  {pitch_hz:.0f} Hz")
    library.close()


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "reference_audios"))
