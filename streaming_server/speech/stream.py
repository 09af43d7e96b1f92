"""A stream of speech: a synthesis task, an encoding task, and the encoded bytes.

No task waits for the next one, except at the limits of `buffers`.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections.abc import Awaitable, Callable
from contextlib import aclosing, suppress
from dataclasses import dataclass, replace
from enum import StrEnum
from functools import partial

import numpy as np

from streaming_server.audio.encoders import AudioEncoder
from streaming_server.audio.pcm import to_int16
from streaming_server.domain import Capability, FloatSamples, Mark, SpeechRequest
from streaming_server.engines.base import Engine, Preparing
from streaming_server.errors import (
    ClientLeft,
    DeviceFailed,
    EngineFailed,
    InsufficientMemory,
    SpeechServerError,
    VoiceFileMissing,
)
from streaming_server.speech.buffers import SampleQueue, StreamBuffer
from streaming_server.speech.dialogue import perform
from streaming_server.speech.encoder_pool import EncoderPool
from streaming_server.speech.incremental import parts
from streaming_server.speech.joints import Joints
from streaming_server.speech.markup import without_pauses
from streaming_server.speech.playback import PlaybackClock
from streaming_server.speech.slot import Slot
from streaming_server.speech.timeline import Passage

log = logging.getLogger(__name__)

_IDLE_FLUSH_S = 0.1
"""Time without output after which buffered bytes of the encoder are flushed."""
_UNENCODED_LIMIT_S = 600
"""Maximum lead of a synthesis over its encoder; beyond it the synthesis waits and keeps the slot."""


class StreamState(StrEnum):
    QUEUED = "queued"
    SYNTHESISING = "synthesising"
    AWAITING_TEXT = "awaiting_text"
    """Waits without the slot for the next segment of an incremental text."""
    DRAINING = "draining"
    """The synthesis has ended and audio is still unsent."""
    KEPT = "kept"
    """Without a reader, kept for resuming."""


@dataclass(slots=True)
class SpeechStats:
    """The statistics of one stream; seconds since its text, or its first segment, unless stated otherwise."""

    position: int = 0
    """Position in the queue at arrival; 0 if the slot was free."""
    characters: int = 0
    """Length of the text; for an incremental text, of the segments synthesised so far."""
    wait_s: float | None = None
    """Wait for the slot."""
    first_audio_s: float | None = None
    """Time to the first encoded audio."""
    synthesis_s: float = 0.0
    """Time for which the slot was held."""
    audio_s: float = 0.0
    """Duration of the audio synthesised so far."""
    underruns: int = 0
    """Number of underruns as counted by `PlaybackClock`."""
    underrun_s: float = 0.0
    """Total duration of the underruns."""


class SpeechStream:
    """A synthesis and its encoded bytes."""

    def __init__(
        self,
        request: SpeechRequest,
        encoder: AudioEncoder,
        engine: Engine,
        slot: Slot,
        encoders: EncoderPool,
        buffer: StreamBuffer,
        grace_s: float,
        *,
        batch: bool,
        max_characters: int,
        is_admitted: bool,
        on_device_failure: Callable[[DeviceFailed], None],
        tempo: float,
    ) -> None:
        """
        Args:
            request: the request.
            encoder: a new encoder.
            engine: the engine.
            slot: entered for the synthesis.
            encoders: runs the encoder.
            buffer: receives the encoded bytes.
            grace_s: time for which the synthesis continues without a reader.
            batch: as for `Slot.enter`.
            max_characters: maximum length of an incremental text.
            is_admitted: as for `Slot.enter`, from the first segment on.
            on_device_failure: called with the error if the engine's device has failed.
            tempo: factor of the speaking rate that the encoder applies.
        """
        self.request = request
        self._encoder = encoder
        self._engine = engine
        self._slot = slot
        self._encoders = encoders
        self.rate_hz = engine.info.sample_rate_hz
        self._samples = SampleQueue(_UNENCODED_LIMIT_S * self.rate_hz)
        self._max_characters = max_characters
        self._is_admitted = is_admitted
        self._on_device_failure = on_device_failure
        self._tempo = tempo
        self._playback = PlaybackClock()
        self._put_samples = 0
        self._joints = Joints(self.rate_hz)
        self._began_s = self._text_s = time.monotonic()
        self._phase = StreamState.QUEUED if request.pieces is None else StreamState.AWAITING_TEXT
        self._spoken_s: float | None = None
        self._grace_s = grace_s
        self.is_batch = batch
        self._patience: asyncio.TimerHandle | None = None
        self._readers = 0
        self._is_read = asyncio.Event()
        self.is_announced = False
        """Whether a client knows the id, without which the stream cannot be resumed."""
        self.id = secrets.token_urlsafe(16)
        self.media_type = encoder.media_type
        self.buffer = buffer
        self.passages: list[Passage] = []
        """What has been synthesised so far, with the times of its words; empty for a dialogue."""
        self.stats = SpeechStats(slot.position_of_newcomer, len(request.text))
        self._synthesis = asyncio.create_task(self._guard(self._synthesise, self._samples.end))
        self._encoding = asyncio.create_task(self._guard(self._encode, buffer.end))

    @property
    def state(self) -> StreamState:
        if not self._synthesis.done():
            return self._phase
        return StreamState.DRAINING if self.is_read else StreamState.KEPT

    @property
    def age_s(self) -> float:
        """Seconds since the request."""
        return time.monotonic() - self._began_s

    @property
    def unencoded_s(self) -> float:
        """Seconds of audio that wait for the encoder."""
        return self._samples.size / self.rate_hz

    @property
    def duration_s(self) -> float:
        """Duration of the audio of the stream so far, in seconds."""
        return self._put_samples / self.rate_hz / self._tempo

    @property
    def is_resumable(self) -> bool:
        """Whether the synthesis continues for a while without a reader."""
        return self._grace_s > 0

    @property
    def held_bytes(self) -> int:
        """Bytes in memory, encoded or not."""
        return self.buffer.held_bytes + self._samples.held_bytes

    @property
    def is_read(self) -> bool:
        """Whether the stream has a reader."""
        return self._readers > 0

    @property
    def drained_for_s(self) -> float:
        """Seconds since the synthesis ended and released the slot; 0 before."""
        return time.monotonic() - self._spoken_s if self._spoken_s else 0.0

    def attach(self) -> None:
        """Add a reader."""
        if not self._readers:
            self._playback.restart()
        self._readers += 1
        self._is_read.set()
        if self._patience:
            self._patience.cancel()

    async def detach(self) -> None:
        """Remove a reader. After the last one the synthesis ends; unencoded samples wait for another reader."""
        self._readers -= 1
        if self._readers:
            return
        self._is_read.clear()
        if self._grace_s and self.is_announced and not self._synthesis.done():
            self._patience = asyncio.get_running_loop().call_later(self._grace_s, self._synthesis.cancel)
        else:
            await _cancelled(self._synthesis)

    def abort(self, error: SpeechServerError) -> None:
        """End the synthesis; the reader gets the error after the audio encoded so far."""
        if not self._synthesis.done():
            self.buffer.end(error)
            self._synthesis.cancel()
            self._encoding.cancel()

    async def aclose(self) -> None:
        """Stop both tasks and return when the slot is free."""
        if self._patience:
            self._patience.cancel()
        await _cancelled(self._synthesis)
        await _cancelled(self._encoding)

    async def _guard(self, work: Callable[[], Awaitable[None]], end: Callable[[BaseException | None], None]) -> None:
        """Pass the outcome of one task to the next."""
        try:
            await work()
        except DeviceFailed as error:
            self._on_device_failure(error)
            end(error)
        except SpeechServerError as error:
            end(error)
        except asyncio.CancelledError:
            end(ClientLeft())
            raise
        except Exception as error:
            log.exception("synthesis failed")
            # torch, which has an error of its own for it, is not imported here.
            is_memory = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"
            end(InsufficientMemory() if is_memory else EngineFailed())
        else:
            end(None)

    async def _synthesise(self) -> None:
        try:
            async with aclosing(parts(self.request, self._max_characters)) as requests:
                waiting_s = time.monotonic()
                async for request in requests:
                    self._playback.awaited_text(waiting_s, time.monotonic())
                    await self._synthesise_part(request)
                    waiting_s = time.monotonic()
        finally:
            self._spoken_s = time.monotonic()

    async def _synthesise_part(self, request: SpeechRequest) -> None:
        """Hold the slot for a complete text or a segment."""
        stats, is_first = self.stats, self.stats.wait_s is None
        if self.request.pieces is not None:
            stats.characters += len(request.text)
            if is_first:
                self._text_s, stats.position = time.monotonic(), self._slot.position_of_newcomer
        self._phase = StreamState.QUEUED
        if isinstance(self._engine, Preparing):
            await self._engine.prepare(request)
        async with self._slot.enter(
            request.text,
            request.voice.index,
            request.request_id,
            batch=self.is_batch,
            is_admitted=self._is_admitted or not is_first,
        ):
            entered_s, earlier_s = time.monotonic(), stats.synthesis_s
            self._phase = StreamState.SYNTHESISING
            if is_first:
                stats.wait_s = entered_s - self._text_s
            for voice in request.voices:
                if not voice.is_preset and not voice.path.is_file():
                    raise VoiceFileMissing(voice.path.name)
            try:
                begin, marks = -1, list[Mark]()
                async with aclosing(perform(self._engine, request)) as chunks:
                    async for chunk in chunks:
                        marks += chunk.marks
                        if begin < 0 and chunk.samples.size:
                            tempo = request.speed if Capability.SPEED in self._engine.info.capabilities else 1.0
                            await self._put(self._joints.before(request.text, tempo))
                            begin = self._put_samples
                        if not np.isfinite(chunk.samples).all():
                            raise EngineFailed("the speech engine returned samples that are not finite")
                        stats.synthesis_s = earlier_s + time.monotonic() - entered_s
                        await self._put(chunk.samples)
                        self._slot.reconsider()
                        if stats.first_audio_s is None:
                            # the encoder and the reader run first, even if the engine has more audio available
                            await asyncio.sleep(0)
                            await asyncio.sleep(0)
            finally:
                stats.synthesis_s = earlier_s + time.monotonic() - entered_s
        if begin >= 0 and not request.script:
            self._joints.said(request.text)
            self._end_passage(without_pauses(request.text).rstrip("\n"), begin, marks)
        self._phase = StreamState.AWAITING_TEXT

    async def _put(self, samples: FloatSamples) -> None:
        self._put_samples += samples.size
        self._joints.heard(samples)
        self.stats.audio_s = self.duration_s
        await self._samples.put(to_int16(samples))

    def _end_passage(self, text: str, begin: int, marks: list[Mark]) -> None:
        start_s, end_s = (samples / self.rate_hz / self._tempo for samples in (begin, self._put_samples))
        timed = [replace(mark, time_s=mark.time_s / self._tempo) for mark in marks]
        passage = Passage(text, start_s, end_s, timed)
        self.passages.append(passage)
        self._samples.put_passage(passage)

    async def _encode(self) -> None:
        encoder, rate_hz = self._encoder, self.rate_hz
        header = encoder.start(rate_hz)
        encoded, ended = 0, False
        sent_s = time.monotonic()
        try:
            while not ended:
                await self._is_read.wait()
                # 25 ms give one packet in spite of a resampler's delay; larger shares later save thread switches
                share = min(max(encoded, rate_hz // 40), rate_hz // 2)
                samples = await self._samples.take(share, sent_s + _IDLE_FLUSH_S - time.monotonic())
                if samples is None or isinstance(samples, Passage):
                    piece = encoder.flush() if samples is None or self.request.pieces is not None else b""
                    sent_s = time.monotonic()
                elif samples.size:
                    push = partial(encoder.push, samples)
                    # encoding one packet takes less time than a thread switch
                    piece = await self._encoders.run(encoded, push) if encoded else push()
                    encoded += samples.size
                else:
                    piece = await self._encoders.run(encoded, encoder.finish)
                    ended = True
                if header and (piece or ended):
                    piece, header = header + piece, b""
                if piece:
                    sent_s = time.monotonic()
                    self._count_underrun(sent_s, encoded / rate_hz / self._tempo)
                    self.buffer.push(piece)
                    if self.stats.first_audio_s is None:
                        self.stats.first_audio_s = sent_s - self._text_s
                        await asyncio.sleep(0)  # lets the reader send before the next share takes the GIL
                if isinstance(samples, Passage):
                    self.buffer.push_passage(samples)
        except BaseException:
            self._synthesis.cancel()  # its samples have no consumer any more
            raise

    def _count_underrun(self, now_s: float, audio_s: float) -> None:
        if gap_s := self._playback.sent(now_s, audio_s, is_behind=self.buffer.unsent_bytes > 0):
            self.stats.underruns += 1
            self.stats.underrun_s += gap_s


async def _cancelled(task: asyncio.Task[None]) -> None:
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task
