"""Invalid requests get a clear 4xx and do not reach the engine, and the next request works."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from tests.support.fakes import tone
from tests.support.server import LiveServer, running, speaking

STREAMS = ["/synthesize_stream", "/synthesize_stream_opus"]
EVERY_FIELD = ["/synthesize", *STREAMS]
ALL = [*EVERY_FIELD, "/synthesize_simple"]


@pytest.fixture(scope="module")
def server() -> Iterator[LiveServer]:
    with running(speaking(tone(0.1))) as live:
        yield live


@pytest.fixture(autouse=True)
def unharmed(server: LiveServer) -> Iterator[None]:
    made = len(server.engine.requests)
    yield
    assert len(server.engine.requests) == made, "bad input reached the engine"
    assert not server.queue()["is_processing"]
    assert server.post("/synthesize_stream", {"text": "next"}).status_code == 200


def problem(server: LiveServer, path: str, content: bytes, content_type: str | None = "application/json") -> Any:
    """The first entry of a 422's list."""
    headers = {"Content-Type": content_type} if content_type is not None else {}
    response = server.client.post(path, content=content, headers=headers)
    assert response.status_code == 422, response.text
    (first, *_) = response.json()["detail"]
    assert set(first) == {"loc", "msg", "type"}
    assert first["msg"]
    return first


@pytest.mark.parametrize("path", ALL)
@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"text=a", b"\xff\xfe\xfa", b'{"text": "a"', b'{"text": "\xc3\x28"}', b"[" * 100_000, b"9" * 5000],
    ids=["empty", "open", "form", "bytes", "cut", "utf-8", "deep", "digits"],
)
def test_what_is_not_json(server: LiveServer, path: str, content: bytes) -> None:
    assert problem(server, path, content)["type"] == "json_invalid"


@pytest.mark.parametrize("path", ALL)
@pytest.mark.parametrize("content", [b"[]", b'"text"', b"1", b"null", b"true"])
def test_json_that_is_no_object(server: LiveServer, path: str, content: bytes) -> None:
    assert problem(server, path, content)["loc"] == ["body"]


@pytest.mark.parametrize("path", ALL)
@pytest.mark.parametrize("content_type", [None, "", "text/plain", "application/x-www-form-urlencoded", "application/"])
def test_a_body_that_does_not_say_it_is_json(server: LiveServer, path: str, content_type: str | None) -> None:
    found = problem(server, path, b'{"text": "a"}', content_type)
    assert found["loc"] == ["header", "content-type"]
    assert "application/json" in found["msg"]


@pytest.mark.parametrize("path", ALL)
@pytest.mark.parametrize("text", ["", " ", "\n\t \r\n", "\u3000\u2003"])
def test_blank_text(server: LiveServer, path: str, text: str) -> None:
    response = server.post(path, {"text": text})
    assert (response.status_code, response.json()) == (400, {"detail": "文本不能为空"})


@pytest.mark.parametrize("path", ALL)
@pytest.mark.parametrize(
    ("raw", "named"),
    [
        (r'"a\u0000b"', "U+0000 at position 1"),
        (r'"\u0007"', "U+0007 at position 0"),
        (r'"ab\u001b[1m"', "U+001B at position 2"),
        (r'"\u007f"', "U+007F"),
        (r'"\u009f"', "U+009F"),
        (r'"\ud800"', "U+D800"),
        (r'"x\udfffy"', "U+DFFF at position 1"),
    ],
)
def test_characters_that_cannot_be_spoken(server: LiveServer, path: str, raw: str, named: str) -> None:
    found = problem(server, path, f'{{"text": {raw}}}'.encode())
    assert found["loc"] == ["body", "text"]
    assert named in found["msg"]


def test_a_surrogate_pair_and_line_breaks_are_text(server: LiveServer) -> None:
    content = rb'{"text": "\ud83c\udf89 party\r\n\tnext"}'
    response = server.client.post("/synthesize", content=content, headers={"Content-Type": "application/json"})
    assert response.status_code == 200
    assert server.engine.requests.pop().text == "🎉 party\r\n\tnext"


@pytest.mark.parametrize("path", ALL)
def test_text_over_the_limit_says_the_limit(server: LiveServer, path: str) -> None:
    found = problem(server, path, json.dumps({"text": "a" * 1_000_000}).encode())
    assert found["loc"] == ["body", "text"]
    assert "20000" in found["msg"]
    assert problem(server, path, json.dumps({"text": "好" * 20_001}).encode())["loc"] == ["body", "text"]
    assert server.post(path, {"text": "好" * 20_000}).status_code == 200
    server.engine.requests.pop()


