"""The native contract, route by route, over a real socket."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path
from typing import Any
from unittest.mock import ANY

import av
import httpx
import numpy as np
import pytest

from streaming_server import __version__
from streaming_server.audio.pcm import to_int16
from streaming_server.domain import Generation, Granularity, IntSamples
from streaming_server.speech.slot import Slot
from tests.support.fakes import FOREVER, Gate, tone
from tests.support.server import RECORDINGS, LiveServer, around_now, eventually, logged, running, speaking

AUDIO = tone(1.0)


@pytest.fixture(scope="module")
def server() -> Iterator[LiveServer]:
    with running(speaking(*np.array_split(AUDIO, 5))) as live:
        yield live


def decoded(content: bytes, tmp_path: Path) -> tuple[IntSamples, int]:
    (tmp_path / "a").write_bytes(content)
    with av.open(tmp_path / "a") as container:
        frames = [frame.to_ndarray()[0] for frame in container.decode(audio=0)]
        return np.concatenate(frames), container.streams.audio[0].rate


def test_root_tells_programs_that_it_runs(server: LiveServer) -> None:
    assert server.get("/").json() == {
        "message": "IndexTTS API 服务运行中",
        "version": __version__,
        "status": "running",
        "model_loaded": True,
    }


@pytest.mark.parametrize(
    ("accept", "browser"),
    [
        ("text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8", True),
        ("*/*", False),
        ("application/json", False),
        ("application/json, text/html;q=0.5", False),
        ("text/html;q=0", False),
        ("text/html;q=0.5, */*", False),
        ("text/html, application/*;q=0.9, application/json;q=0.1, */*", True),
        ("text/html;q=x", False),
    ],
)
def test_root_sends_browsers_to_the_player(server: LiveServer, accept: str, browser: bool) -> None:
    response = server.get("/", headers={"Accept": accept})
    assert (response.status_code == 303) == browser
    assert (response.headers.get("location") == "/player") == browser


def test_player_and_its_files_are_served(server: LiveServer) -> None:
    assert "<!doctype html>" in server.get("/player").text
    assert server.get("/static/player.js").headers["content-type"].startswith("text/javascript")
    assert server.get("/static/player.js").headers["cache-control"] == "no-cache"
    assert server.get("/static/player.js").headers["content-encoding"] == "gzip"
    assert server.get("/static/../app.py").status_code == 404


def test_health_while_loading_and_after(server: LiveServer) -> None:
    healthy = server.get("/health")
    assert healthy.status_code == 200
    assert healthy.json()["timestamp"] == around_now()
    assert {**healthy.json(), "timestamp": 0} == {"status": "healthy", "model_loaded": True, "timestamp": 0}
    loading = speaking()
    gate = Gate()
    loading.warming = [gate]
    with running(loading, wait=False) as live:
        response = live.get("/health")
        assert (response.status_code, response.json()["status"]) == (503, "loading")
        assert response.json()["model_loaded"] is False
        refused = live.post("/synthesize", {"text": "a"})
        assert (refused.status_code, refused.json()) == (503, {"detail": "模型未加载"})
        assert int(refused.headers["retry-after"]) >= 1
        gate.open()
        eventually(lambda: live.get("/health").status_code == 200)


def test_health_after_the_engine_has_failed_for_good() -> None:
    broken = speaking()
    broken.warming = [ValueError("no such weights")]
    with running(broken, wait=False) as live:
        eventually(lambda: live.get("/health").json()["status"] == "unhealthy")
        assert live.get("/health").status_code == 503
        assert live.get("/").json()["model_loaded"] is False


def test_model_info_has_the_keys_of_the_contract(server: LiveServer) -> None:
    info = server.get("/model_info").json()
    kinds = {"model_loaded": bool, "device": str, "is_fp16": bool, "use_cuda_kernel": bool, "model_version": str}
    kinds |= {"config_path": str, "model_dir": str, "engine": str, "sample_rate": int, "capabilities": dict}
    kinds |= {"max_text_characters": int}
    assert {key: type(value) for key, value in info.items()} == kinds


def test_model_info_of_the_default_voice_claims_no_cloning() -> None:
    with running() as live:
        info = live.get("/model_info").json()
    assert (info["engine"], info["sample_rate"], info["device"]) == ("hibari", 24000, "cpu")
    assert info["capabilities"]["voice_cloning"] is False


@pytest.mark.parametrize("path", ["/synthesize", "/synthesize_simple", "/test"])
def test_a_whole_wav_has_its_length(server: LiveServer, path: str, tmp_path: Path) -> None:
    response = server.get(path) if path == "/test" else server.post(path, {"text": "你好"})
    assert response.headers["content-type"] == "audio/wav"
    assert response.headers["content-disposition"] == "attachment; filename=synthesized_audio.wav"
    assert int(response.headers["content-length"]) == len(response.content) == 44 + 48000
    samples, rate_hz = decoded(response.content, tmp_path)
    assert rate_hz == 24000
    assert np.array_equal(samples, to_int16(AUDIO))


def test_stream_is_raw_pcm(server: LiveServer) -> None:
    response = server.post("/synthesize_stream", {"text": "a"})
    assert response.content == to_int16(AUDIO).tobytes()
    assert response.headers["content-type"] == "application/octet-stream"
    assert response.headers["transfer-encoding"] == "chunked"
    assert {name: response.headers[name] for name in ("x-sample-rate", "x-bit-depth", "x-channels")} == {
        "x-sample-rate": "24000",
        "x-bit-depth": "16",
        "x-channels": "1",
    }
    assert response.headers["content-disposition"] == "attachment; filename=synthesized_audio.pcm"


def test_opus_stream_and_its_headers(server: LiveServer, tmp_path: Path) -> None:
    body = {"text": "a", "opus_bitrate": 64000, "opus_complexity": 3}
    response = server.post("/synthesize_stream_opus", body)
    expected = {
        "content-type": "audio/ogg",
        "x-opus-sample-rate": "48000",
        "x-original-sample-rate": "24000",
        "x-opus-bitrate": "64000",
        "x-opus-complexity": "3",
        "x-channels": "1",
        "x-queue-info": "sequential-processing",
        "cache-control": "no-cache, no-store, must-revalidate",
        "x-accel-buffering": "no",
        "content-disposition": "attachment; filename=synthesized_audio.ogg",
        "transfer-encoding": "chunked",
    }
    assert {name: response.headers[name] for name in expected} == expected
    samples, rate_hz = decoded(response.content, tmp_path)
    assert (samples.size, rate_hz) == (48000, 48000)


def test_defaults_are_those_of_the_contract(server: LiveServer) -> None:
    for path, granularity in (
        ("/synthesize", Granularity.SENTENCE),
        ("/synthesize_simple", Granularity.SENTENCE),
        ("/synthesize_stream", None),
        ("/synthesize_stream_opus", None),
    ):
        assert server.post(path, {"text": "文本"}).status_code == 200
        request = server.engine.requests[-1]
        assert (request.text, request.granularity, request.sentence_batch) == ("文本", granularity, 1)
        assert (request.voice.index, request.voice.path.name) == (0, "voice_01.wav")
        assert asdict(request.generation) == {
            "do_sample": True,
            "top_p": 0.95,
            "top_k": 30,
            "temperature": 1.2,
            "length_penalty": 0.0,
            "num_beams": 3,
            "repetition_penalty": 10.0,
            "max_mel_tokens": 600,
            "seed": None,
            # Not of this dialect:
            "ras_window": 7,
            "ras_repeats": 2,
            "context_pieces": 2,
            "is_sampling_given": False,
            "max_text_tokens_per_sentence": 120,
        }


def test_every_field_reaches_the_engine(server: LiveServer) -> None:
    generation: dict[str, Any] = {
        "do_sample": False,
        "top_p": 0.5,
        "top_k": 0,
        "temperature": 0.1,
        "length_penalty": -1.5,
        "num_beams": 1,
        "repetition_penalty": 1.5,
        "max_mel_tokens": 7,
        "seed": 8,
        "max_text_tokens_per_sentence": 20,
    }
    body = {"text": "a", "reference_audio_index": 10, "verbose": True, **generation}
    server.post("/synthesize", {**body, "use_fast_inference": True, "sentences_bucket_max_size": 5})
    request = server.engine.requests[-1]
    assert request.generation == Generation(**generation)
    assert (request.voice.path.name, request.verbose, request.sentence_batch) == ("voice_11.wav", True, 5)
    server.post("/synthesize_stream", {**body, "stream_granularity": "sentence"})
    server.post("/synthesize_stream", {**body, "stream_granularity": "token"})
    assert [each.granularity for each in server.engine.requests[-2:]] == [Granularity.SENTENCE, Granularity.TOKEN]
    assert server.engine.requests[-1].generation == Generation(**generation)


def test_a_default_beyond_the_models_limit_is_the_limit() -> None:
    engine = speaking(AUDIO)
    engine.max_mel_tokens = 200
    with running(engine) as live:
        assert live.post("/synthesize", {"text": "a"}).status_code == 200
        assert engine.requests[-1].generation.max_mel_tokens == 200
        refused = live.post("/synthesize", {"text": "a", "max_mel_tokens": 201})
        assert refused.status_code == 422
        assert refused.json()["detail"][0]["loc"] == ["body", "max_mel_tokens"]
        assert "1 to 200" in refused.json()["detail"][0]["msg"]


def test_smoke_text_is_spoken_with_fast_inference(server: LiveServer) -> None:
    server.get("/test")
    request = server.engine.requests[-1]
    assert (request.text, request.voice.index, request.sentence_batch) == ("欢迎使用TTS服务", 0, 2)


@pytest.mark.slow
def test_test_stream_has_ten_lines_a_second_apart_and_is_not_buffered(server: LiveServer) -> None:
    with server.client.stream("GET", "/test_stream") as response:
        assert response.headers["content-type"].startswith("text/plain")
        lines = response.iter_lines()
        first = next(lines)
        first_read_s = time.time()
        named, made = zip(*(line.split(" - 时间戳: ") for line in [first, *lines]), strict=True)
    assert named == tuple(f"数据块 {number}/10" for number in range(1, 11))
    made_s = [float(moment) for moment in made]
    assert made_s[0] == around_now()
    assert all(later - earlier >= 0.9 for earlier, later in pairwise(made_s))
    assert first_read_s < made_s[-1]


def test_reference_audios(server: LiveServer) -> None:
    listed = server.get("/reference_audios").json()
    assert listed["total_count"] == 11
    assert [entry["filename"] for entry in listed["reference_audios"]] == [f"voice_{n:02}.wav" for n in range(1, 12)]
    assert {**listed["reference_audios"][2], "path": ""} == {
        "index": 2,
        "path": "",
        "exists": True,
        "filename": "voice_03.wav",
    }


def test_download_of_a_reference_audio(server: LiveServer) -> None:
    response = server.get("/download_reference_audio/4")
    assert response.content == (RECORDINGS / "voice_05.wav").read_bytes()
    assert response.headers["content-type"] == "audio/wav"
    assert server.get("/download_reference_audio/4", headers={"Range": "bytes=0-3"}).content == b"RIFF"
    for ignored in ("items=0-5", "bytes", "bytes=x-", "bytes=5-2", "bytes=0-0,999999999-"):
        whole = server.get("/download_reference_audio/4", headers={"Range": ignored})
        assert (whole.status_code, whole.content) == (200, response.content), ignored
    size = len(response.content)
    for ranges in ("bytes=0-3", f"bytes={size}-"):
        head = server.client.head("/download_reference_audio/4", headers={"Range": ranges})
        assert (head.status_code, head.headers["content-length"]) == (200, str(size))
    refused = server.get("/download_reference_audio/4", headers={"Range": f"bytes={size}-"})
    assert (refused.status_code, refused.headers["content-range"]) == (416, f"bytes */{size}")
    assert refused.json() == {"detail": f"the audio has {size} bytes"}
    for index in ("11", "-1", "x", "1.5", "9" * 5000, "..%2f..%2fpyproject.toml"):
        assert server.get(f"/download_reference_audio/{index}").status_code == 404


def test_a_recording_that_went_away(tmp_path: Path) -> None:
    for name in ("a.wav", "b.wav"):
        shutil.copy(RECORDINGS / "voice_01.wav", tmp_path / name)
    with running(speaking(AUDIO), reference_audio_dir=tmp_path) as live:
        (tmp_path / "b.wav").unlink()
        for path in ("/synthesize", "/synthesize_stream_opus"):
            response = live.post(path, {"text": "a", "reference_audio_index": 1})
            assert (response.status_code, response.json()) == (500, {"detail": "参考音频文件不存在: b.wav"})
        assert live.get("/download_reference_audio/1").status_code == 404
        assert live.post("/synthesize", {"text": "a"}).status_code == 200
        assert live.get("/reference_audios").json()["total_count"] == 1


def test_queue_status_idle_and_busy() -> None:
    with running(speaking(AUDIO, FOREVER)) as live:
        assert live.queue() == {
            "is_processing": False,
            "queue_available": True,
            "timestamp": around_now(),
        }
        long = "一二三四五六七八九十" * 6
        for text, shown in ((long, long[:50] + "..."), (long[:50], long[:50])):
            with live.client.stream(
                "POST", "/synthesize_stream", json={"text": text, "reference_audio_index": 3}
            ) as response:
                assert response.status_code == 200
                eventually(lambda: live.queue()["current_request"]["processing_duration_seconds"] > 0)
                status = live.queue()
                assert status == {
                    "is_processing": True,
                    "queue_available": False,
                    "timestamp": around_now(),
                    "current_request": {
                        "text_preview": shown,
                        "reference_audio_index": 3,
                        "processing_duration_seconds": ANY,
                        "start_time": around_now(),
                    },
                }
                duration_s = status["current_request"]["processing_duration_seconds"]
                assert round(duration_s, 2) == duration_s > 0
            eventually(lambda: not live.queue()["is_processing"])


GETS = ["/", "/player", "/health", "/model_info", "/opus_queue_status", "/reference_audios", "/test", "/test_stream"]
POSTS = ["/synthesize", "/synthesize_simple", "/synthesize_stream", "/synthesize_stream_opus"]


@pytest.mark.parametrize("path", [*GETS, "/download_reference_audio/0"])
def test_head_answers_wherever_get_does(server: LiveServer, path: str) -> None:
    made = len(server.engine.requests)
    response = server.client.head(path)
    assert (response.status_code, response.content) == (200, b"")
    assert response.headers.get("content-length") != "0"
    assert len(server.engine.requests) == made


@pytest.mark.parametrize("path", [*GETS, *POSTS])
def test_a_wrong_method_is_405(server: LiveServer, path: str) -> None:
    response = server.client.request("PUT", path)
    assert response.status_code == 405
    assert list(response.json()) == ["detail"]
    assert response.headers["allow"]
    if path in POSTS and path != "/synthesize_stream_opus":
        assert server.get(path).status_code == 405


@pytest.mark.parametrize(
    "path",
    ["/nothing", "/health/", "/synthesize/x", "/v2/audio/speech", "/tts/x", "/audio/speech/x", "/%00", "/static/none"],
)
def test_an_unknown_path_is_404_at_once(server: LiveServer, path: str) -> None:
    response = server.client.post(path, content=b"x" * 100) if path != "/static/none" else server.get(path)
    assert response.status_code == 404
    assert isinstance(response.json()["detail"], str)


def test_pages_of_other_origins_may_call_and_read_the_headers(server: LiveServer) -> None:
    asked = {"Origin": "http://elsewhere.test", "Access-Control-Request-Method": "POST"}
    asked["Access-Control-Request-Headers"] = "content-type,x-api-key"
    asked["Access-Control-Request-Private-Network"] = "true"
    preflight = server.client.options("/synthesize_stream_opus", headers=asked)
    assert preflight.status_code == 200
    assert preflight.headers["access-control-allow-origin"] == "*"
    assert "POST" in preflight.headers["access-control-allow-methods"]
    assert "content-type" in preflight.headers["access-control-allow-headers"]
    assert preflight.headers["access-control-allow-private-network"] == "true"
    for response in (
        server.post("/synthesize_stream", {"text": "a"}, headers={"Origin": "http://elsewhere.test"}),
        server.post("/synthesize_stream", {"text": ""}, headers={"Origin": "http://elsewhere.test"}),
    ):
        assert response.headers["access-control-allow-origin"] == "*"
        assert response.headers["access-control-expose-headers"] == "*"
        assert "access-control-allow-credentials" not in response.headers


def test_origins_can_be_restricted() -> None:
    with running(speaking(AUDIO), cors_origins=("http://mine.test",)) as live:
        mine = live.get("/health", headers={"Origin": "http://mine.test"})
        other = live.get("/health", headers={"Origin": "http://other.test"})
        asked = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Private-Network": "true"}
        preflights = [
            live.client.options("/health", headers={"Origin": origin, **asked}).status_code
            for origin in ("http://mine.test", "http://other.test")
        ]
    assert preflights == [200, 400]
    assert mine.headers["access-control-allow-origin"] == "http://mine.test"
    assert "access-control-allow-origin" not in other.headers


def test_every_response_names_its_request(server: LiveServer) -> None:
    assert len(server.get("/health").headers["x-request-id"]) == 32
    assert server.get("/none", headers={"X-Request-Id": "mine-7"}).headers["x-request-id"] == "mine-7"
    assert server.get("/none", headers={"X-Request-Id": "a b\tc"}).headers["x-request-id"] != "a b\tc"


def test_an_unexpected_error_is_one_answer_and_one_record(
    server: LiveServer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(self: Slot) -> Any:
        raise KeyError("/etc/secret")

    monkeypatch.setattr(Slot, "status", broken)
    response = server.get("/opus_queue_status", headers={"Origin": "http://x.test"})
    assert response.status_code == 500
    assert "secret" not in response.text
    assert response.headers["access-control-allow-origin"] == "*"
    assert [record.message for record in caplog.records if record.levelname == "ERROR"] == ["unexpected error"]
    assert caplog.records[0].exc_info


def test_one_line_is_logged_for_a_request(server: LiveServer, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    server.post("/synthesize_stream_opus", {"text": "五个字符的"})
    eventually(lambda: logged(caplog, route="/synthesize_stream_opus", characters=5))
    (fields,) = logged(caplog, characters=5)
    assert fields["voice"] == "voice_01"
    assert (fields["status"], fields["outcome"], fields["audio_s"]) == (200, "complete", 1.0)
    assert 0 <= fields["wait_s"] <= fields["first_audio_s"]
    assert fields["real_time_factor"] > 0


def test_verbose_logs_the_details(server: LiveServer, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    server.post("/synthesize", {"text": "quiet"})
    assert "quiet" not in str([vars(record) for record in caplog.records])
    server.post("/synthesize", {"text": "talkative", "verbose": True, "top_k": 77})
    details = str([vars(record) for record in caplog.records])
    assert "talkative" in details
    assert "77" in details


def test_two_servers_in_one_process_share_nothing() -> None:
    with (
        running(speaking(AUDIO, FOREVER)) as one,
        running(speaking(AUDIO)) as other,
        one.client.stream("POST", "/synthesize_stream", json={"text": "a"}),
    ):
        assert one.queue()["is_processing"]
        assert not other.queue()["is_processing"]
        assert other.post("/synthesize", {"text": "b"}).status_code == 200


def test_connections_are_kept_alive(server: LiveServer) -> None:
    with httpx.Client(base_url=server.client.base_url, timeout=120) as client:
        for _ in range(3):
            response = client.post("/synthesize_stream", json={"text": "a"})
            assert response.content == to_int16(AUDIO).tobytes()
        pool: Any = client._transport
        assert len(pool._pool.connections) == 1


def test_a_pause_of_the_query_is_refused_there() -> None:
    with running(speaking(AUDIO)) as live:
        refused = live.get("/synthesize_stream_opus", params={"text": "[pause 99s]"})
        assert (refused.status_code, refused.json()["detail"][0]["loc"]) == (422, ["query", "text"])
