"""``/dev/captioned_speech`` and subtitles over HTTP."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from typing import Any

import pytest

from tests.support.decoders import ffprobe
from tests.support.fakes import FakeEngine, tone
from tests.support.server import LiveServer, RawClient, eventually, running

PATH = "/dev/captioned_speech"
TEXT = "One two. Three"


@pytest.fixture(scope="module")
def server() -> Iterator[LiveServer]:
    with running(FakeEngine(lambda request: [tone(len(request.text) / 20)])) as live:
        yield live


def lines(live: LiveServer, **body: Any) -> list[dict[str, Any]]:
    response = live.post(PATH, {"input": TEXT, "voice": "voice_01"} | body)
    assert response.status_code == 200, response.text
    return [json.loads(line) for line in response.text.splitlines()]


def test_lines_have_audio_and_the_words_of_each_sentence(server: LiveServer) -> None:
    found = lines(server, response_format="pcm")
    timed = [line["timestamps"] for line in found if line["timestamps"]]
    assert timed == [
        [
            {"word": "One", "start_time": 0.0, "end_time": 0.15},
            {"word": "two.", "start_time": 0.2, "end_time": 0.4},
        ],
        [{"word": "Three", "start_time": 0.78, "end_time": 1.03}],
    ]
    (whole,) = lines(server, response_format="pcm", stream=False)
    assert whole["timestamps"] == [*timed[0], *timed[1]]
    assert whole["alignment_precision"] == "segment"
    assert b"".join(base64.b64decode(line["audio"]) for line in found) == base64.b64decode(whole["audio"])
    assert len(base64.b64decode(whole["audio"])) == round(1.03 * 48000)


def test_marks_and_words_of_ssml_are_timed_and_what_is_ignored_is_named(server: LiveServer) -> None:
    markup = "<speak>One <mark name='a'/><break time='1s'/><mark name='b'/><phoneme ph='x'>two</phoneme></speak>"
    response = server.post(PATH, {"input": markup, "voice": "voice_01", "ssml": True, "stream": False})
    assert response.headers["x-ignored-settings"] == "ssml.phoneme"
    found = response.json()
    assert found["marks"] == [{"name": "a", "time": 0.2}, {"name": "b", "time": 1.2}]
    assert found["timestamps"][1] == {"word": "two", "start_time": 1.2, "end_time": 1.35}
    assert found["alignment_precision"] == "segment"


def test_the_default_is_mp3_and_times_can_be_left_out(server: LiveServer) -> None:
    found = lines(server, return_timestamps=False, voice=None)
    assert {(line["audio_format"], line["timestamps"]) for line in found} == {("audio/mpeg", None)}
    assert ffprobe(b"".join(base64.b64decode(line["audio"]) for line in found))["codec_name"] == "mp3"


@pytest.mark.parametrize("body", [{"input": " "}, {"input": 3}, {}, {"input": "a", "voice": "nobody"}])
def test_errors_are_in_the_dialects_shape(server: LiveServer, body: dict[str, Any]) -> None:
    response = server.post(PATH, body)
    assert response.status_code == 400
    detail = response.json()["detail"]
    assert (detail["error"], detail["type"]) == ("validation_error", "invalid_request_error")
    assert detail["message"]


def test_subtitles_are_those_of_the_file(server: LiveServer) -> None:
    written = server.post("/synthesize", {"text": TEXT, "format": "srt"})
    assert written.text == "1\n00:00:00,000 --> 00:00:00,400\nOne two.\n\n2\n00:00:00,450 --> 00:00:00,700\nThree\n"
    assert written.headers["content-type"] == "application/x-subrip; charset=utf-8"
    assert written.headers["x-alignment-precision"] == "segment"
    assert server.post("/synthesize", {"text": TEXT, "format": "vtt"}).text.startswith("WEBVTT\n\n00:00:00.000 --> ")
    assert server.post("/synthesize", {"text": TEXT, "format": "ass"}).status_code == 422


def test_a_dialogue_has_no_times() -> None:
    text = "[SPEAKER0] One. [SPEAKER1] Two."
    timed = {"model": "m", "input": text, "stream_format": "sse", "word_timestamps": True}
    with running(FakeEngine(), dialogue=True) as live:
        response = live.post("/synthesize", {"text": text, "format": "srt"})
        assert (response.status_code, response.json()["detail"][0]["loc"]) == (422, ["body", "format"])
        response = live.post("/v1/audio/speech", timed)
        assert (response.status_code, response.json()["error"]["param"]) == (400, "word_timestamps")
        assert not live.engine.requests


def test_a_whole_answer_that_nobody_reads_stays_among_the_unsent_audio(server: LiveServer) -> None:
    """It is encoded as the client reads, not into a second copy in the connection's buffer."""
    body = {"input": "a" * 6000, "voice": "voice_01", "response_format": "pcm", "stream": False}
    client = RawClient(server.port, PATH, body, receive_buffer=4096)
    assert client.read(12) == b"HTTP/1.1 200"
    assert server.service.budget.unsent_bytes > 300 * 48000 * 0.5
    client.close()
    eventually(lambda: server.service.budget.unsent_bytes == 0)
