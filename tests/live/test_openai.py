"""The OpenAI contract, through the official client where there is one."""

from __future__ import annotations

import base64
import json
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import httpx
import numpy as np
import openai
import pytest

from streaming_server.audio.decode import decode_native
from streaming_server.audio.pcm import to_float32, to_int16
from streaming_server.audio.pitch import median_pitch_hz
from streaming_server.domain import Emotion, FloatSamples
from streaming_server.engines.registry import create_engine
from tests.support.asr import word_error_rate
from tests.support.fakes import FOREVER, FakeEngine, Gate, tone
from tests.support.server import LiveServer, RawClient, eventually, logged, running, speaking

SPOKEN = "Mrs. Taylor lives at 42 Baker Street. Please read the manual before you turn on the machine."
MEDIA_TYPES = {
    "mp3": "audio/mpeg",
    "opus": "audio/ogg",
    "aac": "audio/aac",
    "flac": "audio/flac",
    "wav": "audio/wav",
    "pcm": "audio/pcm",
}
SPEECH = "/v1/audio/speech"
ResponseFormat = Literal["mp3", "opus", "aac", "flac", "wav", "pcm"]


@pytest.fixture(scope="module")
def speaker() -> Iterator[LiveServer]:
    """A server with a real engine."""
    with running() as live:
        yield live


@pytest.fixture(scope="module")
def server() -> Iterator[LiveServer]:
    """A server that returns one second of a tone."""
    with running(speaking(*[tone(0.25)] * 4)) as live:
        yield live


def client_of(live: LiveServer, **options: Any) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"http://127.0.0.1:{live.port}/v1", api_key="none", **{"max_retries": 0} | options)


def decoded(content: bytes, kind: str, folder: Path) -> tuple[FloatSamples, int]:
    if kind == "pcm":
        return to_float32(np.frombuffer(content, "<i2").astype(np.int16)), 24000
    source, target = folder / f"in.{kind}", folder / "out.wav"
    source.write_bytes(content)
    subprocess.run(["ffmpeg", "-v", "error", "-y", "-i", source, target], check=True)
    return decode_native(target)


@pytest.mark.parametrize("kind", ["mp3", "opus", "aac", "flac", "wav", "pcm"])
def test_every_format_says_the_words_and_streams(speaker: LiveServer, kind: ResponseFormat, tmp_path: Path) -> None:
    with (
        client_of(speaker) as client,
        client.audio.speech.with_streaming_response.create(
            model="tts-1", voice="alloy", input=SPOKEN, response_format=kind
        ) as response,
    ):
        assert response.headers["content-type"] == MEDIA_TYPES[kind]
        assert response.headers["transfer-encoding"] == "chunked"
        content = b"".join(response.iter_bytes())
    samples, rate_hz = decoded(content, kind, tmp_path)
    assert word_error_rate([(samples, SPOKEN)], rate_hz) <= 0.1


@pytest.mark.parametrize("speed", [0.8, 1.5])
def test_another_speed_is_understood(speaker: LiveServer, speed: float, tmp_path: Path) -> None:
    body = {"model": "m", "input": SPOKEN, "response_format": "opus", "speed": speed}
    samples, rate_hz = decoded(speaker.post(SPEECH, body).content, "opus", tmp_path)
    assert word_error_rate([(samples, SPOKEN)], rate_hz) <= 0.1


def test_the_recogniser_refuses_other_words_and_reversed_audio(speaker: LiveServer, tmp_path: Path) -> None:
    content = speaker.post(SPEECH, {"model": "m", "input": SPOKEN, "response_format": "wav"}).content
    samples, rate_hz = decoded(content, "wav", tmp_path)
    assert word_error_rate([(samples, "Nobody came to see the garden while it was raining.")], rate_hz) > 0.7
    assert word_error_rate([(samples[::-1].copy(), SPOKEN)], rate_hz) > 0.7


def test_what_the_engine_cannot_do_is_named() -> None:
    with running(FakeEngine(lambda _: [tone(0.1)], capabilities=frozenset())) as live:
        response = live.post(SPEECH, {"model": "m", "input": "a", "instructions": "whisper", "seed": 3})
        assert response.headers["x-ignored-settings"] == "instructions, seed"


