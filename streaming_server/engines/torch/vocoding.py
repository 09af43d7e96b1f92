"""The thread that vocodes beside the decoding: one queue for all requests, ordered by when audio is needed."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import TypeVar

import torch
from torch import Tensor

from streaming_server.domain import FloatSamples
from streaming_server.engines.load import Load
from streaming_server.engines.threads import WAITING, Cancelled, Waiting
from streaming_server.engines.torch.pieces import Job, Piece

Given = TypeVar("Given")

URGENT_S = 0.25
"""A listener with less audio than this, or none so far, does not share a batch with those who have more."""


class VocoderThread:
    """Runs the jobs of all requests piece by piece, on CUDA on a stream of its own.

    The next piece is that of the request whose listener runs out of audio first; a request without audio so far comes
    before those whose listeners have some. Pieces of other requests with the same key run with it as one batch. While a
    listener is about to run out of audio, these are only pieces of such listeners.

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
        """Those with jobs that have not ended, in the order of arrival."""
        self._launched: deque[torch.cuda.Event] = deque()
        """The ends of the latest batches, on CUDA."""
        self._accounted_s = 0.0
        self.load = Load()

    def session(self) -> Vocoding:
        """The jobs of one request, in order."""
        return Vocoding(self)

    def close(self) -> None:
        self._executor.shutdown()

    def queue(self, session: Vocoding, job: Callable[[], Job[Tensor]], copied: torch.cuda.Event | None) -> None:
        queued = _Queued(self._on_host(job, copied))
        session.pending.append(queued.future)
        with self._lock:
            session.queued.append(queued)
            if session not in self._sessions:
                self._sessions.append(session)
        self._executor.submit(self._run)

    def withdraw(self, session: Vocoding) -> None:
        """Cancel the session's jobs that have not begun; one that has begun ends before its next piece."""
        with self._lock:
            session.queued = deque(job for job in session.queued if not job.future.cancel())
            if not session.queued:
                self._sessions = [other for other in self._sessions if other is not session]

    def _on_host(self, job: Callable[[], Job[Tensor]], copied: torch.cuda.Event | None) -> Job[FloatSamples]:
        if self._stream is not None and copied is not None:
            self._stream.wait_event(copied)
        samples: FloatSamples = (yield from job()).cpu().numpy()
        return samples

    def _run(self) -> None:
        """Run pieces until there is no job."""
        self._accounted_s = time.monotonic()
        with torch.cuda.stream(self._stream):
            while True:
                with self._lock:  # those that were left come first, so that their jobs end at once
                    sessions = sorted(self._sessions, key=lambda each: (not each.is_left, each.runs_dry_s))
                if not sessions:
                    return
                self._run_batch(self._chosen(sessions))

    def _chosen(self, sessions: Sequence[Vocoding]) -> list[tuple[Vocoding, _Queued, Piece]]:
        """The jobs whose pieces run next; none if the first session's job has ended without one."""
        soon_s = time.monotonic() + URGENT_S
        chosen: list[tuple[Vocoding, _Queued, Piece]] = []
        for session in sessions:
            if chosen:
                first, _, piece = chosen[0]
                if len(chosen) == piece.limit or first.runs_dry_s < soon_s <= session.runs_dry_s:
                    break
            with self._lock:
                if not session.queued:  # withdrawn meanwhile
                    continue
                job = session.queued[0]
                is_new = job.piece is None and job.future.set_running_or_notify_cancel()
            if session.is_left:
                self._end(session, job, Cancelled())
            elif is_new:
                self._advance(session, job)
            if job.piece is None or job.future.done():
                if not chosen:
                    break
            elif not chosen or job.piece.key == chosen[0][2].key:
                chosen.append((session, job, job.piece))
        return chosen

    def _run_batch(self, chosen: Sequence[tuple[Vocoding, _Queued, Piece]]) -> None:
        if not chosen:
            return
        try:
            if len(self._launched) > 1:  # launch at most one batch ahead of the device: a more urgent piece may come
                self._launched.popleft().synchronize()
            chosen[0][2].run([piece.item for _, _, piece in chosen])
            if self._stream is not None:
                self._launched.append(torch.cuda.Event())  # type: ignore[no-untyped-call]
                self._launched[-1].record(self._stream)
        except BaseException as error:
            if len(chosen) > 1:  # the error may concern one of them only, or none by itself
                for one in chosen:
                    self._run_batch([one])
            else:
                self._end(*chosen[0][:2], error)
            return
        for session, job, _ in chosen:
            self._advance(session, job)

    def _advance(self, session: Vocoding, job: _Queued) -> None:
        """Continue a job up to its next piece or its end."""
        try:
            job.piece = next(job.steps)
        except StopIteration as end:
            self._end(session, job, end.value)
        except BaseException as error:
            self._end(session, job, error)

    def _end(self, session: Vocoding, job: _Queued, result: FloatSamples | BaseException) -> None:
        job.steps.close()
        with self._lock:
            session.queued.remove(job)
            if not session.queued:
                self._sessions = [other for other in self._sessions if other is not session]
        if isinstance(result, BaseException):
            job.future.set_exception(result)
        else:
            if result.size:
                now_s, audio_s = time.monotonic(), result.size / self.rate_hz
                session.has_audio(now_s, audio_s)
                self.load.add(now_s - self._accounted_s, audio_s)
                self._accounted_s = now_s
            job.future.set_result(result)
        if self.wake is not None:
            self.wake()


class _Queued:
    """A job of a session, and the piece that it needs next once it has begun."""

    def __init__(self, steps: Job[FloatSamples]) -> None:
        self.steps = steps
        self.future: Future[FloatSamples] = Future()
        self.piece: Piece | None = None


class Vocoding:
    """The jobs of one request. Leaving the context cancels those queued and stops the running one at its ``check``."""

    def __init__(self, thread: VocoderThread) -> None:
        self._thread = thread
        self.is_left = False
        self.runs_dry_s = 0.0
        """When a player that began with the first audio has played all of it, on the monotonic clock; 0 before that."""
        self.pending: deque[Future[FloatSamples]] = deque()
        """Jobs whose audio was not taken yet."""
        self.queued: deque[_Queued] = deque()
        """Jobs that have not ended; under the thread's lock."""

    def has_audio(self, now_s: float, audio_s: float) -> None:
        """Count audio that was made."""
        self.runs_dry_s = max(self.runs_dry_s, now_s) + audio_s

    def __enter__(self) -> Vocoding:
        return self

    def check(self) -> None:
        """Called by the running job.

        Raises:
            Cancelled: the context was left.
        """
        if self.is_left:
            raise Cancelled

    def __exit__(self, *_: object) -> None:
        """Cancel the jobs and wait until none of them runs."""
        self.is_left = True
        self._thread.withdraw(self)
        while self.pending:
            future = self.pending.popleft()
            if not future.cancelled():
                future.exception()

    def submit(
        self, vocode: Callable[[Given], Job[Tensor]], copy: Callable[[], Given], *, is_computed: bool = False
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
