"""The format and the dialect of docs/extending.md; tests/engines/test_registry.py has its engine."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType

import av
import numpy as np
import pytest

from streaming_server.api.openai import routes
from tests.support.documentation import example
from tests.support.fakes import tone
from tests.support.server import running, speaking


@pytest.fixture
def module(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """An example, imported as a module."""
    name: str = request.param
    (tmp_path / name).write_text(example(name))
    monkeypatch.syspath_prepend(tmp_path)
    return importlib.import_module(name.removesuffix(".py"))


@pytest.mark.parametrize("module", ["mulaw.py"], indirect=True)
def test_the_format(module: ModuleType) -> None:
    samples = (np.sin(np.arange(24000) / 20) * 20000).astype(np.int16)
    whole = module.FORMAT.create()
    assert whole.start(24000) == b""
    expected = whole.push(samples) + whole.finish()
    pieces = module.FORMAT.create()
    pieces.start(24000)
    assert b"".join(pieces.push(part) for part in np.split(samples, [1, 777, 9999])) + pieces.finish() == expected
    assert len(expected) == 8000

    loud = np.array([0, 1, -1, 100, -100, 32767, -32768, 1000, -12345], np.int16)
    decoder = av.CodecContext.create("pcm_mulaw", "r")
    decoder.sample_rate, decoder.layout = 8000, "mono"
    (frame,) = decoder.decode(av.Packet(module.compressed(loud)))
    assert np.abs(frame.to_ndarray()[0].astype(int) - loud).max() <= 1024
    assert np.abs(frame.to_ndarray()[0, :5].astype(int) - loud[:5]).max() <= 8


@pytest.mark.parametrize("module", ["hello.py"], indirect=True)
def test_the_dialect(module: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(routes, "OpenAIDialect", module.HelloDialect)
    with running(speaking(tone(0.5)), api_keys=("secret",)) as server:
        key = {"X-API-Key": "secret"}
        speech = server.post("/hello", {"words": "Hello.", "who": "voice_03"}, headers=key)
        unknown = server.post("/hello", {"words": "Hello.", "who": "nobody"}, headers=key)
        stranger = server.post("/hello", {"words": "Hello."})
        description = server.get("/openapi.json").json()
    assert speech.status_code == 200
    assert speech.content.startswith(b"OggS")
    assert speech.headers["X-Stream-Id"]
    assert unknown.status_code == 400
    assert unknown.json()["oops"].startswith("unknown who 'nobody'")
    assert stranger.status_code == 401
    assert list(stranger.json()) == ["oops"]
    assert description["paths"]["/hello"]["post"]["summary"] == "Stream a text as Ogg Opus"
