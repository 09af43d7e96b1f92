"""One text on its way to a reader: a task for the synthesis, a task for the encoding, bytes to be read.

Neither task waits for the one after it, but for the bounds of `buffers`. Knows neither HTTP nor any engine or format in
particular.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections.abc import Awaitable, Callable
from contextlib import aclosing, suppress
from dataclasses import dataclass
from functools import partial

import numpy as np

from streaming_server.audio.encoders import AudioEncoder
from streaming_server.audio.pcm import to_int16
from streaming_server.domain import SpeechRequest
from streaming_server.engines.base import Engine
from streaming_server.errors import ClientLeft, EngineFailed, InsufficientMemory, SpeechServerError, VoiceFileMissing
from streaming_server.speech.buffers import SampleQueue, StreamBuffer
from streaming_server.speech.dialogue import perform
from streaming_server.speech.encoder_pool import EncoderPool
from streaming_server.speech.slot import Slot

log = logging.getLogger(__name__)

_IDLE_FLUSH_S = 0.1
"""What an encoder holds back to save overhead goes out once nothing has for this long."""
_UNENCODED_LIMIT_S = 600
"""The slot is kept by a synthesis that is further ahead of its encoder than this."""


@dataclass(slots=True)
class SpeechStats:
    """What one stream has come to, for the log; seconds since the request unless said otherwise."""

    position: int = 0
    """Place in the queue at arrival; 0 where the slot was free."""
    wait_s: float | None = None
    """Until the slot was entered."""
    first_audio_s: float | None = None
    """Until the first encoded audio."""
    synthesis_s: float = 0.0
    """How long the slot was held."""
    audio_s: float = 0.0
    """Duration of the audio made so far."""


class SpeechStream:
    """A synthesis and its encoded bytes, for as long as they are of use to somebody."""

    def __init__(
        self,
        request: SpeechRequest,
        encoder: AudioEncoder,
        engine: Engine,
        slot: Slot,
        lane: EncoderPool,
        buffer: StreamBuffer,
        grace_s: float,
        *,
        batch: bool,
    ) -> None:
        """
        Args:
            request: what to say.
            encoder: a new one.
            engine: who speaks.
            slot: entered for the synthesis.
            lane: where the encoding happens.
            buffer: where the bytes go.
            grace_s: how long the synthesis goes on without a reader; 0 ends it at once.
            batch: as for `Slot.enter`.
        """
        self._request = request
        self._encoder = encoder
        self._engine = engine
        self._slot = slot
        self._lane = lane
        self.rate_hz = engine.info.sample_rate_hz
        self._samples = SampleQueue(_UNENCODED_LIMIT_S * self.rate_hz)
        self._began_s = time.monotonic()
        self._spoken_s: float | None = None
        self._grace_s = grace_s
        self._batch = batch
        self._patience: asyncio.TimerHandle | None = None
        self._readers = 0
        self._is_read = asyncio.Event()
        self.is_announced = False
        """Whether a client knows the id: without it nobody can come back, and there is nothing to go on for."""
        self.id = secrets.token_urlsafe(16)
        self.media_type = encoder.media_type
        self.buffer = buffer
        self.stats = SpeechStats(position=slot.position_of_newcomer)
        self._synthesis = asyncio.create_task(self._guard(self._synthesise, self._samples.end))
        self._encoding = asyncio.create_task(self._guard(self._encode, buffer.end))

    @property
    def held_bytes(self) -> int:
        """All that it keeps in memory, encoded or not."""
        return self.buffer.held_bytes + self._samples.held_bytes

    @property
    def is_read(self) -> bool:
        """Whether a reader is there."""
        return self._readers > 0

    @property
    def spoken_for_s(self) -> float:
        """For how long the synthesis has been over, and with it the need of the slot; 0 while it is not."""
        return time.monotonic() - self._spoken_s if self._spoken_s else 0.0

    def attach(self) -> None:
        """A reader has come."""
        self._readers += 1
        self._is_read.set()
        if self._patience:
            self._patience.cancel()

    async def detach(self) -> None:
        """A reader has gone. After the last one the synthesis ends, and what was not encoded waits for another."""
        self._readers -= 1
        if self._readers:
            return
        self._is_read.clear()
        if self._grace_s and self.is_announced and not self._synthesis.done():
            self._patience = asyncio.get_running_loop().call_later(self._grace_s, self._synthesis.cancel)
        else:
            await _cancelled(self._synthesis)

    async def aclose(self) -> None:
        """Stop wherever it is; returns when the slot is free."""
        if self._patience:
            self._patience.cancel()
        await _cancelled(self._synthesis)
        await _cancelled(self._encoding)

    async def _guard(self, work: Callable[[], Awaitable[None]], end: Callable[[BaseException | None], None]) -> None:
        """Hand the outcome of one task on to the next."""
        try:
            await work()
        except SpeechServerError as error:
            end(error)
        except asyncio.CancelledError:
            end(ClientLeft())
            raise
        except Exception as error:
            log.exception("the synthesis failed")
            # torch's own kind of it is known here by its name alone.
            is_memory = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"
            end(InsufficientMemory() if is_memory else EngineFailed())
        else:
            end(None)

    async def _synthesise(self) -> None:
        request = self._request
        async with self._slot.enter(request.text, request.voice.index, request.request_id, batch=self._batch):
            entered_s = time.monotonic()
            self.stats.wait_s = entered_s - self._began_s
            for voice in request.voices:
                if not voice.is_preset and not voice.path.is_file():
                    raise VoiceFileMissing(voice.path.name)
            try:
                async with aclosing(perform(self._engine, request)) as chunks:
                    async for chunk in chunks:
                        if not np.isfinite(chunk.samples).all():
                            raise EngineFailed("the speech engine made samples that are not numbers")
                        self.stats.audio_s += chunk.samples.size / self.rate_hz
                        self.stats.synthesis_s = time.monotonic() - entered_s
                        await self._samples.put(to_int16(chunk.samples))
            finally:
                self._spoken_s = time.monotonic()
                self.stats.synthesis_s = self._spoken_s - entered_s

    async def _encode(self) -> None:
        encoder, rate_hz = self._encoder, self.rate_hz
        header = encoder.start(rate_hz)
        encoded, ended = 0, False
        sent_s = time.monotonic()
        try:
            while not ended:
                await self._is_read.wait()
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
                    self.buffer.push(piece)
                    if self.stats.first_audio_s is None:
                        self.stats.first_audio_s = sent_s - self._began_s
                        await asyncio.sleep(0)  # the reader sends it before the next share takes the interpreter
        except BaseException:
            self._synthesis.cancel()  # nobody takes its samples any more
            raise


async def _cancelled(task: asyncio.Task[None]) -> None:
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task
