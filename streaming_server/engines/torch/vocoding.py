"""The thread that vocodes beside the decoding: one queue for all requests, ordered by when audio is needed."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import TypeVar

import torch
from torch import Tensor

from streaming_server.domain import FloatSamples
from streaming_server.engines.threads import WAITING, Cancelled, Waiting

Given = TypeVar("Given")

_DECAY = 0.9
"""Weight of all earlier jobs together against the latest one, in the measured speed."""


class VocoderThread:
    """Runs the jobs of all requests, on CUDA on a stream of its own.

    The next job is the one of the request whose listener runs out of audio first. A request without audio so far comes
    before those whose listeners have some.

    Args:
        device: Where the jobs run.
        rate_hz: Of the audio.
        wake: Called on the thread when a job has ended. With it, requests do not wait for their last jobs.
    """

    def __init__(self, device: torch.device, rate_hz: int, wake: Callable[[], None] | None = None) -> None:
        self.device = device
        self.rate_hz = rate_hz
        self.wake = wake
        self.copies = torch.cuda.Stream(device) if device.type == "cuda" else None  # type: ignore[no-untyped-call]
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None  # type: ignore[no-untyped-call]
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="vocoder")
        self._lock = threading.Lock()
        self._sessions: list[Vocoding] = []
        """Those with queued jobs, in the order of arrival."""
        self._busy_s = self._audio_s = 0.0

    @property
    def s_per_audio_s(self) -> float:
        """Seconds of work per second of audio, of recent jobs; 0 before the first."""
        return self._busy_s / self._audio_s if self._audio_s else 0.0

    def session(self) -> Vocoding:
        """The jobs of one request, in order."""
        return Vocoding(self)

    def close(self) -> None:
        self._executor.shutdown()

    def queue(self, session: Vocoding, job: Callable[[], Tensor], copied: torch.cuda.Event | None) -> None:
        future: Future[FloatSamples] = Future()
        session.pending.append(future)
        with self._lock:
            session.queued.append((future, partial(self._vocoded, job, copied)))
            if session not in self._sessions:
                self._sessions.append(session)
        self._executor.submit(self._run_most_urgent)

    def withdraw(self, session: Vocoding) -> None:
        """Cancel the session's jobs that have not begun."""
        with self._lock:
            for future, _ in session.queued:
                future.cancel()
            session.queued.clear()
            self._sessions = [other for other in self._sessions if other is not session]

    def _run_most_urgent(self) -> None:
        with self._lock:
            session = min(self._sessions, key=lambda session: session.runs_dry_s, default=None)
            if session is None:
                return  # its job was withdrawn
            future, job = session.queued.popleft()
            if not session.queued:
                self._sessions.remove(session)
            future.set_running_or_notify_cancel()
        begun_s = time.monotonic()
        try:
            samples = job()
        except BaseException as error:
            future.set_exception(error)
        else:
            if samples.size:
                now_s, audio_s = time.monotonic(), samples.size / self.rate_hz
                session.has_audio(now_s, audio_s)
                self._busy_s = _DECAY * self._busy_s + now_s - begun_s
                self._audio_s = _DECAY * self._audio_s + audio_s
            future.set_result(samples)
        if self.wake is not None:
            self.wake()

    def _vocoded(self, job: Callable[[], Tensor], copied: torch.cuda.Event | None) -> FloatSamples:
        with torch.cuda.stream(self._stream):
            if self._stream is not None and copied is not None:
                self._stream.wait_event(copied)
            samples: FloatSamples = job().cpu().numpy()
            return samples


class Vocoding:
    """The jobs of one request. Leaving the context cancels those queued and stops the running one at its ``check``."""

    def __init__(self, thread: VocoderThread) -> None:
        self._thread = thread
        self._is_left = False
        self._begun_s = 0.0
        self._audio_s = 0.0
        self.pending: deque[Future[FloatSamples]] = deque()
        """Jobs whose audio was not taken yet."""
        self.queued: deque[tuple[Future[FloatSamples], Callable[[], FloatSamples]]] = deque()
        """Jobs that have not begun; under the thread's lock."""

    @property
    def runs_dry_s(self) -> float:
        """When a player that began with the first audio has played all of it; before that, 0."""
        return self._begun_s + self._audio_s

    def has_audio(self, now_s: float, audio_s: float) -> None:
        """Count audio that was made."""
        self._begun_s = self._begun_s or now_s
        self._audio_s += audio_s

    def __enter__(self) -> Vocoding:
        return self

    def check(self) -> None:
        """Called by the running job.

        Raises:
            Cancelled: the context was left.
        """
        if self._is_left:
            raise Cancelled

    def __exit__(self, *_: object) -> None:
        """Cancel the jobs and wait until none of them runs."""
        self._is_left = True
        self._thread.withdraw(self)
        while self.pending:
            future = self.pending.popleft()
            if not future.cancelled():
                future.exception()

    def submit(
        self, vocode: Callable[[Given], Tensor], copy: Callable[[], Given], *, is_computed: bool = False
    ) -> None:
        """Queue a job.

        Args:
            vocode: The job. It is called with what ``copy`` returned.
            copy: Called at once. It copies the inputs, whose buffers may be overwritten before the job begins.
            is_computed: The device has computed the inputs, as the host has read a later result of the same stream.
                On CUDA the copy then does not wait for the decoding steps that are queued.
        """
        copied, copies = None, self._thread.copies
        if copies is None:
            given = copy()
        else:
            decoding = torch.cuda.current_stream(self._thread.device)
            if not is_computed:
                copies.wait_stream(decoding)
            with torch.cuda.stream(copies):
                given = copy()
            copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
            copied.record(copies)
            decoding.wait_event(copied)
        self._thread.queue(self, partial(vocode, given), copied)

    def ready(self) -> FloatSamples | None:
        """The next audio if it is complete, else None; does not wait."""
        if not self.pending or not self.pending[0].done():
            return None
        return self.pending.popleft().result()

    def ready_or_waiting(self) -> FloatSamples | Waiting:
        samples = self.ready()
        return WAITING if samples is None else samples

    def rest(self) -> Iterator[FloatSamples | Waiting]:
        """The audio of all jobs; ``WAITING`` for one that has not ended, if the thread has a ``wake``."""
        while self.pending:
            yield self.pending.popleft().result() if self._thread.wake is None else self.ready_or_waiting()
