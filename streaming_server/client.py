"""A test client of the HiggsAudio dialect, for ``streaming-server test``."""

from __future__ import annotations

import base64
import json
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from http.client import HTTPException, HTTPResponse
from typing import Any

from streaming_server.errors import SpeechServerError

_TEXT = "Hello, this is a test of the speech server."
_TIMEOUT_S = 300.0


class TestFailed(SpeechServerError):
    """The server cannot be reached, refuses the request, or returns an invalid answer."""

    code = "test_failed"


@dataclass(frozen=True, slots=True)
class Server:
    """A server to test."""

    url: str
    api_key: str = ""
    """Empty for none."""

    def json(self, path: str, body: Mapping[str, Any] | None = None) -> Any:
        """Return the answer of a route; with ``body``, to a POST."""
        with self.opened(path, body) as response:
            return json.load(response)

    @contextmanager
    def opened(self, path: str, body: Mapping[str, Any] | None = None) -> Iterator[HTTPResponse]:
        """Open the answer of a route.

        Raises:
            TestFailed: the server cannot be reached or refuses the request.
        """
        content = None if body is None else json.dumps(body).encode()
        headers = {"Content-Type": "application/json"}
        if self.api_key:
            headers["Authorization"] = f"Bearer {self.api_key}"
        try:
            request = urllib.request.Request(self.url + path, content, headers)
            with urllib.request.urlopen(request, timeout=_TIMEOUT_S) as response:
                yield response
        except urllib.error.HTTPError as error:
            raise TestFailed(f"{path}: {error.code} {error.read(2000).decode(errors='replace')}") from None
        except (OSError, HTTPException, ValueError) as error:
            raise TestFailed(f"{self.url + path}: {getattr(error, 'reason', error)}") from None


def basic(server: Server) -> Iterator[str]:
    """Report the configuration and synthesise a sentence in the default voice."""
    info = server.json("/info")
    yield f"model {info['model_name']} on {info['device']}: {', '.join(info['supported_features'])}"
    yield f"{server.json('/voices')['count']} voices, {server.json('/scenes')['count']} scenes"
    yield _described(server.json("/generate", {"text": _TEXT}))


def voice_clone(server: Server) -> Iterator[str]:
    """Synthesise a sentence in the first voice of the list."""
    voices = server.json("/voices")["voices"]
    if not voices:
        raise TestFailed(f"{server.url} has no voices")
    name = voices[0]["name"]
    yield f"voice {name}"
    yield _described(server.json("/generate", {"text": _TEXT, "ref_audio": name}))


def streaming(server: Server) -> Iterator[str]:
    """Synthesise a sentence as events."""
    began_s = time.monotonic()
    size, count = 0, 0
    with server.opened("/generate-stream", {"text": _TEXT}) as response:
        for line in response:
            if not line.startswith(b"data: "):
                continue
            event = json.loads(line[6:])
            if event["type"] == "error":
                raise TestFailed(event["message"])
            if event["type"] == "audio":
                if not count:
                    yield f"first audio after {time.monotonic() - began_s:.3f} s"
                count, size = count + 1, size + len(base64.b64decode(event["audio_base64"]))
            if event["type"] == "done":
                seconds = size / 2 / event["sampling_rate"]
                yield f"{seconds:.2f} s of audio in {count} pieces after {time.monotonic() - began_s:.3f} s"
                return
    raise TestFailed("the stream ended before its last event")


TESTS: Mapping[str, Callable[[Server], Iterator[str]]] = {
    "basic": basic,
    "voice-clone": voice_clone,
    "streaming": streaming,
}
"""Tests by name: each takes the server and yields lines of output; `run` translates its errors."""


def run(name: str, server: Server) -> Iterator[str]:
    """Run one test.

    Raises:
        TestFailed: as described there.
    """
    try:
        yield from TESTS[name](server)
    except KeyError as error:
        raise TestFailed(f"{server.url}: not an answer of the HiggsAudio dialect: {error.args[0]} is missing") from None
    except (TypeError, ValueError) as error:
        raise TestFailed(f"{server.url}: not an answer of the HiggsAudio dialect: {error}") from None


def _described(answer: Mapping[str, Any]) -> str:
    content = base64.b64decode(answer["audio_base64"])
    if not answer["success"] or content[:4] != b"RIFF" or not answer["duration"]:
        raise TestFailed("the answer has no audio in it")
    return f"{answer['duration']:.2f} s of audio at {answer['sampling_rate']} Hz, {len(content)} bytes"
