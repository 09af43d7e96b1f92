"""The network: phonemes and a style to samples, in one cancellable call of ONNX Runtime."""

from __future__ import annotations

import mmap
import sys
from collections.abc import Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnxruntime

from streaming_server.domain import FloatSamples
from streaming_server.engines.onnx.convolutions import as_products
from streaming_server.engines.onnx.session import additional_output
from streaming_server.errors import EngineFailed, EngineUnavailable

SAMPLE_RATE_HZ = 24000
_ERRORS_ONLY = 3
_DURATIONS = "/encoder/Clip_output_0"
"""The value inside the published network with the duration of each token, in steps of `_STEP` samples."""
_STEP = 600
_CUDA = "CUDAExecutionProvider"


@dataclass(frozen=True, slots=True)
class Speech:
    """The output of the network for one piece."""

    samples: FloatSamples
    """Shape ``(n,)``."""
    ends: npt.NDArray[np.int64] | None
    """The sample at which the first token begins and each of them ends, shape ``(tokens + 1,)``; None if the network
    does not tell."""


def available_device(device: str) -> str:
    """Return ``cuda`` or ``cpu`` for ``auto``, ``cuda`` or ``cpu``.

    Raises:
        EngineUnavailable: ONNX Runtime does not support CUDA.
    """
    providers = onnxruntime.get_available_providers()
    has_cuda = _CUDA in providers
    if device == "cuda" and not has_cuda:
        raise EngineUnavailable(
            f"DEVICE=cuda: ONNX Runtime offers {', '.join(providers)} only; install onnxruntime-gpu for CUDA"
        )
    if not has_cuda or device == "cpu":
        return "cpu"
    if hasattr(onnxruntime, "preload_dlls"):  # since 1.21; finds CUDA and cuDNN where pip installs them
        with redirect_stdout(sys.stderr):  # it prints what is missing
            onnxruntime.preload_dlls()
    return "cuda"


class Network:
    """A session of the model."""

    def __init__(self, model: Path, device: str) -> None:
        """``device``: the result of `available_device`.

        Raises:
            EngineUnavailable: the file cannot be used.
        """
        options = onnxruntime.SessionOptions()
        # Spinning threads would take CPU time from the encoders of other streams.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.log_severity_level = _ERRORS_ONLY
        wanted = [_CUDA] if device == "cuda" else []
        try:
            content: Path | bytes = model
            if not wanted and _contains(model, [b"ConvInteger"]):
                content = as_products(model.read_bytes())
            if _contains(model, [_DURATIONS.encode()]):
                content = (content if isinstance(content, bytes) else model.read_bytes()) + additional_output(
                    _DURATIONS
                )
            self._session = onnxruntime.InferenceSession(content, options, providers=[*wanted, "CPUExecutionProvider"])
        except Exception as error:  # those of ONNX Runtime have no public base class
            raise EngineUnavailable(f"{model.name} cannot be loaded: {error}") from error
        self.device = "cuda" if _CUDA in self._session.get_providers() else "cpu"
        """Where it computes: without a usable CUDA, ONNX Runtime logs the reason and selects the CPU."""
        inputs = {value.name: value.type for value in self._session.get_inputs()}
        self._tokens = next((name for name in ("input_ids", "tokens") if name in inputs), "")
        if not self._tokens or not {"style", "speed"} <= inputs.keys():
            raise EngineUnavailable(f"{model.name} is not a Kokoro model: its inputs are {', '.join(inputs)}")
        self.has_speed = "float" in inputs["speed"]
        """Whether the network takes any speed; an integer input can only be 1, 2, 3 …"""
        self.is_repeatable = not _contains(model, (b"RandomNormal", b"RandomUniform"))
        """Whether the same input gives the same samples."""

    def run(self, tokens: Sequence[int], style: FloatSamples, speed: float, stop: onnxruntime.RunOptions) -> Speech:
        """Synthesise a piece; without samples if ``stop.terminate`` was set.

        Raises:
            EngineFailed: the network fails, or returns numbers that are not finite.
        """
        inputs = {
            self._tokens: np.array([[0, *tokens, 0]], np.int64),
            "style": style,
            "speed": np.array([speed], np.float32 if self.has_speed else np.int32),
        }
        try:
            found, *inner = (
                np.asarray(value, np.float32).reshape(-1) for value in self._session.run(None, inputs, stop)
            )
        except Exception as error:  # as above
            if stop.terminate:
                return Speech(np.empty(0, np.float32), None)
            raise EngineFailed(f"the kokoro network failed: {error}") from error
        if not np.isfinite(found).all():
            raise EngineFailed("the kokoro network returned numbers that are not finite")
        for durations in inner:
            ends = np.cumsum(durations)
            if durations.size == len(tokens) + 2 and round(ends[-1] * _STEP) == found.size:
                return Speech(found, (ends[:-1] * _STEP).astype(np.int64))
        return Speech(found, None)


def _contains(model: Path, names: Sequence[bytes]) -> bool:
    with model.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        return any(content.find(name) >= 0 for name in names)
