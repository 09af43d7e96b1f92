"""``WS /v1/audio/speech/stream`` over real sockets, with the client library that agents use."""

from __future__ import annotations

import base64
import json
import random
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from io import BytesIO
from typing import Any

import av
import httpx
import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.frames import Frame, Opcode
from websockets.sync.client import ClientConnection, connect

from streaming_server.api.openai.routes import OpenAIDialect
from streaming_server.api.openai.session import MAX_MESSAGE_BYTES, SessionLimits
from streaming_server.audio.pcm import to_int16
from streaming_server.domain import SpeechRequest
from streaming_server.speech.stream import StreamState
from tests.support.fakes import RATE_HZ, FakeEngine, Gate, Step, tone
from tests.support.server import LiveServer, eventually, logged, running

PATH = "/v1/audio/speech/stream"
TEXT = "When the fog finally lifted over the bay, every ship waved back. Then it was quiet"
SENTENCES = ["When the fog finally lifted over the bay, every ship waved back.", "Then it was quiet"]
CLAUSES = ["When the fog finally lifted over the bay,", "every ship waved back.", "Then it was quiet"]
PATIENT: dict[str, Any] = {"open_timeout": 180, "close_timeout": 180, "ping_interval": None}
STREAMED = {"stream_audio": True, "response_format": "pcm", "split_granularity": "sentence"}


def samples_of(text: str) -> Any:
    return tone(len(text) / 100, 200.0 + len(text))


def pcm_of(text: str) -> bytes:
    return to_int16(samples_of(text)).tobytes()


def speaking_texts() -> FakeEngine:
    return FakeEngine(lambda request: [samples_of(request.text)])


@pytest.fixture(scope="module", autouse=True)
def patience() -> Iterator[None]:
    """Sessions do not end because the machine stalls."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        with_limits(monkeypatch, SessionLimits(config_s=600, idle_s=600))
        yield


@pytest.fixture(scope="module")
def server() -> Iterator[LiveServer]:
    with running(speaking_texts()) as live:
        yield live


class Session:
    """A client's side."""

    def __init__(self, live: LiveServer, *, path: str = PATH, **options: Any) -> None:
        url = f"ws://127.0.0.1:{live.port}{path}"
        connecting = connect(url, max_size=None, **PATIENT, **options)
        self.socket: ClientConnection = connecting.__enter__()

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def send(self, kind: str, **fields: Any) -> None:
        self.socket.send(json.dumps({"type": kind, **fields}))

    def say(self, *pieces: str) -> None:
        for piece in pieces:
            self.send("input.text", text=piece)
        self.send("input.done")

    def next(self) -> Any:
        message = self.socket.recv(timeout=180)
        return json.loads(message) if isinstance(message, str) else message

    def until(self, kind: str) -> list[Any]:
        """All messages up to one of a kind."""
        found = [self.next()]
        while not isinstance(found[-1], dict) or found[-1]["type"] != kind:
            found.append(self.next())
        return found

    def close_code(self) -> int:
        """Read until the server closes."""
        with suppress(ConnectionClosed):
            for _ in self.socket:
                pass
        assert self.socket.close_code is not None
        return self.socket.close_code


def session(live: LiveServer, **config: Any) -> Session:
    opened = Session(live)
    opened.send("session.config", **config)
    return opened


def is_idle(live: LiveServer) -> bool:
    status = live.service.slot.status()
    streams = [stream for stream in live.service.streams if stream.state is not StreamState.KEPT]
    return not streams and status.holder is None and not status.waiting and not live.engine.running