def test_a_body_beyond_all_measure_is_not_read_to_its_end(server: LiveServer) -> None:
    content = b'{"text": "' + b"a" * 30_000_000 + b'"}'
    response = server.client.post("/synthesize", content=content, headers={"Content-Type": "application/json"})
    assert response.status_code == 413
    assert "2097152" in response.json()["detail"]


WRONG: list[tuple[str, str]] = [
    *[("text", raw) for raw in ("null", "1", "true", "[]", "{}", '["a"]', "NaN")],
    *[("reference_audio_index", raw) for raw in ('"x"', "1.5", "null", "[]", "NaN", "Infinity", "1e400")],
    *[("verbose", raw) for raw in ('"maybe"', "2", "null")],
    *[("max_text_tokens_per_sentence", raw) for raw in ("0", "-1", "1.5", "NaN")],
    *[("do_sample", raw) for raw in ('"x"', "null")],
    *[("top_p", raw) for raw in ("-0.1", "1.1", "NaN", "Infinity", "-Infinity", '"x"', "1e400")],
    *[("top_k", raw) for raw in ("-1", "0.5", "NaN")],
    *[("temperature", raw) for raw in ("0", "-1", "NaN", "Infinity")],
    *[("length_penalty", raw) for raw in ("NaN", "Infinity", "-Infinity", '"x"')],
    *[("num_beams", raw) for raw in ("0", "11", "2.5")],
    *[("repetition_penalty", raw) for raw in ("0", "-1", "NaN")],
    *[("max_mel_tokens", raw) for raw in ("0", "-5", "801", "1e99")],
    *[("seed", raw) for raw in ('"x"', "1.5", str(2**63), str(-(2**63) - 1))],
]


@pytest.mark.parametrize(("field", "raw"), WRONG)
def test_wrong_types_and_ranges_name_their_field(server: LiveServer, field: str, raw: str) -> None:
    paths = ALL if field in {"text", "reference_audio_index"} else EVERY_FIELD
    text = "" if field == "text" else '"text": "a", '
    for path in paths:
        assert problem(server, path, f'{{{text}"{field}": {raw}}}'.encode())["loc"] == ["body", field]


@pytest.mark.parametrize(
    ("path", "field", "raw"),
    [
        *[("/synthesize_stream_opus", "opus_bitrate", raw) for raw in ("7999", "512001", "0", "-1", "NaN", '"x"')],
        *[("/synthesize_stream_opus", "opus_complexity", raw) for raw in ("-1", "11", "1.5", "null")],
        *[(path, "stream_granularity", raw) for path in STREAMS for raw in ('"word"', "1", "null")],
        *[("/synthesize", "use_fast_inference", raw) for raw in ('"x"', "null")],
        *[("/synthesize", "sentences_bucket_max_size", raw) for raw in ("0", "-1", "NaN")],
    ],
)
def test_fields_of_single_routes(server: LiveServer, path: str, field: str, raw: str) -> None:
    assert problem(server, path, f'{{"text": "a", "{field}": {raw}}}'.encode())["loc"] == ["body", field]


@pytest.mark.parametrize("path", ALL)
def test_a_missing_text_is_named(server: LiveServer, path: str) -> None:
    found = problem(server, path, b"{}")
    assert (found["loc"], found["type"]) == (["body", "text"], "missing")


@pytest.mark.parametrize("index", [11, -1, 10**18, -(10**30)])
def test_an_index_out_of_range(server: LiveServer, index: int) -> None:
    for path in ALL:
        response = server.post(path, {"text": "a", "reference_audio_index": index})
        assert response.status_code == 400
        assert response.json() == {"detail": f"参考音频序号无效: {index}. 有效范围: 0-10"}


def test_unknown_fields_are_ignored(server: LiveServer) -> None:
    assert server.post("/synthesize", {"text": "a", "nonsense": {"x": [1]}, "opus_bitrate": 1}).status_code == 200
    server.engine.requests.pop()


def test_json_is_json_by_any_of_its_names(server: LiveServer) -> None:
    for content_type in ("application/json; charset=utf-8", "APPLICATION/JSON", "application/vnd.api+json"):
        headers = {"Content-Type": content_type}
        response = server.client.post("/synthesize", content='{"text": "好"}'.encode(), headers=headers)
        assert response.status_code == 200
        server.engine.requests.pop()
