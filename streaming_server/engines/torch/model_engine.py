"""An engine around a model that one thread owns: loading, streaming, cancelling within one step."""

from __future__ import annotations

import asyncio
import logging
import os
import time
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Callable, Generator, Iterator
from contextlib import aclosing, closing, contextmanager, suppress
from typing import Any, Protocol, TypeVar

import pynvml
import torch

from streaming_server.domain import AudioChunk, SpeechRequest
from streaming_server.engines.base import EngineInfo
from streaming_server.engines.content_cache import FileDigests
from streaming_server.engines.indextts.stream import Audio
from streaming_server.engines.load import MAX_LOAD
from streaming_server.engines.threads import Check, OwnerThread, Steps, Waiting
from streaming_server.engines.torch.codes import CodeWriter
from streaming_server.engines.torch.faults import device_errors
from streaming_server.engines.torch.options import Device, Precision
from streaming_server.engines.torch.vocoding import VocoderThread
from streaming_server.errors import EngineNotReady, EngineUnavailable, InsufficientMemory, VoiceFileMissing

log = logging.getLogger(__name__)

T = TypeVar("T")

MAX_ROWS = 32
"""Most requests at a time."""

DTYPES: dict[Precision, torch.dtype] = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}


class Loaded(Protocol):
    """A loaded model; used by the owner thread only."""

    def synthesise(self, request: SpeechRequest) -> Audio:
        """The request's audio."""

    def step(self) -> bool:
        """Decode the next code of all requests; return whether there was any."""

    def has_room(self, active: int) -> bool:
        """As `Batching.has_room`."""

    def shrink(self) -> None:
        """Give back memory that later requests can do without: called after one did not fit."""

    def close(self) -> None: ...


