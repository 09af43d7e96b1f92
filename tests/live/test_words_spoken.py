"""Every dialect, and a stream that is resumed, says the words: the default voice, judged by a speech recogniser."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from websockets.sync.client import connect

from streaming_server.audio.pcm import to_float32
from streaming_server.domain import FloatSamples
from tests.support.asr import word_error_rate
from tests.support.decoders import ffmpeg_decode
from tests.support.fakes import FOREVER
from tests.support.server import RECORDINGS, LiveServer, eventually, running

TEXT = "The old man walked slowly down the road, and nobody asked him where he was going."
RATE_HZ = 24000


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("root")


@pytest.fixture(scope="module")
def live(root: Path) -> Iterator[LiveServer]:
    """A server that really speaks."""
    with running(workflow_root=str(root), resume_grace_s=FOREVER) as server:
        yield server


def opus(live: LiveServer, _: Path) -> bytes:
    return live.post("/synthesize_stream_opus", {"text": TEXT}).content


def whole(live: LiveServer, _: Path) -> bytes:
    return live.post("/synthesize", {"text": TEXT}).content


def task(live: LiveServer, _: Path) -> bytes:
    recording = {"file": ("voice.wav", (RECORDINGS / "voice_02.wav").read_bytes())}
    upload = live.client.post("/api/v1/upload/audio", files=recording).json()["file_id"]
    submitted = live.post("/api/v1/tts", {"text": TEXT, "prompt_audio_id": upload}).json()["task_id"]
    eventually(lambda: live.get(f"/api/v1/task/{submitted}").json()["status"] == "completed")
    return live.get(f"/api/v1/audio/{submitted}").content


def workflow(live: LiveServer, root: Path) -> bytes:
    chain = {"workflow_chain": ["indextts.generate_speech"]}
    config = {"indextts_config": {"text": TEXT, "output_path": "/share/out/a.wav"}}
    body = {"video_path": "/app/videos/example.mp4", "workflow_config": {**chain, **config}}
    live.post("/v1/workflows", body).raise_for_status()
    (made,) = root.rglob("a.wav")
    return made.read_bytes()


def higgs(live: LiveServer, _: Path) -> bytes:
    return base64.b64decode(live.post("/generate", {"text": TEXT}).json()["audio_base64"])


def session(live: LiveServer, _: Path) -> bytes:
    url = f"ws://127.0.0.1:{live.port}/v1/audio/speech/stream"
    with connect(url, max_size=None, open_timeout=180, close_timeout=180, ping_interval=None) as socket:
        socket.send(json.dumps({"type": "session.config", "voice": "alloy", "response_format": "wav"}))
        socket.send(json.dumps({"type": "input.text", "text": TEXT}))
        socket.send(json.dumps({"type": "input.done"}))
        while isinstance(message := socket.recv(timeout=180), str):
            pass
        return message


@pytest.mark.parametrize("ask", [opus, whole, task, workflow, higgs, session], ids=lambda ask: ask.__name__)
def test_every_dialect_says_the_words(live: LiveServer, root: Path, ask: Callable[[LiveServer, Path], bytes]) -> None:
    assert word_error_rate([(samples_of(ask(live, root)), TEXT)], RATE_HZ) <= 0.1


@pytest.mark.parametrize("kind", ["opus", "mp3"])
def test_a_stream_that_broke_and_was_resumed_says_the_words(live: LiveServer, kind: str) -> None:
    body = {"model": "tts-1", "input": TEXT, "voice": "alloy", "response_format": kind}
    with live.client.stream("POST", "/v1/audio/speech", json=body, headers={"X-Resumable": "true"}) as response:
        received = b""
        pieces = response.iter_raw()
        while len(received) < 8000:
            received += next(pieces)
    begin = received[:8000]
    rest = live.get(f"/streams/{response.headers['x-stream-id']}", params={"from": len(begin)}).content
    assert min(len(begin), len(rest)) > 4000, "the cut is not within the speech"
    assert word_error_rate([(samples_of(begin + rest), TEXT)], RATE_HZ) <= 0.1


def samples_of(content: bytes) -> FloatSamples:
    return to_float32(ffmpeg_decode(content, RATE_HZ))
