"""The server's side of the espeak-ng child process: requests in, samples out, a new process for one that has died."""

from __future__ import annotations

import asyncio
import json
import logging
import signal
import socket
import subprocess
import sys
import weakref
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO

import anyio
import numpy as np

from streaming_server.domain import IntSamples
from streaming_server.engines.espeak.child import COUNT, MAX_MESSAGE_BYTES, WORD, Kind
from streaming_server.engines.espeak.languages import find_languages
from streaming_server.engines.espeak.library import Timbre, find_files
from streaming_server.errors import EngineFailed, EngineUnavailable

log = logging.getLogger(__name__)

MAX_PHONEME_CHARACTERS = 1000
"""The phonemes of one utterance are one message."""
_START_S = 60.0
_END_S = 5.0
_PART_BYTES = MAX_MESSAGE_BYTES // 2
_COMMAND = ("-s", "-S", "-B", "-P", "-m", "streaming_server.engines.espeak.child")
_PACKAGES = Path(__file__).parents[3]
_MESSAGES = socket.SOCK_SEQPACKET if sys.platform == "linux" else socket.SOCK_DGRAM


@dataclass(frozen=True, slots=True)
class Utterance:
    """A text in one language and one timbre."""

    text: str
    language: str
    """An espeak-ng voice such as ``cmn`` or ``en-us``."""
    timbre: Timbre = Timbre()
    pause: bool = False
    """End with the pause that the text's last punctuation asks for."""
    has_phonemes: bool = False
    """The text may have names of phonemes between ``[[`` and ``]]``."""
    as_phonemes: bool = False
    """Ask for its phonemes, not for its sound; at most `MAX_PHONEME_CHARACTERS` of text."""


@dataclass(frozen=True, slots=True)
class SpokenWord:
    """Where a word begins."""

    utterance: int
    character: int
    """Index into the text of the utterance."""
    sample: int
    """From the start of the request."""


@dataclass(frozen=True, slots=True)
class Spoken:
    """A chunk of a request."""

    samples: IntSamples
    words: Sequence[SpokenWord]


class EspeakProcess:
    """espeak-ng in child processes. The same request gives the same samples, whatever was spoken before."""

    def __init__(self) -> None:
        """
        Raises:
            EngineUnavailable: espeak-ng is not installed or does not load.
        """
        self.languages = find_languages(find_files()[1])
        child = _Child()
        self._idle = [child]
        self._places = asyncio.Semaphore(1)
        self.sample_rate_hz = child.sample_rate_hz
        self.version = child.version

    def reserve(self, requests: int) -> None:
        """Let so many requests run at a time, instead of one. Each has a child process, which is kept for others."""
        self._places = asyncio.Semaphore(requests)

    async def speak(self, utterances: Sequence[Utterance]) -> AsyncGenerator[Spoken, None]:
        """A chunk of 100 ms, then chunks of up to 1.4 s. One request at a time unless more are reserved; others wait.

        ``aclose()`` kills the worker.

        Raises:
            EngineFailed: espeak-ng refuses an utterance or crashes; the next request is not affected.
        """
        words: list[SpokenWord] = []
        async with aclosing(self._answers(utterances)) as answers:
            async for kind, content in answers:
                if kind == Kind.SAMPLES:
                    samples_at = COUNT.size + WORD.size * COUNT.unpack_from(content)[0]
                    words += _words(content[COUNT.size : samples_at])
                    spoken, words = Spoken(np.frombuffer(content, np.int16, offset=samples_at), words), []
                    yield spoken
                elif kind == Kind.WORDS:
                    words += _words(content)

    async def phonemes(self, texts: Sequence[str], language: str) -> list[str]:
        """Each text in the International Phonetic Alphabet, as `EspeakLibrary.phonemes`.

        Raises:
            EngineFailed: as `speak`.
        """
        asked = [Utterance(text[:MAX_PHONEME_CHARACTERS], language, as_phonemes=True) for text in texts]
        async with aclosing(self._answers(asked)) as answers:
            return [content.decode() async for kind, content in answers if kind == Kind.PHONEMES]

    async def _answers(self, utterances: Sequence[Utterance]) -> AsyncGenerator[tuple[bytes, bytes], None]:
        """The messages of the worker, with their kinds, up to its end."""
        async with self._places:
            child = self._idle.pop() if self._idle else None
            if child is None or child.has_died():
                child = await anyio.to_thread.run_sync(_Child)
            exit_code, refusal = None, ""
            child.number = (child.number + 1) % 256
            try:
                content = json.dumps([asdict(utterance) for utterance in utterances]).encode()
                last = (len(content) - 1) // _PART_BYTES * _PART_BYTES
                for at in range(0, last, _PART_BYTES):
                    await child.send(b"D" + content[at : at + _PART_BYTES])
                await child.send(b"G" + content[last:])
                while exit_code is None:
                    message = await child.receive()
                    kind, content = message[:1], message[1:]
                    if kind == Kind.FAILED:
                        refusal = content.decode()
                    elif kind == Kind.ENDED:
                        exit_code = int(content)
                    else:
                        yield kind, content
            finally:
                if exit_code is None and not child.has_died():
                    with anyio.CancelScope(shield=True):
                        await child.cancel()
                self._idle.append(child)
            if exit_code:
                child.end()
                what = signal.Signals(-exit_code).name if exit_code < 0 else f"exit code {exit_code}"
                log.error("espeak-ng crashed: by=%s characters=%d", what, sum(len(item.text) for item in utterances))
                raise EngineFailed(f"espeak-ng crashed on this text ({what}); other requests are not affected")
        if refusal:
            raise EngineFailed(refusal)

    async def aclose(self) -> None:
        """End the child processes."""
        with anyio.CancelScope(shield=True):
            for child in self._idle:
                await child.aclose()