@pytest.mark.parametrize(("granularity", "expected"), [("none", [TEXT]), ("sentence", SENTENCES), ("clause", CLAUSES)])
def test_an_utterance_is_a_file_for_each_segment(server: LiveServer, granularity: str, expected: list[str]) -> None:
    with session(server, voice="alloy", speed=None, split_granularity=granularity) as client:
        client.say(*(word + " " for word in TEXT.split()[:-1]), TEXT.rsplit(maxsplit=1)[-1])
        messages = client.until("session.done")
        starts, files, ends = messages[:-1:3], messages[1:-1:3], messages[2:-1:3]
        assert [start["sentence_text"] for start in starts] == expected
        for index, (start, content, end) in enumerate(zip(starts, files, ends, strict=True)):
            place = {"utterance_index": 0, "sentence_index": index}
            text = start.pop("sentence_text")
            assert start == {"type": "audio.start", **place, "format": "wav"}
            assert end == {"type": "audio.done", **place, "total_bytes": len(content), "error": False}
            assert content[:4] == b"RIFF"
            assert content[44:] == pcm_of(text)
            assert struct.unpack("<I", content[40:44]) == (len(content) - 44,)
        assert messages[-1] == {"type": "session.done", "utterance_index": 0, "total_sentences": len(expected)}


def test_streamed_audio_comes_before_the_text_ends_and_utterances_are_counted(server: LiveServer) -> None:
    with session(server, **STREAMED, speed=None) as client:
        client.send("input.text", text="It is here. And")
        start, *pieces, end = client.until("audio.done")
        assert (start["sample_rate"], start["channels"], start["format"]) == (RATE_HZ, 1, "pcm")
        assert b"".join(pieces) == pcm_of("It is here.")
        assert end["total_bytes"] == len(pcm_of("It is here."))
        client.say(" more.")
        assert client.until("session.done")[-1] == {
            "type": "session.done",
            "utterance_index": 0,
            "total_sentences": 2,
        }
        client.send("session.config", response_format="pcm")
        client.say("Again.")
        start, content, end, _ = client.until("session.done")
        assert (start["utterance_index"], start["sentence_index"], end["utterance_index"]) == (1, 0, 1)
        assert content == pcm_of("Again.")
        client.say(" ")
        assert client.next() == {"type": "session.done", "utterance_index": 2, "total_sentences": 0}
        client.send("session.close")
        assert client.close_code() == 1000


def test_a_session_closes_after_the_audio_of_what_came_before(server: LiveServer) -> None:
    with session(server, **STREAMED) as client:
        client.say("One here. Two.")
        client.send("input.text", text="Three. Four")
        client.send("session.close")
        with suppress(ConnectionClosed):
            client.say("Too late.")
        found = [client.until("audio.start")[-1]["sentence_text"] for _ in range(3)]
        assert found == ["One here.", "Two.", "Three."]
        assert client.until("audio.done")[-1]["total_bytes"] == len(pcm_of("Three."))
        with pytest.raises(ConnectionClosed):
            client.next()
        assert client.close_code() == 1000


def test_a_language_reaches_the_engine_and_what_is_ignored_is_named(server: LiveServer) -> None:
    with session(server, language="German") as client:
        client.say("Hallo.")
        assert client.next()["ignored_settings"] == ["language"]
        client.until("session.done")
        client.send("session.config", language="Auto")
        client.say("Again.")
        assert "ignored_settings" not in client.next()
        client.until("session.done")
    assert [request.language for request in server.engine.requests[-2:]] == ["de", ""]


@pytest.mark.parametrize(("name", "decoder"), [("mp3", "mp3float"), ("flac", "flac"), ("opus", "opus")])
def test_every_sentence_is_one_file_of_the_format(server: LiveServer, name: str, decoder: str) -> None:
    with session(server, response_format=name, split_granularity="sentence", speed=2) as client:
        client.say(TEXT)
        messages = client.until("session.done")
    files = [message for message in messages if isinstance(message, bytes)]
    assert len(files) == 2
    for content, text in zip(files, SENTENCES, strict=True):
        with av.open(BytesIO(content), "r") as container:
            assert container.streams.audio[0].codec_context.name == decoder
            seconds = sum(frame.samples / frame.sample_rate for frame in container.decode(audio=0))
        assert seconds == pytest.approx(len(text) / 200, abs=0.1)


