"""The espeak-ng child process: one forked worker a request, each from the same state.

The process that the server starts loads and warms the library and then only forks. A worker speaks one request and
exits, so neither a crash nor the state that espeak-ng keeps between texts reaches the next request. The next worker is
forked and warmed while the current one works.

Descriptor 0 is a pipe from the server: a byte cancels the request of that number (modulo 256), its end stops the
process. Descriptor 1 is a socket that keeps message boundaries. Messages to the worker are the request's number, then
``D`` and a part of a JSON list of utterances, or ``G`` and the last part; messages to the server begin with a `Kind`.
"""

from __future__ import annotations

import gc
import json
import os
import select
import signal
import socket
import struct
import sys
from collections.abc import Callable
from itertools import chain, repeat
from pathlib import Path

from streaming_server.engines.espeak.library import EspeakLibrary, Timbre
from streaming_server.errors import EngineFailed, EngineUnavailable
from streaming_server.sandbox import confine_process, confine_worker

MAX_MESSAGE_BYTES = 65536
COUNT, WORD = struct.Struct("=I"), struct.Struct("=III")
"""The number of words in a message, and one of them."""
_MAX_WORDS = 256
"""In one message."""
_CHUNKS_PER_MESSAGE = (1, 4, 14)
"""Of the first messages; all later ones have the last number. A chunk takes about 0.1 ms of work, and a message wakes
the server."""
_MEMORY_BYTES = 512 << 20
_CPU_S = 600
"""Of one request; espeak-ng speaks for days in that time."""
_WARM_UP = json.dumps(
    [
        {"text": text, "language": language, "timbre": {}, "pause": False, "has_phonemes": False, "as_phonemes": False}
        for text, language in (("一", "cmn"), ("a", "en-us"))
    ]
).encode()


class Kind:
    """First byte of a message to the server."""

    READY = b"R"
    """The library is loaded: its rate in Hz and its version, in JSON."""
    UNAVAILABLE = b"U"
    """The library does not load: the reason."""
    WORDS = b"W"
    """Beginnings of words in the samples that follow. Each is a `WORD`: the number of its utterance, the index of its
    first character there, and its first sample in the request."""
    SAMPLES = b"S"
    """A 32-bit number of words, the words, and signed 16-bit samples, in native order."""
    PHONEMES = b"P"
    """The phonemes of one utterance, in UTF-8."""
    FAILED = b"F"
    """The request is refused: the reason."""
    ENDED = b"E"
    """The request's worker has ended: its exit code, negative where a signal killed it."""


_FINISHED = b"F"


class _Worker:
    """A forked process that waits to be released and then speaks one request."""

    def __init__(self, work: Callable[[Callable[[], int]], None]) -> None:
        """``work(wait)`` runs in the new process; ``wait`` returns the request's number once it is released."""
        gate, release = os.pipe()
        alive, held = os.pipe()
        self.pid = os.fork()
        if not self.pid:
            os.close(release)
            exit_code = 1
            try:
                work(lambda: os.read(gate, 1)[0])
                exit_code = 0
                os.write(held, _FINISHED)
            finally:
                os._exit(exit_code)
        os.close(gate)
        os.close(held)
        self._release = release
        self.alive = alive
        """Readable once the request is finished or the process has ended."""

    def release(self, number: int) -> None:
        os.write(self._release, bytes([number]))

    def has_finished(self) -> bool:
        """Whether the request is finished, once ``alive`` is readable; the exit of the process takes longer."""
        return os.read(self.alive, 1) == _FINISHED

    def kill(self) -> None:
        os.kill(self.pid, signal.SIGKILL)

    def end(self) -> None:
        self.kill()
        self.wait()

    def wait(self) -> int:
        """Its exit code, negative where a signal killed it."""
        _, status = os.waitpid(self.pid, 0)
        os.close(self._release)
        os.close(self.alive)
        return os.waitstatus_to_exitcode(status)


