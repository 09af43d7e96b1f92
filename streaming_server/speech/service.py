"""Runs speech requests: the engine, its slot, and the streams."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import asdict, dataclass, replace
from enum import StrEnum

import anyio

from streaming_server.audio.encoders import AudioEncoder
from streaming_server.audio.stretch import stretched
from streaming_server.domain import Capability, SpeechRequest
from streaming_server.engines.base import Engine, Selective
from streaming_server.errors import DeviceFailed, EngineNotReady, StreamNotFound
from streaming_server.speech.buffers import ByteBudget, ByteLimits
from streaming_server.speech.dialogue import engine_requests
from streaming_server.speech.encoder_pool import EncoderPool
from streaming_server.speech.slot import Slot
from streaming_server.speech.stream import SpeechStats, SpeechStream

log = logging.getLogger(__name__)

_USUAL_DRAIN_S = 0.2
MAX_KEPT_STREAMS = 64
"""Maximum number of streams kept for resuming; their audio has a separate limit."""


class EngineState(StrEnum):
    LOADING = "loading"
    READY = "ready"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Resumption:
    """How long a stream is kept after a disconnect."""

    keep_s: float
    """Retention after the last reader has left."""
    grace_s: float
    """Time for which the synthesis of a resumable stream continues."""


class SpeechService:
    """Runs speech requests: one slot, one engine, any number of streams."""

    def __init__(
        self,
        engine: Engine,
        slot: Slot,
        encoders: EncoderPool,
        limits: ByteLimits,
        resumption: Resumption,
        max_characters: int,
        observe: Callable[[str, SpeechStats], None] = lambda *_: None,
    ) -> None:
        """
        Args:
            engine: the engine.
            slot: entered for each synthesis.
            encoders: runs the encoders.
            limits: limits on the bytes that streams hold.
            resumption: how long streams are kept.
            max_characters: maximum length of an incremental text.
            observe: called with ``live`` or ``job`` when the reader that opened a stream leaves it.
        """
        self.engine = engine
        self.slot = slot
        self.state = EngineState.LOADING
        self.device_failed = asyncio.Event()
        """Set when the engine's device has failed: only a new process can use it."""
        self.budget = ByteBudget(limits)
        self._encoders = encoders
        self._resumption = resumption
        self._max_characters = max_characters
        self._observe = observe
        self._streams: dict[str, SpeechStream] = {}
        self._expiries: dict[str, asyncio.TimerHandle] = {}
        """Timers of the streams without a reader, in order of expiry."""
        self._closing: set[asyncio.Task[None]] = set()
        self._first_read: set[SpeechStream] = set()

    @property
    def draining(self) -> int:
        """Number of requests that are still being sent more than `_USUAL_DRAIN_S` after the end of the synthesis."""
        return sum(stream.drained_for_s > _USUAL_DRAIN_S for stream in self._first_read)

    @property
    def streams(self) -> list[SpeechStream]:
        """All streams, oldest first; may be read from any thread."""
        return list(self._streams.values())

    @property
    def encoder_waiters(self) -> int:
        """Number of streams that wait for an encoder thread."""
        return self._encoders.waiting

    def refusal(self, request: SpeechRequest) -> str:
        """Why the engine cannot synthesise a complete text, as `Selective.refusal`; empty if it can."""
        if not isinstance(self.engine, Selective) or request.pieces is not None:
            return ""
        found = map(self.engine.refusal, engine_requests(self.engine.info, request))
        return next(filter(None, found), "")

    async def warm(self) -> None:
        """Load the engine.

        Raises:
            SpeechServerError: the engine cannot start; ``state`` is then ``FAILED``.
        """
        try:
            await self.engine.warm()
        except DeviceFailed as error:
            self._fail(error)
            raise
        except Exception:
            self.state = EngineState.FAILED
            raise
        self.state = EngineState.READY

    async def aclose(self) -> None:
        """End all streams; release the engine and the encoder threads."""
        self.state = EngineState.LOADING
        while self._streams:
            await self.discard(next(iter(self._streams)))
        await asyncio.gather(*self._closing)
        await self.engine.aclose()
        self._encoders.close()

    @asynccontextmanager
    async def open(
        self,
        request: SpeechRequest,
        encoder: AudioEncoder,
        *,
        keep: bool = False,
        resumable: bool = False,
        batch: bool = False,
        is_admitted: bool = False,
    ) -> AsyncIterator[SpeechStream]:
        """Start a synthesis; leaving the ``with`` ends it and frees the slot.

        The number of audio codes is limited to the engine's maximum.

        Errors of the synthesis are raised by reading: `QueueFull`, `QueueTimeout`, `VoiceFileMissing`,
        `VoiceUnreadable`, `InsufficientMemory`, `EngineFailed`, `ReaderTooSlow`; of an incremental text also
        `ForbiddenCharacter` and `TextTooLong`.

        Args:
            request: the request.
            encoder: a new encoder.
            keep: keep the bytes for `resume`.
            resumable: with ``keep``, continue the synthesis of a complete text for a while after a disconnect.
            batch: a job, which waits behind live requests without a limit.
            is_admitted: as for `Slot.enter`: the text continues one that has held the slot before.

        Raises:
            EngineNotReady: the engine is loading or has failed to load.
        """
        if self.state is not EngineState.READY:
            raise EngineNotReady
        if request.verbose:
            log.info("speech request", extra={"fields": asdict(replace(request, pieces=None))})
        info = self.engine.info
        for asked, capability in ((request.scene, Capability.SCENE), (request.own_voices, Capability.SMART_VOICE)):
            if asked and capability not in info.capabilities:
                log.info("capability missing: the %s engine has no %s; the option is ignored", info.name, capability)
        if info.max_mel_tokens is not None and request.generation.max_mel_tokens > info.max_mel_tokens:
            request = replace(request, generation=replace(request.generation, max_mel_tokens=info.max_mel_tokens))
        tempo = 1.0 if Capability.SPEED in info.capabilities else request.speed
        encoder = stretched(encoder, tempo)
        is_continued = keep and resumable and request.pieces is None and self._resumption.keep_s > 0
        grace_s = self._resumption.grace_s if is_continued else 0.0
        buffer = self.budget.open()
        stream = SpeechStream(
            request,
            encoder,
            self.engine,
            self.slot,
            self._encoders,
            buffer,
            grace_s,
            batch=batch,
            max_characters=self._max_characters,
            is_admitted=is_admitted,
            on_device_failure=self._fail,
            tempo=tempo,
        )
        self._streams[stream.id] = stream
        self._first_read.add(stream)
        try:
            async with self._reading(stream, keep=keep):
                yield stream
        finally:
            self._observe("job" if batch else "live", stream.stats)
            self._first_read.discard(stream)

    @asynccontextmanager
    async def resume(self, stream_id: str) -> AsyncIterator[SpeechStream]:
        """Read a kept stream again.

        Raises:
            StreamNotFound: the stream does not exist or has expired.
        """
        stream = self._streams.get(stream_id)
        if stream is None:
            raise StreamNotFound
        async with self._reading(stream, keep=True):
            yield stream

    async def discard(self, stream_id: str) -> None:
        """End a stream, release the slot if it holds it, and remove it.

        Raises:
            StreamNotFound: the stream does not exist or has expired.
        """
        if expiry := self._expiries.pop(stream_id, None):
            expiry.cancel()
        stream = self._streams.pop(stream_id, None)
        if stream is None:
            raise StreamNotFound
        await stream.aclose()
        self.budget.discard(stream.buffer)

    def _fail(self, error: DeviceFailed) -> None:
        """Reject further requests and end all running and waiting ones."""
        self.state = EngineState.FAILED
        self.device_failed.set()
        for stream in self.streams:
            stream.abort(error)

    @asynccontextmanager
    async def _reading(self, stream: SpeechStream, *, keep: bool) -> AsyncIterator[None]:
        if expiry := self._expiries.pop(stream.id, None):
            expiry.cancel()
        stream.attach()
        try:
            yield
        finally:
            with anyio.CancelScope(shield=True):
                await stream.detach()
                if stream.id in self._streams and not stream.is_read:
                    # Without the id, which is announced with the first byte, no client can resume it.
                    keep = keep and stream.is_announced and self._resumption.keep_s > 0
                    await self._keep(stream) if keep else await self.discard(stream.id)

    async def _keep(self, stream: SpeechStream) -> None:
        loop = asyncio.get_running_loop()
        self._expiries[stream.id] = loop.call_later(self._resumption.keep_s, self._expire, stream.id)
        while len(self._expiries) > MAX_KEPT_STREAMS or self._idle_bytes > self.budget.limits.kept:
            await self.discard(next(iter(self._expiries)))

    @property
    def _idle_bytes(self) -> int:
        """Number of bytes held by streams without a reader, encoded or not."""
        return sum(self._streams[stream_id].held_bytes for stream_id in self._expiries)

    def _expire(self, stream_id: str) -> None:
        async def discard() -> None:
            with suppress(StreamNotFound):  # another request has ended it
                await self.discard(stream_id)

        task = asyncio.create_task(discard())
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)