def test_words_have_times_that_are_exact_at_the_ends_of_a_sentence(server: LiveServer) -> None:
    with session(server, **STREAMED, word_timestamps=True) as client:
        client.say("One two. 你好")
        messages = client.until("session.done")
    chunks = [message for message in messages if message["type"] == "audio.chunk"]
    for index, text in enumerate(["One two.", "你好"]):
        *sounding, last = [chunk for chunk in chunks if chunk["sentence_index"] == index]
        audio = b"".join(base64.b64decode(chunk["audio_b64"]) for chunk in sounding)
        assert audio == pcm_of(text)
        assert all(chunk["timestamps"] is None for chunk in sounding)
        assert [chunk["chunk_id"] for chunk in (*sounding, last)] == list(range(len(sounding) + 1))
        ends = [chunk["chunk_end_ms"] for chunk in (*sounding, last)]
        assert [chunk["chunk_start_ms"] for chunk in (*sounding, last)] == [0, *ends[:-1]]
        assert ends[-1] == len(text) * 10
        assert last["audio_b64"] == ""
        assert last["alignment_precision"] == "segment"
        times = [(word["word"], word["start_ms"], word["end_ms"]) for word in last["timestamps"]]
        assert times == ([("One", 0, 30), ("two.", 40, 80)] if index == 0 else [("你", 0, 10), ("好", 10, 20)])


def test_the_words_of_a_long_text_come_in_several_messages_of_256_kib_at_most(server: LiveServer) -> None:
    with session(server, **STREAMED | {"split_granularity": "none"}, word_timestamps=True) as client:
        client.say("好" * 6000)
        chunks = [message for message in client.until("session.done") if message["type"] == "audio.chunk"]
    assert max(len(json.dumps(chunk, ensure_ascii=False).encode()) for chunk in chunks) <= 256 * 1024
    assert [chunk["chunk_id"] for chunk in chunks] == list(range(len(chunks)))
    words = [word for chunk in chunks if not chunk["audio_b64"] for word in chunk["timestamps"]]
    assert [(word["word"], word["start_ms"]) for word in words] == [("好", 10 * place) for place in range(6000)]


@pytest.mark.parametrize(
    ("message", "sentence"),
    [
        ("{", "JSON decode error"),
        ("[]", "unknown type 'None'"),
        ('{"type": "speech"}', "unknown type 'speech'"),
        ('{"type": "input.text"}', "text: Field required"),
        ('{"type": "input.text", "text": 3}', "text: Input should be a valid string"),
        ('{"type": "input.text", "text": "a\\u0000"}', "U\\+0000"),
        (json.dumps({"type": "input.text", "text": "x" * 20001}), "at most 20000"),
        (json.dumps({"type": "input.text", "text": "x" * MAX_MESSAGE_BYTES}), "larger than 131072 bytes"),
        ('{"type": "session.config", "speed": 9}', "speed"),
        ('{"type": "session.config", "voice": "nobody"}', "unknown voice 'nobody'"),
        ('{"type": "session.config", "stream_audio": true}', "needs response_format pcm, not wav"),
        ('{"type": "session.config", "word_timestamps": true}', "needs stream_audio"),
        ('{"type": "session.config", "stream_audio": true, "response_format": "pcm", "speed": 2}', "speed 1, not 2"),
        ('{"type": "session.config", "ref_audio": "data:"}', "ref_audio must be base64"),
        ('{"type": "session.config", "task_type": "VoiceDesign"}', "task_type"),
        (b"audio", "binary messages are not accepted"),
    ],
)
def test_an_error_leaves_the_connection_alive(server: LiveServer, message: str | bytes, sentence: str) -> None:
    with session(server) as client:
        client.socket.send(message)
        error = client.next()
        assert error["type"] == "error"
        assert pytest.raises(AssertionError, match=sentence).matches(AssertionError(error["message"]))
        client.say("Still here.")
        assert client.until("session.done")[0]["sentence_text"] == "Still here."


def test_a_config_within_an_utterance_is_an_error(server: LiveServer) -> None:
    with session(server) as client:
        client.send("input.text", text="One")
        client.send("session.config", voice="nova")
        assert "within an utterance" in client.next()["message"]
        client.say(" two.")
        assert client.next()["sentence_text"] == "One two."


