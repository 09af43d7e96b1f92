"""The acoustic network: phonemes to spectra and fundamental frequency, one column per 12.5 ms."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import hibari
import numpy as np
import numpy.typing as npt
from hibari import dsp

from streaming_server.domain import FloatSamples
from streaming_server.engines.onnx.session import open_session
from streaming_server.errors import EngineFailed, EngineUnavailable

SAMPLE_RATE_HZ = 24000
BINS = dsp.N_FFT // 2 + 1
FRAME_S = dsp.HOP / SAMPLE_RATE_HZ
VOICED_HZ = 40.0
"""A fundamental frequency below this value marks an unvoiced frame."""
_ASSETS = Path(hibari.__file__).parent / "assets"
_OUTPUTS = ["lh", "theta", "ln", "lr", "phi", "f0"]
_DURATIONS = "/Cast_32_output_0"
"""The value inside the network with the duration of each phoneme, in steps of `_STEP_FRAMES`."""
_STEP_FRAMES = 2


@dataclass(frozen=True, slots=True)
class Frames:
    """The output of the network for one clause. Spectra have the shape ``(601, n)``, in frames of 12.5 ms."""

    harmonic: FloatSamples
    """Log magnitude of the harmonics of ``f0_hz``."""
    harmonic_phase: FloatSamples
    """Its hyperbolic tangent times pi is their phase."""
    noise: FloatSamples
    """Log magnitude of the noise."""
    free: FloatSamples
    """Log magnitude of a component whose phase is free."""
    free_phase: FloatSamples
    """In radians."""
    f0_hz: FloatSamples
    """Shape ``(n,)``; below ``VOICED_HZ`` for unvoiced frames."""
    ends: npt.NDArray[np.int64] | None = None
    """For a complete clause: the frame at which the first phoneme begins and each character of the phonemes ends, shape
    ``(characters + 1,)``. None for a part, and if the network has no durations."""

    @property
    def spectra(self) -> tuple[FloatSamples, ...]:
        """The five spectra, in the order of ``hibari.dsp.synth``."""
        return self.harmonic, self.harmonic_phase, self.noise, self.free, self.free_phase

    def take(self, columns: slice | npt.NDArray[np.intp]) -> Frames:
        """Return a part of the frames, without ``ends``."""
        harmonic, harmonic_phase, noise, free, free_phase = (spectrum[:, columns] for spectrum in self.spectra)
        return Frames(harmonic, harmonic_phase, noise, free, free_phase, self.f0_hz[columns])


class Network:
    """The network of the package's voice, on one CPU thread."""

    def __init__(self) -> None:
        """
        Raises:
            EngineUnavailable: the installed hibari-tts has unsupported outputs.
        """
        self.version = version("hibari-tts")
        self._session = open_session(_ASSETS / "hibari.onnx", inner=_DURATIONS)
        self._ids: dict[str, int] = json.loads((_ASSETS / "vocab.json").read_text(encoding="utf-8"))
        outputs = [output.name for output in self._session.get_outputs()]
        self._outputs = list(outputs)
        if outputs[len(_OUTPUTS) :] == [_DURATIONS]:
            outputs.pop()
        if outputs != _OUTPUTS or dsp.SR != SAMPLE_RATE_HZ or dsp.N_FFT != 4 * dsp.HOP:
            raise EngineUnavailable(
                f"hibari-tts {self.version} does not fit the hibari engine: its network has the outputs {outputs}, "
                f"not {_OUTPUTS}; install hibari-tts 0.2.1"
            )

    def run(self, phonemes: str) -> Frames:
        """Phonemes in misaki's alphabet to frames; characters outside the vocabulary are dropped.

        Raises:
            EngineFailed: the network returned no frames, or numbers that are not finite.
        """
        ids: Sequence[int] = [0, *(self._ids[character] for character in phonemes if character in self._ids), 0]
        inputs = {"ids": np.array([ids], np.int64), "speed": np.ones(1, np.float32)}
        values = [np.asarray(value) for value in self._session.run(self._outputs, inputs)]
        outputs = [value[0] for value in values[: len(_OUTPUTS)]]
        harmonic, harmonic_phase, noise, free, free_phase, f0_hz = outputs
        ends = None
        if len(values) > len(_OUTPUTS) and values[-1].shape == (len(ids),):
            # the first duration is that of the silence before the clause
            last = np.cumsum([0, *(character in self._ids for character in phonemes)])
            ends = _STEP_FRAMES * np.cumsum(values[-1])[last]
        frames = Frames(harmonic, harmonic_phase, noise, free, free_phase, f0_hz, ends)
        n = frames.f0_hz.size
        if not n or any(spectrum.shape != (BINS, n) for spectrum in frames.spectra):
            raise EngineFailed(f"the hibari network returned the shapes {[output.shape for output in outputs]}")
        if not all(np.isfinite(output).all() for output in outputs):
            raise EngineFailed("the hibari network returned numbers that are not finite")
        return frames