class StartTimes:
    """How long the phases of a start take, in seconds."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        begun_s = time.perf_counter()
        yield
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - begun_s


class ModelEngine(ABC):
    """An ``Engine`` around one checkpoint.

    Args:
        device: ``auto`` takes CUDA, else MPS, else the CPU.
        precision: None takes fp16 on CUDA and fp32 elsewhere.

    Raises:
        EngineUnavailable: the device cannot be used, or cannot compute in that precision.
    """

    def __init__(self, device: Device, precision: Precision | None) -> None:
        self._device = choose_device(device)
        precision = precision or ("fp16" if self._device.type == "cuda" else "fp32")
        if precision == "fp16" and self._device.type == "cpu":
            raise EngineUnavailable("fp16 requires a GPU; use bf16 or fp32 on the CPU")
        self._precision = precision
        self._dtype = DTYPES[precision]
        self._owner = OwnerThread("indextts", self._step)
        self._rows = self._admitted = 1
        self._digests = FileDigests()
        self._loaded: Loaded | None = None

    @property
    @abstractmethod
    def info(self) -> EngineInfo:
        """What is loaded; known before ``warm`` has ended."""

    @abstractmethod
    def _load(self, times: StartTimes) -> Loaded:
        """Read the weights, record and synthesise once, each as a phase of ``times``. Runs on the owner thread."""

    def reserve(self, requests: int) -> None:
        self._rows = self._admitted = requests

    def has_room(self, active: int) -> bool:
        return self._loaded is None or (active < self._admitted and self._loaded.has_room(active))

    async def warm(self) -> None:
        if self._loaded is None:
            self._loaded = await self._owner.call(self._loaded_or_refused)

    async def prepare(self, request: SpeechRequest) -> None:
        """Hash the request's recordings, so that the slot is not held for it."""
        await asyncio.to_thread(digest_recordings, self._digests, request)

    async def stream(self, request: SpeechRequest) -> AsyncGenerator[AudioChunk, None]:
        """Chunks of the request's audio. Closing it stops the decoding within one code.

        Raises:
            EngineNotReady: ``warm`` has not ended.
            InsufficientMemory: the device has too little memory for the request.
            DeviceFailed: the device computes nothing any more.
            VoiceFileMissing: the voice's recording is gone.
            VoiceUnreadable: the voice's recording cannot be decoded.
        """
        loaded = self._loaded
        if loaded is None:
            raise EngineNotReady

        def steps(check: Check) -> Steps[AudioChunk]:
            with device_errors(self._device, self._shrink), closing(loaded.synthesise(request)) as audio:
                for samples in audio:
                    check()
                    if samples is None or isinstance(samples, Waiting):
                        yield samples
                    elif samples.size:
                        yield AudioChunk(samples)

        async with aclosing(self._owner.interleave(steps)) as chunks:
            async for chunk in chunks:
                yield chunk

    async def aclose(self) -> None:
        if self._loaded is not None:
            await self._owner.call(self._loaded.close)
            self._loaded = None
        await self._owner.aclose()

    def _step(self) -> bool:
        if self._loaded is None:
            return False
        with device_errors(self._device, self._shrink):
            return self._loaded.step()

    def _shrink(self) -> None:
        """After a request did not fit: serve half as many at a time from now on, and clear the caches."""
        self._admitted = max(1, self._admitted // 2)
        if self._loaded is not None:
            self._loaded.shrink()

    def _loaded_or_refused(self) -> Loaded:
        allow_tf32(self._dtype != torch.float32)
        try:
            times = StartTimes()
            with device_errors(self._device, lambda: None):
                loaded = self._load(times)
            phases = {f"{name}_s": round(seconds, 2) for name, seconds in times.seconds.items()}
            log.info("model loaded", extra={"fields": {"device": str(self._device), **phases}})
            return loaded
        except InsufficientMemory as error:
            raise EngineUnavailable(f"the device {self._device} has too little free memory for the model") from error


def keeps_deadlines(writer: CodeWriter, vocoder: VocoderThread, streams: int, code_s: float) -> bool:
    """Whether this number of streams is decoded and vocoded as fast as it is played, by the times measured so far.

    Args:
        writer: Decodes them.
        vocoder: Vocodes them.
        streams: Their number.
        code_s: Seconds of audio of a code.
    """
    decoding = writer.expected_step_s(streams) / code_s
    return max(decoding, streams * vocoder.load.s_per_audio_s) <= MAX_LOAD


def run_alone(work: Generator[Any, None, T], step: Callable[[], bool]) -> T:
    """Run what the owner thread would interleave with others; return its result."""
    while True:
        try:
            item = next(work)
        except StopIteration as end:
            result: T = end.value
            return result
        if isinstance(item, Waiting) and not step():
            time.sleep(0.001)  # for the vocoder's thread


def digest_recordings(digests: FileDigests, request: SpeechRequest) -> None:
    """Hash the recordings that a request names; a missing one is reported when it is analysed."""
    voices = [*request.voices]
    if request.emotion is not None and request.emotion.reference is not None:
        voices.append(request.emotion.reference)
    with suppress(VoiceFileMissing):
        for voice in voices:
            digests.of(voice.path)


def allow_tf32(allowed: bool) -> None:
    """Whether CUDA may round float32 products to 10 bits of mantissa: not where float32 was asked for.

    torch allows it for convolutions and not for matrix products unless it is told.
    """
    torch.backends.cudnn.allow_tf32 = allowed
    torch.backends.cuda.matmul.allow_tf32 = allowed


def unused_gpu() -> str | None:
    """Why torch uses no NVIDIA GPU although the driver shows one; None where it shows none."""
    try:
        pynvml.nvmlInit()
        if not pynvml.nvmlDeviceGetCount():
            return None
        name = pynvml.nvmlDeviceGetName(pynvml.nvmlDeviceGetHandleByIndex(0))
        driver = pynvml.nvmlSystemGetDriverVersion()
        version = pynvml.nvmlSystemGetCudaDriverVersion()  # 12040 for 12.4
    except pynvml.NVMLError:
        return None
    supported, needed = (version // 1000, version % 1000 // 10), torch.version.cuda
    if needed is None:
        return f"this torch is built without CUDA, and the driver shows {name}; install a torch built for CUDA"
    if supported < tuple(int(number) for number in needed.split(".")[:2]):
        return (
            f"the driver {driver} of {name} supports CUDA {supported[0]}.{supported[1]}, and this torch needs {needed};"
            " update the driver, or install a torch built for that version"
        )
    if (visible := os.environ.get("CUDA_VISIBLE_DEVICES")) is not None:
        return f"CUDA_VISIBLE_DEVICES={visible} hides {name}"
    return f"torch cannot initialise {name} (driver {driver}); `python -c 'import torch; torch.cuda.init()'` says why"


def choose_device(wanted: Device) -> torch.device:
    """The device to compute on.

    Raises:
        EngineUnavailable: the wanted device is not there.
    """
    if wanted == "auto" and not torch.cuda.is_available() and (problem := unused_gpu()):
        log.warning("GPU not used: %s", problem)
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    kind = next(kind for kind, there in available.items() if there) if wanted == "auto" else wanted
    if not available[kind]:
        raise unavailable(kind)
    return torch.device(kind, 0) if kind == "cuda" else torch.device(kind)


def unavailable(device: str) -> EngineUnavailable:
    """The error for a device that torch does not find, with the reason where the driver shows a GPU."""
    problem = unused_gpu() if device.startswith("cuda") and not torch.cuda.is_available() else None
    problem = problem or "torch finds none; use --device auto"
    return EngineUnavailable(f"the device {device} is not available: {problem}")