@pytest.mark.parametrize(
    "first", ['{"type": "input.text", "text": "a"}', "{", '{"type": "session.config", "voice": "nobody"}', b"x"]
)
def test_a_first_message_that_is_no_good_config_ends_the_session(server: LiveServer, first: str | bytes) -> None:
    with Session(server) as client:
        client.socket.send(first)
        assert client.next()["type"] == "error"
        assert client.close_code() == 1008


def with_limits(monkeypatch: pytest.MonkeyPatch, limits: SessionLimits) -> None:
    dialect = partial(OpenAIDialect, session_limits=limits)
    monkeypatch.setattr("streaming_server.api.openai.routes.OpenAIDialect", dialect)


def test_a_session_without_a_config_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    with_limits(monkeypatch, SessionLimits(config_s=0.05))
    with running(speaking_texts()) as live, Session(live) as client:
        assert client.next()["message"] == "no session.config within 0.05 s"
        assert client.close_code() == 1008


def test_an_idle_session_ends_but_not_while_it_speaks(monkeypatch: pytest.MonkeyPatch) -> None:
    def converse(live: LiveServer) -> bool:
        with session(live) as client:
            with suppress(ConnectionClosed):
                client.say("Slow.")
            messages = [client.next()]
            if messages[0]["type"] == "error" and not live.engine.requests:
                return False  # the text came more than 0.3 s after the config
            messages += client.until("session.done")
            assert messages[-2]["error"] is False
            assert client.next()["message"] == "no message within 0.3 s"
            assert client.close_code() == 1008
            return True

    with_limits(monkeypatch, SessionLimits(idle_s=0.3))
    with running(FakeEngine(lambda _: [1.0, tone(0.1)])) as live:
        eventually(lambda: converse(live))


@pytest.mark.parametrize("streamed", [False, True])
def test_a_failed_sentence_is_reported_and_the_next_one_is_made(streamed: bool) -> None:
    def script(request: SpeechRequest) -> list[Step]:
        return [tone(0.2), ValueError("broken")] if request.text == "Bad." else [tone(0.1)]

    config = STREAMED if streamed else {"split_granularity": "sentence"}
    with running(FakeEngine(script)) as live, session(live, **config) as client:
        client.say("Bad. Good.")
        messages = [message for message in client.until("session.done") if isinstance(message, dict)]
        error = next(message for message in messages if message["type"] == "error")
        assert "the speech engine failed" in error["message"]
        assert ("action" in error, error.get("partial_audio", False)) == (streamed, streamed)
        ends = [
            (message["sentence_index"], message["error"]) for message in messages if message["type"] == "audio.done"
        ]
        assert ends == ([(0, True), (1, False)] if streamed else [(1, False)])
        assert is_idle(live)


def test_a_full_queue_refuses_an_utterance_but_not_the_later_sentences_of_one() -> None:
    gates = {name: Gate() for name in ("hold", "One.", "Two.")}

    def script(request: SpeechRequest) -> list[Step]:
        return [gates.get(request.text, gates["hold"]), tone(0.1)]

    with running(FakeEngine(script), max_queue=1) as live:
        with session(live, **STREAMED) as admitted, session(live, **STREAMED) as holder, session(live) as refused:
            admitted.say("One. Two.")
            eventually(lambda: live.engine.running)
            holder.say("hold")
            eventually(lambda: live.service.slot.status().waiting)
            refused.say("New. Newer.")
            assert "the queue is full" in refused.next()["message"]
            assert refused.next()["type"] == "session.done"
            gates["One."].open()
            eventually(lambda: live.service.slot.status().waiting and live.engine.requests[-1].text == "hold")
            gates["hold"].open()
            gates["Two."].open()
            assert [m["error"] for m in admitted.until("session.done") if isinstance(m, dict) and "error" in m] == [
                False,
                False,
            ]
        texts = [request.text for request in live.engine.requests]
        assert texts == ["One.", "hold", "Two."]


