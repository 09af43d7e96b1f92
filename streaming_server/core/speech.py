"""From a request to encoded bytes: slot → engine → samples → encoder → unsent bytes.

Three tasks run side by side, none waiting for the one after it: the synthesis, which alone holds the slot; the
encoding; the reader, who is the caller. Knows neither HTTP nor any engine or format in particular.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing, asynccontextmanager, suppress
from dataclasses import asdict, dataclass
from enum import StrEnum
from functools import partial

import anyio
import numpy as np

from streaming_server.audio.encoders import AudioEncoder
from streaming_server.audio.pcm import to_int16
from streaming_server.core.lane import EncodeLane
from streaming_server.core.slot import Slot
from streaming_server.core.unsent import UnsentBudget, UnsentBuffer
from streaming_server.domain import IntSamples, SpeechRequest
from streaming_server.engines.base import Engine
from streaming_server.errors import EngineFailed, EngineNotReady, SpeechServerError, VoiceFileMissing

log = logging.getLogger(__name__)

_IDLE_FLUSH_S = 0.1
"""What an encoder holds back to save overhead goes out once nothing has for this long."""
_UNENCODED_LIMIT_S = 600
"""The slot is kept by a synthesis that is further ahead of its encoder than this."""


class EngineState(StrEnum):
    LOADING = "loading"
    READY = "healthy"
    FAILED = "unhealthy"


@dataclass(slots=True)
class SpeechStats:
    """What one stream has come to, for the log; seconds since the request unless said otherwise."""

    wait_s: float | None = None
    """Until the slot was entered."""
    first_audio_s: float | None = None
    """Until the first encoded audio."""
    synthesis_s: float = 0.0
    """How long the slot was held."""
    audio_s: float = 0.0
    """Duration of the audio made so far."""


class SpeechService:
    """The engine behind its slot."""

    def __init__(self, engine: Engine, slot: Slot, lane: EncodeLane, budget: UnsentBudget) -> None:
        self.engine = engine
        self.slot = slot
        self.state = EngineState.LOADING
        self._lane = lane
        self._budget = budget

    async def warm(self) -> None:
        """Make the engine ready.

        Raises:
            SpeechServerError: it never will be; ``state`` says so too.
        """
        try:
            await self.engine.warm()
        except Exception:
            self.state = EngineState.FAILED
            raise
        self.state = EngineState.READY

    async def aclose(self) -> None:
        """Free the engine and the encoding threads."""
        self.state = EngineState.LOADING
        await self.engine.aclose()
        self._lane.close()

    @asynccontextmanager
    async def open(self, request: SpeechRequest, encoder: AudioEncoder) -> AsyncIterator[SpeechStream]:
        """Begin a synthesis; leaving the ``with`` ends it wherever it is and frees the slot.

        Whatever goes wrong is raised by the stream's ``read``: `QueueFull`, `QueueTimeout`, `VoiceFileMissing`,
        `VoiceUnreadable`, `EngineFailed`, `ReaderTooSlow`.

        Raises:
            EngineNotReady: the engine is loading, or has failed to.
        """
        if self.state is not EngineState.READY:
            raise EngineNotReady
        if request.verbose:
            log.info("speech request", extra={"fields": asdict(request)})
        stream = SpeechStream(request, encoder, self.engine, self.slot, self._lane, self._budget.open())
        try:
            yield stream
        finally:
            with anyio.CancelScope(shield=True):
                await stream.aclose()
            self._budget.discard(stream.unsent)


class SpeechStream:
    """One text on its way to one reader."""

    def __init__(
        self,
        request: SpeechRequest,
        encoder: AudioEncoder,
        engine: Engine,
        slot: Slot,
        lane: EncodeLane,
        unsent: UnsentBuffer,
    ) -> None:
        self._request = request
        self._encoder = encoder
        self._engine = engine
        self._slot = slot
        self._lane = lane
        self._rate_hz = engine.info.sample_rate_hz
        self._samples = _SampleQueue(_UNENCODED_LIMIT_S * self._rate_hz)
        self._began_s = time.monotonic()
        self.unsent = unsent
        self.stats = SpeechStats()
        self._tasks = [
            asyncio.create_task(self._guard(self._synthesise, self._samples.end)),
            asyncio.create_task(self._guard(self._encode, unsent.end)),
        ]

    async def read(self) -> bytes:
        """The next encoded bytes, waiting for some; empty at the end."""
        return await self.unsent.read()

    async def aclose(self) -> None:
        """Stop wherever it is; returns when the slot is free."""
        for task in self._tasks:
            task.cancel()
        for task in self._tasks:
            with suppress(asyncio.CancelledError):
                await task

    async def _guard(self, work: Callable[[], Awaitable[None]], end: Callable[[BaseException | None], None]) -> None:
        """Hand the outcome of one task on to the next."""
        try:
            await work()
        except SpeechServerError as error:
            end(error)
        except Exception:
            log.exception("the synthesis failed")
            end(EngineFailed())
        else:
            end(None)

    async def _synthesise(self) -> None:
        voice = self._request.voice
        async with self._slot.enter(self._request.text, voice.index):
            entered_s = time.monotonic()
            self.stats.wait_s = entered_s - self._began_s
            if not voice.path.is_file():
                raise VoiceFileMissing(voice.path.name)
            try:
                async with aclosing(self._engine.stream(self._request)) as chunks:
                    async for chunk in chunks:
                        if not np.isfinite(chunk.samples).all():
                            raise EngineFailed("the speech engine made samples that are not numbers")
                        self.stats.audio_s += chunk.samples.size / self._rate_hz
                        await self._samples.put(to_int16(chunk.samples))
            finally:
                self.stats.synthesis_s = time.monotonic() - entered_s

    async def _encode(self) -> None:
        encoder, rate_hz = self._encoder, self._rate_hz
        header = encoder.start(rate_hz)
        encoded, ended = 0, False
        sent_s = time.monotonic()
        try:
            while not ended:
                # 25 ms make one packet, whatever a resampler keeps; later a larger share at once costs fewer turns.
                share = min(max(encoded, rate_hz // 40), rate_hz // 2)
                samples = await self._samples.take(share, sent_s + _IDLE_FLUSH_S - time.monotonic())
                if samples is None:
                    piece = encoder.flush()
                    sent_s = time.monotonic()
                elif samples.size:
                    push = partial(encoder.push, samples)
                    # One packet costs less than the way to a thread and back, and somebody waits for this one.
                    piece = await self._lane.run(encoded, push) if encoded else push()
                    encoded += samples.size
                else:
                    piece = await self._lane.run(encoded, encoder.finish)
                    ended = True
                if header and (piece or ended):
                    piece, header = header + piece, b""
                if piece:
                    sent_s = time.monotonic()
                    self.stats.first_audio_s = self.stats.first_audio_s or sent_s - self._began_s
                    self.unsent.push(piece)
        except BaseException:
            self._tasks[0].cancel()  # nobody takes its samples any more
            raise


class _SampleQueue:
    """Samples between the synthesis and its encoder; bounded, since they are larger than what they become."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._chunks: deque[IntSamples] = deque()
        self._size = 0
        self._ended = False
        self._error: BaseException | None = None
        self._filled = asyncio.Event()
        self._drained = asyncio.Event()

    async def put(self, samples: IntSamples) -> None:
        """Add samples, waiting while there are too many."""
        if not samples.size:
            return
        while self._size > self._limit:
            self._drained.clear()
            await self._drained.wait()
        self._chunks.append(samples)
        self._size += samples.size
        self._filled.set()

    def end(self, error: BaseException | None) -> None:
        """No more comes."""
        self._ended, self._error = True, error
        self._filled.set()

    async def take(self, most: int, timeout_s: float) -> IntSamples | None:
        """1 to ``most`` samples; none at the end; None where nothing came in time.

        Raises:
            BaseException: what the samples ended with, once all have been taken.
        """
        while not self._chunks:
            if self._ended:
                if self._error is not None:
                    raise self._error
                return np.empty(0, np.int16)
            self._filled.clear()
            try:
                async with asyncio.timeout(timeout_s):
                    await self._filled.wait()
            except TimeoutError:
                return None
        taken: list[IntSamples] = []
        missing = most
        while self._chunks and missing:
            chunk = self._chunks.popleft()
            if chunk.size > missing:
                self._chunks.appendleft(chunk[missing:])
                chunk = chunk[:missing]
            taken.append(chunk)
            missing -= chunk.size
        self._size -= most - missing
        self._drained.set()
        return np.concatenate(taken)
