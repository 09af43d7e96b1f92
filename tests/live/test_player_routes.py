"""The player's own routes: voices with names, and speech with the options of the page."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from streaming_server.audio.decode import decode_native
from streaming_server.domain import Granularity
from tests.support.fakes import RATE_HZ, Gate, tone
from tests.support.server import RECORDINGS, LiveServer, running, speaking

PATH = "/player/speech"


@pytest.fixture(scope="module")
def server() -> Iterator[LiveServer]:
    with running(speaking(tone(0.5))) as live:
        yield live


def asked(server: LiveServer, **body: Any) -> Any:
    response = server.post(PATH, {"text": "Hello.", **body})
    assert response.status_code == 200, response.text
    return server.engine.requests[-1]


def test_voices_are_listed_with_what_is_known_of_them(tmp_path: Path) -> None:
    for name in ("b.wav", "voice_01.wav", "gone.wav"):
        shutil.copy(RECORDINGS / "voice_01.wav", tmp_path / name)
    table = tmp_path / "voices.toml"
    table.write_text('[b]\ntitle = "Bea"\nlanguages = ["en", "zh"]\ngender = "female"\n')
    with running(speaking(tone(0.1)), reference_audio_dir=tmp_path) as live:

        def listed() -> list[Any]:
            voices: list[Any] = live.get("/player/voices").json()["voices"]
            return voices

        described = {
            "name": "b",
            "title": "Bea",
            "languages": ["en", "zh"],
            "gender": "female",
            "kind": "recording",
            "index": 0,
            "available": True,
            "sample_url": "/download_reference_audio/0",
        }
        assert listed()[0] == described
        assert live.get(listed()[0]["sample_url"]).content == (tmp_path / "b.wav").read_bytes()
        (tmp_path / "gone.wav").unlink()
        assert [voice["name"] for voice in listed()] == ["b", "voice_01"]
        table.write_text('[b]\ntitle = "Beatrice"\n')
        assert listed()[0]["title"] == "Beatrice"
        table.write_text("[b]\ntitle = 7\n")
        assert listed()[0]["title"] == "b"


def test_an_engine_that_does_not_clone_offers_its_presets_alone() -> None:
    with running() as live:
        voices = live.get("/player/voices").json()["voices"]
        assert [voice["kind"] for voice in voices] == ["preset"] * 13
        assert {voice["gender"] for voice in voices} == {"male", "female"}


@pytest.mark.parametrize("name", ["voice_05", "voice_05.wav"])
def test_a_voice_is_named(server: LiveServer, name: str) -> None:
    assert asked(server, voice=name).voice.name == "voice_05"
    assert asked(server).voice.name == "voice_01"


def test_an_upload_is_a_voice(server: LiveServer) -> None:
    with (RECORDINGS / "voice_02.wav").open("rb") as recording:
        uploaded = server.client.post("/api/v1/upload/audio", files={"file": recording}).json()
    assert asked(server, voice=uploaded["file_id"]).voice.name == uploaded["file_id"]


def test_tags_make_a_dialogue(server: LiveServer) -> None:
    script = asked(server, text="[SPEAKER0] Hi. [SPEAKER1] Hello. [SPEAKER0] Bye.", voice="voice_02, voice_04").voice
    assert script.name == "voice_02"
    spoken = [(request.text, request.voice.name) for request in server.engine.requests[-3:]]
    assert spoken == [("Hi.", "voice_02"), ("Hello.", "voice_04"), ("Bye.", "voice_02")]


def test_every_field_reaches_the_engine(server: LiveServer) -> None:
    request = asked(server, seed=3, temperature=0.5, speed=1.5, stream_granularity="sentence", emo_text="sad")
    assert (request.generation.seed, request.generation.temperature, request.speed) == (3, 0.5, 1.5)
    assert request.granularity is Granularity.SENTENCE
    assert request.emotion.text == "sad"
    assert asked(server, language="German").language == "de"
    vector = [0, 0.5, 0, 0, 0, 0, 0, 0]
    emotion = asked(server, emo_vector=vector, emo_weight=0.4).emotion
    assert (emotion.vector, emotion.weight) == (tuple(vector), 0.4)
    assert asked(server, emo_audio="voice_03").emotion.reference.name == "voice_03"


@pytest.mark.parametrize("name", ["ogg", "webm", "mp3", "aac", "flac", "wav"])
def test_every_format_decodes(server: LiveServer, tmp_path: Path, name: str) -> None:
    response = server.post(PATH, {"text": "Hello.", "format": name})
    path = tmp_path / f"speech.{name}"
    path.write_bytes(response.content)
    samples, rate_hz = decode_native(path)
    assert samples.size / rate_hz == pytest.approx(0.5, abs=0.08)


def test_pcm_states_its_rate(server: LiveServer) -> None:
    response = server.post(PATH, {"text": "Hello.", "format": "pcm"})
    assert response.headers["x-sample-rate"] == str(RATE_HZ)
    assert len(response.content) == RATE_HZ  # half a second of two bytes a sample


@pytest.mark.parametrize(
    ("field", "body", "status"),
    [
        ("voice", {"voice": "nobody"}, 422),
        ("voice", {"voice": ",".join(["voice_01"] * 65), "text": "[SPEAKER0] a"}, 422),
        ("emo_audio", {"emo_audio": "nobody"}, 422),
        ("emo_audio", {"emo_text": "sad", "emo_audio": "voice_01"}, 422),
        ("emo_vector", {"emo_vector": [0.5] * 7}, 422),
        ("emo_weight", {"emo_weight": 2}, 422),
        ("speed", {"speed": 9}, 422),
        ("format", {"format": "midi"}, 422),
        ("language", {"language": "x" * 1025}, 422),
        ("ssml", {"ssml": True}, 422),
        ("ref_audio", {"ref_audio": "aGk="}, 422),
        ("instructions", {"instructions": "sad"}, 422),
        ("text", {"text": "[SPEAKER1] a"}, 422),
        ("text", {"text": "a" * 20_001}, 422),
    ],
)
def test_what_cannot_be_used_is_named(server: LiveServer, field: str, body: dict[str, Any], status: int) -> None:
    response = server.post(PATH, {"text": "Hello.", **body})
    assert response.status_code == status
    (problem,) = response.json()["detail"]
    assert field in problem["loc"]
    assert problem["msg"]


def test_what_the_engine_cannot_honour_is_listed(server: LiveServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server.engine, "capabilities", frozenset())
    plain = server.post(PATH, {"text": "Hello."})
    assert "x-ignored-settings" not in plain.headers
    ignored = server.post(PATH, {"text": "Hello.", "language": "tlh", "emo_text": "sad"})
    assert ignored.headers["x-ignored-settings"] == "emo_text, language"
    for field, value in {"emo_vector": [0.5] * 8, "emo_audio": "voice_01"}.items():
        assert server.post(PATH, {"text": "Hello.", field: value}).headers.get("x-ignored-settings") == field


def test_the_times_of_the_words_are_known() -> None:
    gate = Gate()
    with running(speaking(tone(2.0), gate)) as live:
        with live.client.stream("POST", PATH, json={"text": "Two (words)字."}) as response:
            path = f"/player/streams/{response.headers['x-stream-id']}/words"
            assert live.get(path).json() == {
                "complete": False,
                "duration": 2,
                "precision": "segment",
                "words": [],
            }
            gate.open()
            response.read()
        known = live.get(path).json()
        assert (known["complete"], known["duration"]) == (True, 2)
        first, second, last = known["words"]
        assert (first["text"], first["start"], first["space"]) == ("Two", 0, True)
        assert (second["text"], second["space"]) == ("(words)", False)
        assert (last["text"], last["end"], last["space"]) == ("字.", 2, None)
        assert 0.4 < first["end"] <= second["start"] < 1
        missing = live.get("/player/streams/none/words")
        assert missing.status_code == 404
        assert missing.json()["detail"]