@pytest.mark.parametrize("abruptly", [False, True])
def test_barge_in_by_close_frees_the_slot(abruptly: bool, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    gate = Gate()
    with running(FakeEngine(lambda _: [tone(0.1), gate])) as live:
        client = session(live, **STREAMED)
        client.say("One. Two. Three.")
        client.until("audio.start")
        assert isinstance(client.next(), bytes)
        if abruptly:
            client.socket.socket.shutdown(socket.SHUT_RDWR)
        client.socket.close()
        eventually(lambda: is_idle(live))
        assert len(live.engine.requests) == 1
        eventually(lambda: logged(caplog, outcome="disconnected"))


def test_a_session_has_a_log_line_and_is_counted(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    with running(speaking_texts()) as live:
        with session(live, voice="nova") as client:
            client.say("One.")
            client.say("Two.")
            client.until("session.done")
            client.until("session.done")
            client.send("session.close")
            assert client.close_code() == 1000
        eventually(lambda: logged(caplog, method="WEBSOCKET"))
        (fields,) = logged(caplog, method="WEBSOCKET")
        assert (fields["route"], fields["status"], fields["outcome"]) == (PATH, 101, "complete")
        assert (fields["voice"], fields["characters"], fields["audio_s"]) == ("voice_05", 8, 0.08)
        metrics = live.get("/metrics").text
        assert f'speech_requests_total{{method="WEBSOCKET",route="{PATH}",status="101"}} 1.0' in metrics
        assert 'speech_wait_seconds_count{kind="live"} 2.0' in metrics


@pytest.fixture(scope="module")
def guarded() -> Iterator[LiveServer]:
    with running(speaking_texts(), api_keys=("secret",), cors_origins=("http://friend",)) as live:
        yield live


@pytest.mark.parametrize("headers", [{"X-API-Key": "secret"}, {"Authorization": "Bearer secret"}])
def test_a_handshake_has_a_key_and_an_allowed_origin(guarded: LiveServer, headers: dict[str, str]) -> None:
    with Session(guarded, additional_headers=headers, origin="http://friend") as client:
        client.send("session.config")
        client.say("Yes.")
        assert client.until("session.done")[0]["sentence_text"] == "Yes."


@pytest.mark.parametrize(
    ("path", "status", "options"),
    [
        (PATH, 401, {}),
        (PATH, 401, {"additional_headers": {"Authorization": "Bearer wrong"}}),
        ("/v1/audio/nowhere", 404, {"additional_headers": {"X-API-Key": "secret"}}),
        (PATH, 403, {"additional_headers": {"X-API-Key": "secret"}, "origin": "http://elsewhere"}),
    ],
)
def test_a_bad_handshake_is_refused_in_the_dialects_shape(
    guarded: LiveServer, path: str, status: int, options: dict[str, Any]
) -> None:
    with pytest.raises(InvalidStatus) as refused:
        Session(guarded, path=path, **options)
    assert refused.value.response.status_code == status
    assert json.loads(refused.value.response.body)["error"]["message"]


def test_an_engine_that_is_not_ready_refuses_the_handshake() -> None:
    gate = Gate()
    with running(FakeEngine(warming=[gate]), wait=False) as live:
        with pytest.raises(InvalidStatus) as refused:
            Session(live)
        assert refused.value.response.status_code == 503
        assert "Retry-After" in refused.value.response.headers
        gate.open()


def test_shutdown_ends_a_session_with_its_own_code(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    with running(FakeEngine(lambda _: [tone(0.1), Gate()])) as live:
        client = session(live, **STREAMED)
        client.say("One.")
        client.until("audio.start")
    assert client.close_code() == 1012
    assert logged(caplog, outcome="shutting_down")


def test_a_reader_too_slow_ends_its_session_alone(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")

    def script(request: SpeechRequest) -> list[Step]:
        return [tone(1.0)] * (400 if request.text == "Long." else 1)

    with running(FakeEngine(script), unsent_total_mb=4) as live:
        client = session(live, **STREAMED)
        client.say("Long.")  # more than the client's queue and the sockets hold
        eventually(lambda: live.engine.requests and is_idle(live))
        with session(live, **STREAMED) as other:
            other.say("Short.")
            assert other.until("session.done")
        assert client.close_code() in {1008, 1006}  # a connection that takes no close frame is aborted
        eventually(lambda: logged(caplog, outcome="reader_too_slow"))


def test_requests_over_http_still_work_beside_an_upgrade_to_websocket(server: LiveServer) -> None:
    headers = {"Connection": "Upgrade", "Upgrade": "websocket"}
    assert server.post("/v1/audio/speech", {"model": "a", "input": "Hello."}, headers=headers).status_code == 200


def test_connections_of_an_address_count_sessions_too() -> None:
    # The idle connection of the test's own client gives its place up.
    with (
        running(speaking_texts(), max_connections_per_address=3) as live,
        session(live),
        session(live),
        session(live),
    ):
        assert httpx.get(f"http://127.0.0.1:{live.port}/health", timeout=120).status_code == 429


def test_malformed_frames_and_messages_break_nothing(server: LiveServer, caplog: pytest.LogCaptureFixture) -> None:
    rng = random.Random(7)
    kinds: list[Any] = ["session.config", "input.text", "input.done", "session.close", "x", 3, None, {}]
    fields = ["text", "voice", "speed", "stream_audio", "split_granularity", "response_format", "seed"]
    values: list[Callable[[], Any]] = [
        lambda: rng.choice([None, True, -1, 1e300, "", "alloy", "sentence", "pcm", [], {}, [[]] * 50]),
        lambda: "".join(chr(rng.randrange(0x3000)) for _ in range(rng.randrange(40))),
    ]

    def message() -> str:
        body = {"type": rng.choice(kinds)} | {rng.choice(fields): rng.choice(values)() for _ in range(3)}
        text = json.dumps(body)
        return text if rng.random() < 0.8 else text[: rng.randrange(len(text) + 1)]

    for _ in range(60):
        client = session(server) if rng.random() < 0.8 else Session(server)
        try:
            for _ in range(8):
                client.socket.send(message() if rng.random() < 0.9 else rng.randbytes(20))
            if rng.random() < 0.3:
                client.socket.ping()
            frame = Frame(rng.choice([Opcode.TEXT, Opcode.CONT]), rng.randbytes(30), fin=rng.random() < 0.5)
            for content in (frame.serialize(mask=rng.random() < 0.7), rng.randbytes(rng.randrange(50))):
                client.socket.socket.sendall(content)
        except (ConnectionClosed, OSError):
            pass
        with suppress(OSError):
            client.socket.socket.shutdown(socket.SHUT_RDWR)
    eventually(lambda: is_idle(server))
    assert not [record for record in caplog.records if record.name in {"asyncio", "streaming_server.api.middleware"}]
    with session(server) as client:
        client.say("Fine.")
        assert client.until("session.done")


def test_a_message_beyond_the_servers_limit_closes_with_its_code(server: LiveServer) -> None:
    with session(server) as client:
        with suppress(ConnectionClosed):
            client.socket.send("x" * (5 * 1024 * 1024))
        assert client.close_code() in {1009, 1006}  # a reset may overtake the close frame
    with session(server) as client:
        client.say("Fine.")
        assert client.until("session.done")


def test_a_hundred_sessions_leave_nothing_behind() -> None:
    endings = ["close", "leave", "abort"]

    def converse(live: LiveServer, number: int) -> None:
        client = session(live, **STREAMED)
        client.say(f"This is number {number}. It has two sentences.")
        if number % 2:
            client.until("session.done")
        match endings[number % 3]:
            case "close":
                client.send("session.close")
                client.close_code()
            case "leave":
                client.socket.close()
            case _:
                client.socket.socket.shutdown(socket.SHUT_RDWR)
                client.socket.close()

    with running(FakeEngine(lambda _: [tone(0.05)]), max_queue=200) as live:
        for first in range(0, 100, 20):
            threads = [threading.Thread(target=converse, args=(live, first + number)) for number in range(20)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join(180)
                assert not thread.is_alive()
        eventually(lambda: is_idle(live))
        eventually(lambda: f'route="{PATH}",status="101"}} 100.0' in live.get("/metrics").text)
        assert live.service.budget.unsent_bytes == 0
