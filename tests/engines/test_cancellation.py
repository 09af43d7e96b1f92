"""Cancellation stops the text front end, the voice analysis and the vocoder between two pieces of work."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from contextlib import aclosing
from pathlib import Path

import pytest

from streaming_server.domain import Generation, SpeechRequest, Voice
from streaming_server.engines.indextts.engine import IndexTTSEngine
from streaming_server.engines.indextts.frontend import Frontend, TextNormalizer
from streaming_server.engines.indextts.runtime import Runtime
from tests.engines.indextts.tiny import make_checkpoint
from tests.support.server import RECORDINGS

TEXT = "It costs $12.50, and that is all there is to say. " * 100


class Gate:
    """Counts the calls of a function; the second one waits until the gate is opened."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, owner: type, name: str) -> None:
        self.calls = 0
        self.reached = threading.Event()
        self.opened = threading.Event()
        self.is_armed = False
        function: Callable[..., object] = getattr(owner, name)

        def gated(*arguments: object, **options: object) -> object:
            if self.is_armed:
                self.calls += 1
                if self.calls == 2:
                    self.reached.set()
                    assert self.opened.wait(60)
            return function(*arguments, **options)

        monkeypatch.setattr(owner, name, gated)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("checkpoint"))


@pytest.mark.parametrize(("owner", "name"), [(TextNormalizer, "_words"), (Runtime, "condition")])
def test_a_client_that_leaves_ends_the_work_before_the_first_code(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch, owner: type, name: str
) -> None:
    """Cancelled within the second piece, the engine begins no third one and is free."""
    gate = Gate(monkeypatch, owner, name)
    later = Gate(monkeypatch, Runtime, "decode")
    if name == "condition":
        gate.calls = 1  # a voice is analysed in one call of it

    async def main() -> None:
        engine = IndexTTSEngine(model_dir=checkpoint, device="cpu")
        await engine.warm()
        gate.is_armed = later.is_armed = True
        request = SpeechRequest(TEXT, Voice("v", RECORDINGS / "voice_01.wav"), Generation(max_mel_tokens=4))

        async def listen() -> None:
            async with aclosing(engine.stream(request)) as chunks:
                async for _ in chunks:
                    pass

        listening = asyncio.create_task(listen())
        await asyncio.to_thread(gate.reached.wait, 60)
        listening.cancel()
        await asyncio.sleep(0)
        gate.opened.set()
        with pytest.raises(asyncio.CancelledError):
            await listening
        assert (gate.calls, later.calls) == (2, 0)
        gate.is_armed = later.is_armed = False
        async with aclosing(engine.stream(request)) as chunks:
            assert (await anext(chunks)).samples.size
        await engine.aclose()

    asyncio.run(main())


def test_the_normaliser_is_given_bounded_pieces(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its time grows faster than linearly, and it cannot be interrupted."""
    given: list[str] = []
    words = TextNormalizer._words

    def unchanged(_: TextNormalizer, text: str, _language: str) -> str:
        given.append(text)
        return text

    monkeypatch.setattr(TextNormalizer, "_words", unchanged)
    frontend = Frontend(checkpoint / "bpe.model")
    for text in ("1" * 5000, "a" * 5000, "1.2年" * 1250, TEXT, "# " * 2500, "xuan4 3 " * 600, "a-" * 2500):
        given.clear()
        frontend.segments(text, 60)
        assert max(map(len, given)) <= 100
        assert sum(map(len, given)) <= len(text)
    given.clear()
    frontend.segments("。！…" * 2000, 60)
    assert not given
    monkeypatch.setattr(TextNormalizer, "_words", words)
    assert frontend.normalise("It is 5 km. " * 3).split() == ["It", "is", "five", "kilometers."] * 3