@pytest.mark.parametrize("kind", MEDIA_TYPES)
def test_the_first_audio_comes_long_before_the_last(kind: str) -> None:
    rest = Gate()
    body = {"model": "m", "input": "a", "response_format": kind}
    with (
        running(speaking(tone(0.5), rest, tone(0.5))) as live,
        live.client.stream("POST", SPEECH, json=body) as response,
    ):
        pieces = response.iter_raw()
        received = 0
        while received < 500:
            received += len(next(pieces))
        rest.open()
        assert sum(len(piece) for piece in pieces) > 500


@pytest.mark.parametrize(
    ("kind", "extra_s"), [("mp3", 0.06), ("opus", 0), ("aac", 0.09), ("flac", 0), ("wav", 0), ("pcm", 0)]
)
def test_lengths_are_what_the_format_allows(server: LiveServer, kind: str, extra_s: float, tmp_path: Path) -> None:
    content = server.post(SPEECH, {"model": "m", "input": "a", "response_format": kind}).content
    samples, rate_hz = decoded(content, kind, tmp_path)
    assert 0 <= samples.size / rate_hz - 1.0 <= extra_s


def test_pcm_is_at_24000_hz_whatever_the_engine() -> None:
    with running(create_engine("espeak", {})) as live:
        whole = live.post("/synthesize", {"text": "one two three"})
        content = live.post(SPEECH, {"model": "m", "input": "one two three", "response_format": "pcm"}).content
    assert len(content) / 48000 == pytest.approx((len(whole.content) - 44) / 44100, rel=0.02)


@pytest.mark.parametrize("speed", [0.5, 2.0])
def test_speed_changes_the_tempo_and_keeps_the_pitch(speaker: LiveServer, speed: float, tmp_path: Path) -> None:
    text = "The north wind and the sun were disputing which of them was the stronger."
    with client_of(speaker) as client:

        def spoken(at: float) -> tuple[FloatSamples, int]:
            answer = client.audio.speech.create(model="m", voice="nova", input=text, response_format="wav", speed=at)
            return decoded(answer.content, "wav", tmp_path)

        plain, rate_hz = spoken(1.0)
        changed, _ = spoken(speed)
    assert plain.size / changed.size == pytest.approx(speed, rel=0.05)
    plain_hz, changed_hz = median_pitch_hz(plain, rate_hz), median_pitch_hz(changed, rate_hz)
    assert plain_hz is not None
    assert changed_hz == pytest.approx(plain_hz, rel=0.08)  # its noise moves the estimate by a few percent


def test_voices_are_the_eleven_and_whatever_else_is_there(server: LiveServer) -> None:
    voices = server.get("/v1/audio/voices").json()["voices"]
    names = ["alloy", "echo", "fable", "onyx", "nova", "shimmer", "ash", "ballad", "coral", "sage", "verse"]
    listed = [*names, "marin", "cedar"]
    assert voices == [{"id": name, "name": name.capitalize(), "language": "multi"} for name in listed]
    for number, name in enumerate(names, 1):
        server.post(SPEECH, {"model": "m", "input": "a", "voice": name})
        assert server.engine.requests[-1].voice.name == f"voice_{number:02}"
    server.post(SPEECH, {"model": "m", "input": "a", "voice": {"id": "nova"}})
    assert server.engine.requests[-1].voice.name == "voice_05"
    server.post(SPEECH, {"model": "m", "input": "a"})
    assert server.engine.requests[-1].voice.name == "voice_01"


def test_a_file_of_another_name_is_a_voice_too(tmp_path: Path) -> None:
    recording = (Path(__file__).parents[2] / "reference_audios" / "voice_01.wav").read_bytes()
    for name in ("voice_01.wav", "narrator 7.wav"):
        (tmp_path / name).write_bytes(recording)
    with running(speaking(tone(0.1)), reference_audio_dir=tmp_path) as live:
        assert [voice["id"] for voice in live.get("/v1/audio/voices").json()["voices"]] == ["alloy", "narrator 7"]
        assert live.post(SPEECH, {"model": "m", "input": "a", "voice": "narrator 7"}).status_code == 200
        refused = live.post(SPEECH, {"model": "m", "input": "a", "voice": "echo"}).json()["error"]
        assert "alloy, narrator 7" in refused["message"]