def _words(content: bytes) -> list[SpokenWord]:
    return [SpokenWord(*word) for word in WORD.iter_unpack(content)]


class _Child:
    """One child process and the two descriptors that lead to it."""

    def __init__(self) -> None:
        """
        Raises:
            EngineUnavailable: espeak-ng is not installed or does not load.
        """
        self.number = 255
        """Of the current request; the child counts likewise, from 0."""
        files = [str(path) for path in find_files()]
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, _MESSAGES)
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, *_COMMAND, *files],
                stdin=subprocess.PIPE,
                stdout=theirs.fileno(),
                stderr=subprocess.DEVNULL,
                cwd="/",
                env={"PYTHONPATH": str(_PACKAGES)},
                bufsize=0,
            )
        assert self._process.stdin is not None
        self._control = self._process.stdin
        self.end = weakref.finalize(self, _end, self._process, self._socket, self._control)
        self._socket.settimeout(_START_S)
        try:
            hello = self._socket.recv(MAX_MESSAGE_BYTES)
        except TimeoutError:
            hello = b""
        if hello[:1] != Kind.READY:
            self.end()
            raise EngineUnavailable(hello[1:].decode() or "the espeak-ng process does not start")
        about = json.loads(hello[1:])
        self.sample_rate_hz: int = about["sample_rate_hz"]
        self.version: str = about["version"]
        self._socket.setblocking(False)

    async def send(self, message: bytes) -> None:
        """
        Raises:
            EngineFailed: the process has died.
        """
        try:
            await asyncio.get_running_loop().sock_sendall(self._socket, bytes([self.number]) + message)
        except OSError as error:
            raise self._died() from error

    async def receive(self) -> bytes:
        """The next message.

        Raises:
            EngineFailed: the process has died.
        """
        while True:
            try:
                message = self._socket.recv(MAX_MESSAGE_BYTES)
            except BlockingIOError:
                # Unlike sock_recv, this takes no message: a cancelled task would lose it, and wait for its end forever.
                await anyio.wait_readable(self._socket)
            except OSError as error:
                raise self._died() from error
            else:
                break
        if not message:
            raise self._died()
        return message

    def has_died(self) -> bool:
        return self._process.poll() is not None

    def _died(self) -> EngineFailed:
        self.end()
        log.error("espeak-ng process died: returncode=%s", self._process.returncode)
        return EngineFailed("the espeak-ng process died; the next request starts another")

    async def cancel(self) -> None:
        """Kill the current request's worker and drop what it has sent."""
        with suppress(OSError, EngineFailed):
            self._control.write(bytes([self.number]))
            while (await self.receive())[:1] != Kind.ENDED:
                pass

    async def aclose(self) -> None:
        self._control.close()
        with anyio.move_on_after(_END_S):
            while not self.has_died():
                await anyio.sleep(0.002)
        self.end()


def _end(process: subprocess.Popen[bytes], messages: socket.socket, control: IO[bytes]) -> None:
    """The end of ``control`` ends the process and its workers."""
    control.close()
    messages.close()
    try:
        process.wait(_END_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