def serve(control: int, messages: socket.socket, library: EspeakLibrary) -> None:
    """Fork workers until ``control`` ends or a worker crashes, after which the server starts another process."""

    def work(wait: Callable[[], int]) -> None:
        os.close(control)
        confine_worker(parent, memory_bytes=_MEMORY_BYTES, cpu_s=_CPU_S)
        _warm(library)
        _answer(messages, library, wait())

    parent = os.getpid()
    number = 0
    cancelled = False
    current, spare = _Worker(work), _Worker(work)
    current.release(number)
    while True:
        readable, _, _ = select.select([control, current.alive], [], [])
        if control in readable:
            cancels = os.read(control, 256)
            if not cancels:
                current.end()
                break
            if number in cancels:
                cancelled = True
                current.kill()
        if current.alive in readable:
            if not current.has_finished() and not cancelled:
                messages.send(Kind.ENDED + str(current.wait()).encode())
                break
            number, cancelled = (number + 1) % 256, False
            ended, current = current, spare
            current.release(number)
            messages.send(Kind.ENDED + b"0")
            ended.wait()
            spare = _Worker(work)
    spare.end()


def _answer(messages: socket.socket, library: EspeakLibrary, number: int) -> None:
    """Speak the request of this number; what a cancelled one left in the socket is skipped."""
    parts = []
    while message := messages.recv(MAX_MESSAGE_BYTES):
        if message[0] != number:
            continue
        parts.append(message[2:])
        if message[1:2] == b"G":
            break
    else:
        return
    try:
        _speak(b"".join(parts), library, messages.send)
    except EngineFailed as error:
        messages.send(Kind.FAILED + str(error).encode())


def _speak(request: bytes, library: EspeakLibrary, send: Callable[[bytes], object]) -> None:
    """Send the samples of a JSON list of utterances.

    Raises:
        EngineFailed: espeak-ng refuses one.
    """
    chunks: list[bytes] = []
    words: list[bytes] = []
    sizes = chain(_CHUNKS_PER_MESSAGE, repeat(_CHUNKS_PER_MESSAGE[-1]))
    size = next(sizes)
    samples_given = begin = number = 0

    def receive_word(character: int, sample: int) -> None:
        words.append(WORD.pack(number, max(character, 0), begin + max(sample, 0)))

    def receive(samples: bytes) -> None:
        nonlocal samples_given, size
        samples_given += len(samples) // 2
        chunks.append(samples)
        if len(chunks) == size:
            flush()
            size = next(sizes)

    def flush() -> None:
        while len(words) > _MAX_WORDS:
            send(Kind.WORDS + b"".join(words[:_MAX_WORDS]))
            del words[:_MAX_WORDS]
        send(Kind.SAMPLES + COUNT.pack(len(words)) + b"".join(words + chunks))
        # The kernel wakes the server on this core, where it would wait until the next chunk is synthesised.
        os.sched_yield()
        words.clear()
        chunks.clear()

    for utterance in json.loads(request):
        text, language = utterance["text"], utterance["language"]
        if utterance["as_phonemes"]:
            send(Kind.PHONEMES + library.phonemes(text, language).encode())
            continue
        timbre, begin = Timbre(**utterance["timbre"]), samples_given
        has_phonemes, pause = utterance["has_phonemes"], utterance["pause"]
        library.speak(
            text, language, timbre, receive, has_phonemes=has_phonemes, pause=pause, receive_word=receive_word
        )
        number += 1
    if chunks:
        flush()


def _warm(library: EspeakLibrary) -> None:
    """Load what every request needs; in a worker, also take its own copies of the pages that a request writes."""
    _speak(_WARM_UP, library, lambda _: None)


def main(library_path: str, data_path: str) -> None:
    gc.disable()  # a collection writes to the pages that the workers share, and there is next to nothing to collect
    messages = socket.socket(fileno=os.dup(1))
    try:
        library = EspeakLibrary(Path(library_path), Path(data_path))
    except EngineUnavailable as error:
        messages.send(Kind.UNAVAILABLE + str(error).encode())
        return
    _warm(library)
    confine_process(Path(data_path))
    about = {"sample_rate_hz": library.sample_rate_hz, "version": library.version}
    messages.send(Kind.READY + json.dumps(about).encode())
    serve(0, messages, library)


if __name__ == "__main__":
    main(*sys.argv[1:])