def test_a_file_named_like_one_of_the_eleven_is_that_voice_and_folders_are_none(tmp_path: Path) -> None:
    recording = (Path(__file__).parents[2] / "reference_audios" / "voice_01.wav").read_bytes()
    for name in ("alloy.wav", "sample.wav", "sample.mp3"):
        (tmp_path / name).write_bytes(recording)
    (tmp_path / "folder.wav").mkdir()
    (tmp_path / "\udcff.wav").write_bytes(recording)
    with running(speaking(tone(0.1)), reference_audio_dir=tmp_path) as live:
        assert [voice["id"] for voice in live.get("/v1/audio/voices").json()["voices"]] == ["alloy", "sample"]
        assert live.post(SPEECH, {"model": "m", "input": "a"}).status_code == 200
        assert live.get("/reference_audios").json()["total_count"] == 3
        assert live.post(SPEECH, {"model": "m", "input": "a", "voice": "sample.wav"}).status_code == 200
        assert live.engine.requests[-1].voice.path.name == "sample.wav"
        assert live.post("/api/v1/tts", {"text": "task", "prompt_audio_id": "sample.wav"}).status_code == 200
        eventually(lambda: live.engine.requests[-1].text == "task")
        assert live.engine.requests[-1].voice.path.name == "sample.wav"


def test_models(server: LiveServer) -> None:
    with client_of(server) as client:
        assert [model.id for model in client.models.list()] == ["fake", "tts-1", "tts-1-hd", "gpt-4o-mini-tts"]
        assert client.models.retrieve("tts-1").id == "tts-1"
        with pytest.raises(openai.NotFoundError):
            client.models.retrieve("whisper-1")


def test_everything_answers_without_v1_too(server: LiveServer) -> None:
    for path in ("/audio/voices", "/models", "/models/tts-1"):
        assert server.get(path).json() == server.get("/v1" + path).json()
    assert server.post("/audio/speech", {"model": "m", "input": "a"}).headers["content-type"] == "audio/mpeg"


def test_the_default_format_is_a_setting() -> None:
    with running(speaking(tone(0.1)), openai_default_format="wav") as live:
        assert live.post(SPEECH, {"model": "m", "input": "a"}).headers["content-type"] == "audio/wav"


def test_events_carry_the_audio_and_the_usage(server: LiveServer) -> None:
    body = {"model": "m", "input": "hello", "response_format": "pcm", "stream_format": "sse"}
    response = server.post(SPEECH, body)
    assert response.headers["content-type"].startswith("text/event-stream")
    events = [json.loads(line[6:]) for line in response.text.splitlines() if line]
    assert all(line.startswith("data: ") for line in response.text.splitlines() if line)
    *deltas, done = events
    assert {event["type"] for event in deltas} == {"speech.audio.delta"}
    audio = b"".join(base64.b64decode(event["audio"]) for event in deltas)
    assert audio == to_int16(tone(0.25)).tobytes() * 4
    assert done == {
        "type": "speech.audio.done",
        "usage": {"input_tokens": 5, "output_tokens": 50, "total_tokens": 55},
    }


def test_usage_and_log_count_the_audio_at_its_speed(server: LiveServer, caplog: pytest.LogCaptureFixture) -> None:
    body = {"model": "m", "input": "hello", "response_format": "pcm", "stream_format": "sse", "speed": 2}
    caplog.set_level("INFO", "streaming_server.api.middleware")
    *_, done = server.post(SPEECH, body).text.splitlines()[::2]
    assert json.loads(done[6:])["usage"]["output_tokens"] == 25
    eventually(lambda: logged(caplog, route=SPEECH, audio_s=0.5))


def test_instructions_reach_the_engine_as_an_emotion(server: LiveServer) -> None:
    server.post(SPEECH, {"model": "m", "input": "a", "instructions": "Speak sadly."})
    assert server.engine.requests[-1].emotion == Emotion(text="Speak sadly.")
    server.post(SPEECH, {"model": "m", "input": "a", "instructions": " "})
    assert server.engine.requests[-1].emotion is None


BAD: list[tuple[dict[str, Any], str | None]] = [
    ({"model": None}, "model"),
    ({"input": ""}, "input"),
    ({"input": "  \n"}, "input"),
    ({"input": "a" * 4097}, "input"),
    ({"input": "a\0"}, "input"),
    ({"input": 5}, "input"),
    ({"voice": "nobody"}, "voice"),
    ({"voice": 5}, "voice"),
    ({"voice": {}}, "voice"),
    ({"voice": "../../etc/passwd"}, "voice"),
    ({"voice": {"id": "nobody"}}, "voice"),
    ({"response_format": "doc"}, "response_format"),
    ({"speed": 0.24}, "speed"),
    ({"speed": 4.1}, "speed"),
    ({"speed": "NaN"}, "speed"),
    ({"speed": "fast"}, "speed"),
    ({"stream_format": "x"}, "stream_format"),
]


