"""A test client of the HiggsAudio dialect, for ``streaming-server test``."""

from __future__ import annotations

import base64
import json
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from http.client import HTTPException, HTTPResponse
from typing import Any

from streaming_server.errors import SpeechServerError

_TEXT = "Hello, this is a test of the speech server."
_TIMEOUT_S = 300.0


class TestFailed(SpeechServerError):
    """The server cannot be reached, refuses the request, or returns an invalid answer."""

    code = "test_failed"


def basic(url: str) -> Iterator[str]:
    """Report the configuration and synthesise a sentence in the default voice."""
    info = _json(url, "/info")
    yield f"model {info['model_name']} on {info['device']}: {', '.join(info['supported_features'])}"
    yield f"{_json(url, '/voices')['count']} voices, {_json(url, '/scenes')['count']} scenes"
    yield _described(_json(url, "/generate", {"text": _TEXT}))


def voice_clone(url: str) -> Iterator[str]:
    """Synthesise a sentence in the first voice of the list."""
    voices = _json(url, "/voices")["voices"]
    if not voices:
        raise TestFailed(f"{url} has no voices")
    name = voices[0]["name"]
    yield f"voice {name}"
    yield _described(_json(url, "/generate", {"text": _TEXT, "ref_audio": name}))


def streaming(url: str) -> Iterator[str]:
    """Synthesise a sentence as events."""
    began_s = time.monotonic()
    size, count = 0, 0
    with _opened(url, "/generate-stream", {"text": _TEXT}) as response:
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


TESTS: Mapping[str, Callable[[str], Iterator[str]]] = {
    "basic": basic,
    "voice-clone": voice_clone,
    "streaming": streaming,
}
"""Tests by name: each takes the server's URL, yields lines of output and raises `TestFailed` on an error."""


def _described(answer: Mapping[str, Any]) -> str:
    content = base64.b64decode(answer["audio_base64"])
    if not answer["success"] or content[:4] != b"RIFF" or not answer["duration"]:
        raise TestFailed("the answer has no audio in it")
    return f"{answer['duration']:.2f} s of audio at {answer['sampling_rate']} Hz, {len(content)} bytes"


def _json(url: str, path: str, body: Mapping[str, Any] | None = None) -> Any:
    with _opened(url, path, body) as response:
        return json.load(response)


@contextmanager
def _opened(url: str, path: str, body: Mapping[str, Any] | None = None) -> Iterator[HTTPResponse]:
    content = None if body is None else json.dumps(body).encode()
    try:
        request = urllib.request.Request(url + path, content, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=_TIMEOUT_S) as response:
            yield response
    except urllib.error.HTTPError as error:
        raise TestFailed(f"{path}: {error.code} {error.read(2000).decode(errors='replace')}") from None
    except (OSError, HTTPException, ValueError, KeyError) as error:
        raise TestFailed(f"{url + path}: {getattr(error, 'reason', error)}") from None
