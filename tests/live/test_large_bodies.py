"""Expensive bodies of the maximum size are rejected, or parsed outside the event loop."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from streaming_server.api import http
from streaming_server.api.http import MAX_BODY_BYTES, MAX_PROBLEMS
from streaming_server.api.operations import ApiRoute
from streaming_server.api.requests import MAX_SPEAKERS
from tests.support.fakes import tone
from tests.support.server import LiveServer, running, speaking

ROUTES: dict[str, dict[str, Any]] = {
    "/synthesize": {"text": "a"},
    "/synthesize_simple": {"text": "a"},
    "/synthesize_stream": {"text": "a"},
    "/synthesize_stream_opus": {"text": "a"},
    "/v1/audio/speech": {"model": "tts-1", "input": "a"},
    "/tts_url": {"text": "a", "spk_audio_path": "voice_01.wav"},
    "/tts": {"text": "a", "character": "alloy"},
    "/generate": {"text": "a"},
    "/generate-stream": {"text": "a"},
    "/player/speech": {"text": "a"},
    "/dev/captioned_speech": {"input": "a"},
    "/v1/text-to-speech/voice_01": {"text": "a"},
    "/v1/text-to-speech/voice_01/stream": {"text": "a"},
    "/v1/text-to-speech/voice_01/with-timestamps": {"text": "a"},
    "/v1/text-to-speech/voice_01/stream/with-timestamps": {"text": "a"},
    "/v1/audio/voice_consents/cons_1": {"name": "a"},
    "/api/v1/tts": {"text": "a", "prompt_audio_id": "voice_01"},
    "/api/v1/tts/sync": {"text": "a", "prompt_audio_id": "voice_01"},
    "/v1/workflows": {"workflow_config": {"workflow_chain": ["indextts.health_check"]}},
}
DIALOGUE = "".join(f"[SPEAKER{number}] a " for number in range(MAX_SPEAKERS + 1))


@pytest.fixture(scope="module")
def server() -> Iterator[LiveServer]:
    with running(speaking(tone(0.1)), dialogue=True) as live:
        yield live


def post(server: LiveServer, path: str, content: bytes) -> httpx.Response:
    return server.client.post(path, content=content, headers={"Content-Type": "application/json"})


def refusal(server: LiveServer, path: str, content: bytes) -> str:
    """The answer to a body that is refused without reaching the engine."""
    made = len(server.engine.requests)
    response = post(server, path, content)
    assert response.status_code in {400, 422}, response.text[:500]
    assert len(response.content) < 4096
    assert len(server.engine.requests) == made
    return response.text


def test_every_route_with_a_json_body_is_tried(server: LiveServer) -> None:
    taking = {
        route.path.replace("{voice_id}", "voice_01").replace("{consent_id}", "cons_1")
        for route in server.routes
        if isinstance(route, ApiRoute) and "POST" in (route.methods or ()) and "json" in route.operation.accepts
    }
    assert {path for path in taking if not path.startswith("/audio")} == ROUTES.keys()


@pytest.mark.parametrize("path", ROUTES)
@pytest.mark.parametrize("item", ["1", "{}", "null", "[]", '""', '{"a": 1}'])
def test_a_list_that_fills_the_body(server: LiveServer, path: str, item: str) -> None:
    fields = json.dumps(ROUTES[path])[:-1]
    count = (MAX_BODY_BYTES - len(fields) - 20) // (len(item) + 1)
    assert "values" in refusal(server, path, f'{fields}, "other": [{",".join([item] * count)}]}}'.encode())


@pytest.mark.parametrize(
    ("path", "field"),
    [
        ("/tts_url", "audio_paths"),
        ("/tts_url", "emo_vec"),
        ("/api/v1/tts", "emo_vector"),
        ("/v1/workflows", "workflow_chain"),
        ("/v1/workflows", "emotion_vector"),
    ],
)
@pytest.mark.parametrize("item", [1, {}, None, "x", 0.5])
def test_a_long_list_is_one_problem(server: LiveServer, path: str, field: str, item: object) -> None:
    given = {**ROUTES[path], field: [item] * 10_000}
    if path == "/v1/workflows":
        config = {"text": "a", "output_path": "a.wav", "emotion_vector": given.get("emotion_vector")}
        chain = given.get("workflow_chain", ["indextts.generate_speech"])
        given = {"workflow_config": {"workflow_chain": chain, "indextts_config": config}}
    assert field in refusal(server, path, json.dumps(given).encode())


@pytest.mark.parametrize(
    ("path", "field"),
    [
        *[("/v1/audio/speech", field) for field in ("model", "voice", "instructions", "input")],
        *[("/tts_url", field) for field in ("text", "spk_audio_path", "emo_ref_path", "emo_text")],
        *[("/tts", field) for field in ("text", "character")],
        *[("/player/speech", field) for field in ("text", "voice", "emo_text")],
        *[("/dev/captioned_speech", field) for field in ("input", "voice")],
        ("/v1/text-to-speech/voice_01", "text"),
        ("/v1/audio/voice_consents/cons_1", "name"),
        *[("/generate", field) for field in ("text", "ref_audio", "scene_prompt")],
        *[("/api/v1/tts", field) for field in ("text", "prompt_audio_id", "emo_audio_id", "emo_text")],
        ("/v1/workflows", "video_path"),
    ],
)
def test_every_text_has_a_longest(server: LiveServer, path: str, field: str) -> None:
    long = "happy " * ((MAX_BODY_BYTES - 1000) // 6)
    assert field in refusal(server, path, json.dumps({**ROUTES[path], field: long}).encode())


@pytest.mark.parametrize(("path", "field", "name"), [
    ("/v1/audio/speech", "voice", "alloy"),
    ("/generate", "ref_audio", "voice_01"),
])  # fmt: skip
def test_a_dialogue_has_so_many_voices(server: LiveServer, path: str, field: str, name: str) -> None:
    given = ROUTES[path] | {"input": DIALOGUE, "text": DIALOGUE, field: ",".join([name] * (MAX_SPEAKERS + 1))}
    found = refusal(server, path, json.dumps(given).encode())
    assert field in found
    assert str(MAX_SPEAKERS) in found


def test_the_answer_lists_the_first_few_problems(server: LiveServer) -> None:
    fields = ["text", "verbose", "do_sample", "top_p", "top_k", "temperature", "num_beams", "seed", "opus_bitrate"]
    fields += ["reference_audio_index", "length_penalty", "max_mel_tokens", "opus_complexity"]
    response = server.post("/synthesize_stream_opus", dict.fromkeys(fields, "x"))
    assert len(response.json()["detail"]) == MAX_PROBLEMS < len(fields)


def test_a_large_body_is_read_beside_the_event_loop(server: LiveServer, monkeypatch: pytest.MonkeyPatch) -> None:
    beside = []

    def parsed(*given: Any) -> Any:
        try:
            asyncio.get_running_loop()
            beside.append(False)
        except RuntimeError:
            beside.append(True)
        return unpatched(*given)

    unpatched = http.parsed
    monkeypatch.setattr(http, "parsed", parsed)
    for length in (10, 1_000_000):
        server.post("/synthesize", {"text": "a", "other": "a" * length}).raise_for_status()
    assert beside == [False, True]


def test_an_integer_of_many_digits(server: LiveServer) -> None:
    assert "JSON" in refusal(server, "/synthesize", b'{"text": "a", "other": %s}' % (b"9" * 4000))


@pytest.mark.parametrize(
    ("field", "raw"),
    [
        *[("top_k", raw) for raw in ("true", "false", '"5"', "1.5")],
        *[("seed", raw) for raw in ("true", '"8"')],
        *[("temperature", raw) for raw in ("true", '"1.0"')],
        *[("do_sample", raw) for raw in ("1", "0", '"true"')],
    ],
)
def test_types_are_those_of_json(server: LiveServer, field: str, raw: str) -> None:
    assert field in refusal(server, "/synthesize", f'{{"text": "a", "{field}": {raw}}}'.encode())


def test_a_whole_number_is_an_integer_however_it_is_written(server: LiveServer) -> None:
    content = b'{"text": "a", "top_k": 7.0, "seed": 1e3, "temperature": 1, "top_p": 0.5}'
    assert post(server, "/synthesize", content).status_code == 200
    generation = server.engine.requests[-1].generation
    assert (generation.top_k, generation.seed, generation.temperature, generation.top_p) == (7, 1000, 1.0, 0.5)
    assert generation.is_sampling_given
    assert post(server, "/synthesize", b'{"text": "a", "top_k": 30}').status_code == 200
    assert server.engine.requests[-1].generation.is_sampling_given
    assert post(server, "/synthesize", b'{"text": "a", "top_p": 0.5}').status_code == 200
    assert not server.engine.requests[-1].generation.is_sampling_given


@pytest.mark.parametrize("path", ["/synthesize", "/synthesize_simple", "/synthesize_stream", "/synthesize_stream_opus"])
@pytest.mark.parametrize("field", ["voice", "prompt_audio_url", "prompt_audio_id", "ref_audio", "speaker"])
def test_a_voice_by_another_dialects_field_is_refused(server: LiveServer, path: str, field: str) -> None:
    response = server.post(path, {"text": "a", field: "alloy"})
    assert response.status_code == 422
    [problem] = response.json()["detail"]
    assert problem["loc"] == ["body", field]
    assert field in problem["msg"]
    assert "reference_audio_index" in problem["msg"]
    assert server.post(path, {"text": "a", field: None}).status_code == 200


def test_a_voice_in_the_query_is_refused_too(server: LiveServer) -> None:
    response = server.get("/synthesize_stream_opus", params={"text": "a", "voice": "alloy"})
    assert response.status_code == 422
    assert response.json()["detail"][0]["loc"] == ["query", "voice"]


def test_a_reference_recording_is_refused_by_openai_speech(server: LiveServer) -> None:
    response = server.post("/v1/audio/speech", {"model": "tts-1", "input": "a", "ref_audio": "data:audio/wav;base64,"})
    assert response.status_code == 400
    assert response.json()["error"]["param"] == "ref_audio"