@pytest.mark.parametrize(("change", "param"), BAD, ids=lambda value: str(value)[:40])
def test_a_bad_request_is_a_400_in_openais_shape(server: LiveServer, change: dict[str, Any], param: str | None) -> None:
    made = len(server.engine.requests)
    response = server.post(SPEECH, {"model": "m", "input": "a"} | change)
    assert response.status_code == 400
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert not error["message"].startswith("body")
    assert (error["type"], error["param"], error["code"]) == ("invalid_request_error", param, None)
    assert error["message"]
    assert len(server.engine.requests) == made
    assert server.post(SPEECH, {"model": "m", "input": "a"}).status_code == 200


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [("GET", SPEECH, 405), ("GET", "/v1/audio/nothing", 404), ("POST", "/v1/models", 405), ("POST", SPEECH, 400)],
)
def test_other_refusals_have_openais_shape_too(server: LiveServer, method: str, path: str, status: int) -> None:
    response = server.client.request(method, path, content=b"{" if status == 400 else b"")
    assert response.status_code == status
    assert set(response.json()["error"]) == {"message", "type", "param", "code"}


def test_the_client_raises_its_own_errors(server: LiveServer) -> None:
    with client_of(server) as client, pytest.raises(openai.BadRequestError, match="unknown voice 'nobody'"):
        client.audio.speech.create(model="m", voice="nobody", input="a")


def test_a_full_queue_is_tried_again_by_the_client() -> None:
    rest = Gate()
    with running(speaking(tone(0.1), rest), max_queue=0) as live, client_of(live, max_retries=5) as client:
        holding = RawClient(live.port, SPEECH, {"model": "m", "input": "a"})
        holding.read()
        refused = live.post(SPEECH, {"model": "m", "input": "a"})
        assert (refused.status_code, refused.json()["error"]["type"]) == (503, "server_error")
        assert int(refused.headers["retry-after"]) >= 1
        threading.Timer(0.5, rest.open).start()
        assert client.audio.speech.create(model="m", voice="alloy", input="a").content
        holding.close()


