"""Cancellation stops the text front end, the voice analysis, the flow and the vocoder between two pieces of work."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from contextlib import aclosing
from pathlib import Path

import pytest

from streaming_server.domain import Generation, Granularity, SpeechRequest, Voice
from streaming_server.engines.base import Engine
from streaming_server.engines.indextts.engine import IndexTTSEngine
from streaming_server.engines.indextts.frontend import Frontend, TextNormalizer
from streaming_server.engines.indextts.runtime import Runtime
from streaming_server.engines.indextts2.engine import IndexTTS2Engine
from streaming_server.engines.indextts2.flow import Slots
from streaming_server.engines.indextts2.options import IndexTTS2Options
from streaming_server.engines.torch.vocoder import ResidualBlock
from streaming_server.engines.torch.vocoding import VocoderThread, Vocoding
from tests.engines.indextts.tiny import make_checkpoint
from tests.engines.indextts2 import tiny as tiny2
from tests.support.server import RECORDINGS, eventually

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
                    assert self.opened.wait(180)
            return function(*arguments, **options)

        monkeypatch.setattr(owner, name, gated)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folders of checkpoints by version."""
    folder = tmp_path_factory.mktemp("models")
    return {"1.5": make_checkpoint(folder / "1.5"), "2.5": tiny2.make_checkpoint(folder / "2.5", "2.5")}


@pytest.fixture(scope="module")
def checkpoint(models: dict[str, Path]) -> Path:
    return models["1.5"]


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
        later.is_armed = True
        request = request_for(TEXT)
        await leave(engine, request, gate)
        assert (gate.calls, later.calls) == (2, 0)
        later.is_armed = False
        async with aclosing(engine.stream(request)) as chunks:
            assert (await anext(chunks)).samples.size
        await engine.aclose()

    asyncio.run(main())


def request_for(text: str, granularity: Granularity = Granularity.TOKEN) -> SpeechRequest:
    return SpeechRequest(text, Voice("v", RECORDINGS / "voice_01.wav"), Generation(max_mel_tokens=12), granularity)


async def leave(
    engine: Engine, request: SpeechRequest, gate: Gate, is_noticed: Callable[[], bool] = lambda: True
) -> None:
    """Listen until the gate is reached, leave, open the gate once that is noticed, and wait for the engine."""

    async def listen() -> None:
        async with aclosing(engine.stream(request)) as chunks:
            async for _ in chunks:
                pass

    gate.is_armed = True
    listening = asyncio.create_task(listen())
    assert await asyncio.to_thread(gate.reached.wait, 180)
    listening.cancel()
    await asyncio.sleep(0)
    await asyncio.to_thread(eventually, is_noticed)
    gate.opened.set()
    with pytest.raises(asyncio.CancelledError):
        await listening
    gate.is_armed = False


@pytest.mark.parametrize("granularity", [Granularity.TOKEN, Granularity.SENTENCE])
@pytest.mark.parametrize(
    ("version", "owner", "name"),
    [("1.5", ResidualBlock, "forward"), ("2.5", ResidualBlock, "forward"), ("2.5", Slots, "step")],
)
def test_a_client_that_leaves_ends_the_work_after_the_last_code(
    models: dict[str, Path],
    monkeypatch: pytest.MonkeyPatch,
    version: str,
    owner: type,
    name: str,
    granularity: Granularity,
) -> None:
    """Nothing is left to decode, so that only the vocoder and the flow can notice that the client has left."""
    gate = Gate(monkeypatch, owner, name)
    sessions: list[Vocoding] = []
    session = VocoderThread.session

    def noting(self: VocoderThread) -> Vocoding:
        sessions.append(session(self))
        return sessions[-1]

    monkeypatch.setattr(VocoderThread, "session", noting)

    async def main() -> None:
        engine: Engine = (
            IndexTTSEngine(model_dir=models[version], device="cpu")
            if version == "1.5"
            else IndexTTS2Engine(IndexTTS2Options(model_dir=models[version], steps=4, device="cpu"))
        )
        await engine.warm()
        request = request_for("One.", granularity)
        await leave(engine, request, gate, lambda: sessions[-1].is_left)
        assert gate.calls == 2
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
    for text in ("1" * 5000, "A" * 5000, "1.2年" * 1250, TEXT, "# " * 2500, "xuan4 3 " * 600, "A-" * 2500):
        given.clear()
        frontend.segments(text, 60)
        assert max(map(len, given), default=0) <= 100
        assert sum(map(len, given)) <= len(text)
    given.clear()
    for text in ("。！…" * 2000, "‹" * 5000, "† " * 2500, "a‹" * 2500, "lower case " * 500):
        frontend.segments(text, 60)
    assert not given
    monkeypatch.setattr(TextNormalizer, "_words", words)
    assert frontend.normalise("It is 5 km. " * 3).split() == ["It", "is", "five", "kilometers."] * 3
    assert frontend.normalise("He said “it costs $5” to him.") == "He said 'it costs five dollars' to him."
