"""The espeak-ng child process: one forked worker a request, each from the same state.

The process that the server starts loads and warms the library and then only forks. A worker speaks one request and
exits, so neither a crash nor the state that espeak-ng keeps between texts reaches the next request. The next worker is
forked and warmed while the current one works.

Descriptor 0 is a pipe from the server: a byte cancels the request of that number (modulo 256), its end stops the
process. Descriptor 1 is a socket that keeps message boundaries. Messages to the worker are the request's number, then
``D`` and a part of a JSON list of utterances, or ``G`` after the last part; messages to the server begin with a `Kind`.
"""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import struct
import sys
from collections.abc import Callable
from pathlib import Path

from streaming_server.engines.espeak.library import EspeakLibrary, Timbre
from streaming_server.engines.espeak.sandbox import confine_process, confine_worker
from streaming_server.errors import EngineFailed, EngineUnavailable

MAX_MESSAGE_BYTES = 65536
WORD = struct.Struct("=III")
"""One of `Kind.WORDS`."""
_CHUNKS_PER_MESSAGE = 4
"""After the first, which is sent alone: half a millisecond of work, and a quarter of the wake-ups."""


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
    """Signed 16-bit samples in native order."""
    PHONEMES = b"P"
    """The phonemes of one utterance, in UTF-8."""
    FAILED = b"F"
    """The request is refused: the reason."""
    ENDED = b"E"
    """The request's worker has ended: its exit code, negative where a signal killed it."""


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
            finally:
                os._exit(exit_code)
        os.close(gate)
        os.close(held)
        self._release = release
        self.alive = alive
        """Readable once the process has ended."""

    def release(self, number: int) -> None:
        os.write(self._release, bytes([number]))

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
        confine_worker(parent)
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
            exit_code = current.wait()
            if exit_code and not cancelled:
                messages.send(Kind.ENDED + str(exit_code).encode())
                break
            number, cancelled = (number + 1) % 256, False
            current = spare
            current.release(number)
            messages.send(Kind.ENDED + b"0")
            spare = _Worker(work)
    spare.end()


def _answer(messages: socket.socket, library: EspeakLibrary, number: int) -> None:
    """Speak the request of this number; what a cancelled one left in the socket is skipped."""
    parts = []
    while message := messages.recv(MAX_MESSAGE_BYTES):
        if message[0] != number:
            continue
        if message[1:2] == b"G":
            break
        parts.append(message[2:])
    else:
        return
    chunks: list[bytes] = []
    words: list[bytes] = []
    sent = False
    samples_given = begin = number = 0

    def receive_word(character: int, sample: int) -> None:
        words.append(WORD.pack(number, max(character, 0), begin + max(sample, 0)))

    def receive(samples: bytes) -> None:
        nonlocal sent, samples_given
        samples_given += len(samples) // 2
        chunks.append(samples)
        if not sent or len(chunks) == _CHUNKS_PER_MESSAGE:
            flush()
        sent = True

    def flush() -> None:
        if words:
            messages.send(Kind.WORDS + b"".join(words))
            words.clear()
        messages.send(Kind.SAMPLES + b"".join(chunks))
        chunks.clear()

    try:
        for utterance in json.loads(b"".join(parts)):
            if utterance["as_phonemes"]:
                phonemes = library.phonemes(utterance["text"], utterance["language"])
                messages.send(Kind.PHONEMES + phonemes.encode())
                continue
            timbre, text, begin = Timbre(**utterance["timbre"]), utterance["text"], samples_given
            library.speak(
                text, utterance["language"], timbre, receive, pause=utterance["pause"], receive_word=receive_word
            )
            number += 1
        if chunks:
            flush()
    except EngineFailed as error:
        messages.send(Kind.FAILED + str(error).encode())


def _warm(library: EspeakLibrary) -> None:
    """Load what every request needs; in a worker, also take its own copies of the pages that a synthesis writes."""
    for text, language in (("一", "cmn"), ("a", "en-us")):
        library.speak(text, language, Timbre(), lambda _: None)


def main(library_path: str, data_path: str) -> None:
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