def test_audio_is_refused_at_once_where_the_wait_is_too_long_but_events_are_not(
    server: LiveServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    body = {"model": "m", "input": "a"}
    server.post(SPEECH, body).raise_for_status()  # measures the speed
    for wait_s, status in ((25.5, 503), (24.5, 200)):
        monkeypatch.setattr(server.service.slot, "expected_wait_s", lambda _, wait_s=wait_s: wait_s)
        response = server.post(SPEECH, body)
        assert response.status_code == status
        assert server.post(SPEECH, body | {"stream_format": "sse"}).status_code == 200
        if status == 503:
            assert response.headers["retry-after"] == "26"
            assert "within 25 s" in response.json()["error"]["message"]


def test_a_failure_inside_the_engine_is_a_500() -> None:
    with running(speaking(ValueError("/secret/path"))) as live, client_of(live) as client:
        with pytest.raises(openai.InternalServerError) as caught:
            client.audio.speech.create(model="m", voice="alloy", input="a")
        assert "secret" not in str(caught.value)


def test_a_client_that_stops_reading_frees_the_slot() -> None:
    with running(speaking(tone(0.5), FOREVER)) as live, client_of(live) as client:
        with client.audio.speech.with_streaming_response.create(
            model="m", voice="alloy", input="a", response_format="pcm"
        ) as response:
            pieces = response.iter_bytes()
            next(pieces)
            assert live.queue()["is_processing"]
        eventually(lambda: not live.queue()["is_processing"])


@pytest.mark.parametrize(
    "path", ["/v1/models", "/synthesize", "/tts", "/opus_queue_status", "/reference_audios", "/streams/x", "/nothing"]
)
def test_keys_guard_every_dialect(path: str) -> None:
    with running(speaking(tone(0.1)), api_keys=("first-key", "second-key")) as live:
        shapes: dict[str, set[str]] = {"/v1/models": {"error"}, "/tts": {"status", "error"}}
        for headers in ({}, {"Authorization": "Bearer wrong"}, {"X-API-Key": "first"}, {"Authorization": "first-key"}):
            refused = live.get(path, headers=headers)
            assert refused.status_code == 401
            assert set(refused.json()) == shapes.get(path, {"detail"})
            assert refused.headers["www-authenticate"] == "Bearer"
        for headers in ({"Authorization": "Bearer first-key"}, {"X-API-Key": "second-key"}):
            assert live.get(path, headers=headers).status_code != 401
        for open_path in ("/", "/health", "/player", "/static/player.js"):
            assert live.get(open_path).status_code == 200


def test_the_official_client_with_and_without_its_key() -> None:
    with running(speaking(tone(0.1)), api_keys=("right",)) as live:
        with client_of(live) as client, pytest.raises(openai.AuthenticationError) as caught:
            client.models.list()
        assert caught.value.code == "invalid_api_key"
        with openai.OpenAI(base_url=f"http://127.0.0.1:{live.port}/v1", api_key="right") as client:
            assert client.models.list().data


def test_tts_url_in_its_first_form(server: LiveServer) -> None:
    response = server.post("/tts_url", {"text": "你好", "audio_paths": ["voice_03.wav", "voice_04.wav"], "seed": 8})
    assert response.headers["content-type"] == "audio/wav"
    assert response.content[:4] == b"RIFF"
    request = server.engine.requests[-1]
    assert (request.voice.name, request.generation.seed, request.emotion) == ("voice_03", 8, None)


def test_tts_url_in_its_second_form(server: LiveServer) -> None:
    voices = {voice["filename"]: voice["path"] for voice in server.get("/reference_audios").json()["reference_audios"]}
    body = {"text": "a", "spk_audio_path": voices["voice_02.wav"], "max_text_tokens_per_sentence": 50}
    vector = [0.1, 0, 0, 0.2, 0, 0, 0, 0.9]
    for change, emotion in (
        ({}, None),
        ({"emo_vec": vector}, None),
        ({"emo_control_method": 2, "emo_vec": vector}, Emotion(vector=(0.1, 0, 0, 0.2, 0, 0, 0, 0.9))),
        ({"emo_control_method": 3, "emo_text": "开心", "emo_weight": 0.4}, Emotion(text="开心", weight=0.4)),
        ({"emo_control_method": 3, "emo_text": "x", "emo_random": True}, Emotion(text="x", random=True)),
        ({"emo_control_method": 3, "emo_text": None}, Emotion(text="a")),  # as the earlier servers' client sends it
        ({"emo_control_method": 3, "emo_text": " "}, Emotion(text="a")),
        ({"emo_control_method": 1}, None),
        (
            {"emo_control_method": 2, "emo_vec": [0.1, 0.2, 0.3, 0.3, 0.2, 0.2, 0.1, 0.1]},
            Emotion(vector=(0.1, 0.2, 0.3, 0.3, 0.2, 0.2, 0.1, 0.1)),
        ),
    ):
        assert server.post("/tts_url", body | change).status_code == 200
        request = server.engine.requests[-1]
        assert (request.voice.name, request.emotion) == ("voice_02", emotion)
        assert request.generation.max_text_tokens_per_sentence == 50
    server.post("/tts_url", body | {"emo_control_method": 1, "emo_ref_path": "voice_09.wav", "emo_weight": 0.5})
    emotion = server.engine.requests[-1].emotion
    assert emotion is not None
    assert emotion.reference is not None
    assert (emotion.reference.name, emotion.weight) == ("voice_09", 0.5)


@pytest.mark.parametrize(
    ("path", "change", "sentence"),
    [
        ("/tts_url", {"text": ""}, "text must not be blank"),
        ("/tts_url", {"spk_audio_path": "../pyproject.toml"}, "unknown spk_audio_path"),
        ("/tts_url", {"spk_audio_path": "/etc/passwd"}, "unknown spk_audio_path"),
        ("/tts_url", {"spk_audio_path": None}, "audio_paths or spk_audio_path is required"),
        ("/tts_url", {"audio_paths": []}, "audio_paths"),
        ("/tts_url", {"audio_paths": ["../../x.wav"]}, "unknown audio_paths"),
        ("/tts_url", {"emo_control_method": 1, "emo_ref_path": "/etc/passwd"}, "unknown emo_ref_path"),
        ("/tts_url", {"emo_control_method": 2}, "emo_vec is required"),
        ("/tts_url", {"emo_control_method": 3, "text": " "}, "text must not be blank"),
        ("/tts_url", {"emo_control_method": 4}, "emo_control_method"),
        ("/tts_url", {"emo_control_method": 2, "emo_vec": [0.1] * 7}, "emo_vec"),
        ("/tts_url", {"emo_control_method": 2, "emo_vec": [-0.1] + [0] * 7}, "emo_vec"),
        ("/tts_url", {"emo_control_method": 2, "emo_vec": [0.2] * 8}, "情感向量之和不能超过1.5，请调整后重试。"),
        ("/tts_url", {"emo_weight": 1.1}, "emo_weight"),
        ("/tts", {"text": " "}, "text must not be blank"),
        ("/tts", {"character": "nobody"}, "unknown character 'nobody'"),
        ("/tts", {"character": None}, "character"),
    ],
)
def test_bad_requests_of_the_older_forms(server: LiveServer, path: str, change: dict[str, Any], sentence: str) -> None:
    body = {"text": "a", "spk_audio_path": "voice_01.wav", "character": "alloy"} | change
    response = server.post(path, body)
    assert response.status_code == 400
    assert response.json()["status"] == "error"
    assert sentence in response.json()["error"]


def test_tts_speaks_as_a_character(server: LiveServer) -> None:
    response = server.post("/tts", {"text": "a", "character": "sage"})
    assert (response.status_code, response.headers["content-type"]) == (200, "audio/wav")
    assert server.engine.requests[-1].voice.name == "voice_10"
    assert server.get("/tts").json() == {"status": "error", "error": "Method Not Allowed"}


@pytest.mark.parametrize(("kind", "media_type"), [("ogg", "audio/ogg"), ("webm", "audio/webm"), ("mp3", "audio/mpeg")])
def test_media_elements_can_get_a_stream(server: LiveServer, kind: str, media_type: str, tmp_path: Path) -> None:
    query = {"text": "你好", "reference_audio_index": "4", "format": kind, "seed": "3", "do_sample": "false"}
    response = server.get("/synthesize_stream_opus", params=query)
    assert (response.status_code, response.headers["content-type"]) == (200, media_type)
    assert response.headers["content-disposition"] == f"attachment; filename=synthesized_audio.{kind}"
    assert ("x-opus-bitrate" in response.headers) == (kind != "mp3")
    request = server.engine.requests[-1]
    assert (request.text, request.voice.index, request.generation.seed) == ("你好", 4, 3)
    assert request.generation.do_sample is False
    samples, rate_hz = decoded(response.content, kind, tmp_path)
    assert samples.size / rate_hz == pytest.approx(1.0, abs=0.07)
    assert server.post("/synthesize_stream_opus", {"text": "a", "format": kind}).headers["content-type"] == media_type
    made = len(server.engine.requests)
    head = server.client.head("/synthesize_stream_opus", params=query)
    assert (head.status_code, head.headers["content-type"], len(server.engine.requests)) == (200, media_type, made)


@pytest.mark.parametrize("query", [{}, {"text": "a", "format": "doc"}, {"text": "a", "opus_bitrate": "x"}])
def test_a_bad_query_names_its_field(server: LiveServer, query: dict[str, str]) -> None:
    response = server.get("/synthesize_stream_opus", params=query)
    assert response.status_code == 422
    assert response.json()["detail"][0]["loc"][0] == "query"


def test_the_same_request_through_every_dialect_gives_the_same_samples(server: LiveServer, tmp_path: Path) -> None:
    answers = {
        "native": server.post("/synthesize", {"text": "a"}).content[44:],
        "stream": server.post("/synthesize_stream", {"text": "a"}).content,
        "openai": server.post(SPEECH, {"model": "m", "input": "a", "response_format": "pcm"}).content,
        "tts": server.post("/tts", {"text": "a", "character": "alloy"}).content[44:],
        "tts_url": server.post("/tts_url", {"text": "a", "audio_paths": ["voice_01.wav"]}).content[44:],
    }
    assert set(answers.values()) == {to_int16(tone(0.25)).tobytes() * 4}


def test_sixteen_clients_at_once(speaker: LiveServer) -> None:
    answers: list[httpx.Response] = []

    def ask() -> None:
        answers.append(speaker.post(SPEECH, {"model": "m", "input": "one two three", "response_format": "opus"}))

    threads = [threading.Thread(target=ask) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [answer.status_code for answer in answers] == [200] * 16
