"""The WebSockets of the ElevenLabs dialect over real sockets."""

from __future__ import annotations

import base64
import json
import random
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.frames import Frame, Opcode
from websockets.sync.client import ClientConnection, connect

from streaming_server.audio.pcm import to_int16
from streaming_server.domain import SpeechRequest
from streaming_server.speech.stream import StreamState
from streaming_server.text import pause_s
from tests.support.fakes import RATE_HZ, FakeEngine, Gate, Step, tone
from tests.support.server import LiveServer, eventually, logged, running

VOICE = "voice_01"
PCM = {"output_format": f"pcm_{RATE_HZ}"}
OPEN = {"text": " ", "voice_settings": {"stability": 0.5}, "generation_config": {"chunk_length_schedule": [50]}}


def pcm_of(text: str) -> bytes:
    return to_int16(tone(len(text) / 100, 200.0 + len(text))).tobytes()


def pause(text: str) -> bytes:
    return bytes(2 * round(pause_s(text) * RATE_HZ))


def speaking_texts() -> FakeEngine:
    return FakeEngine(lambda request: [tone(len(request.text) / 100, 200.0 + len(request.text))])


@pytest.fixture(scope="module")
def server() -> Iterator[LiveServer]:
    with running(speaking_texts()) as live:
        yield live


@pytest.fixture(autouse=True)
def end_of_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    """A ``close_context`` that a stall parts from its flush ends the turn all the same."""
    monkeypatch.setattr("streaming_server.api.elevenlabs.context.END_OF_TURN_S", 3600.0)


class Client:
    def __init__(self, live: LiveServer, route: str = "multi", *, headers: Any = None, **query: Any) -> None:
        name = {"multi": "multi-stream-input", "single": "stream-input"}[route]
        settings = "&".join(
            f"{key}={value}" for key, value in (PCM | {"inactivity_timeout": 180} | query).items() if value is not None
        )
        voice = query.pop("voice", VOICE)
        url = f"ws://127.0.0.1:{live.port}/v1/text-to-speech/{voice}/{name}?{settings}"
        options: Any = {"additional_headers": headers or {}, "max_size": None, "ping_interval": None}
        options |= {"open_timeout": 180, "close_timeout": 180}
        self.socket: ClientConnection = connect(url, **options).__enter__()

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def send(self, **fields: Any) -> None:
        self.socket.send(json.dumps(fields))

    def next(self) -> Any:
        return json.loads(self.socket.recv(timeout=180))

    def until_final(self) -> list[Any]:
        found = [self.next()]
        while not found[-1].get("isFinal"):
            found.append(self.next())
        return found

    def close_code(self) -> int | None:
        with suppress(ConnectionClosed):
            for _ in self.socket:
                pass
        return self.socket.close_code


def audio_of(messages: list[Any], context: str | None = None) -> bytes:
    return b"".join(
        base64.b64decode(message.get("audio") or "")
        for message in messages
        if context is None or message.get("contextId") == context
    )


def alignments(messages: list[Any]) -> list[dict[str, Any]]:
    return [message["alignment"] for message in messages if message.get("alignment")]


def is_idle(live: LiveServer) -> bool:
    status = live.service.slot.status()
    streams = [stream for stream in live.service.streams if stream.state is not StreamState.KEPT]
    return not streams and status.holder is None and not status.waiting and not live.engine.running


def test_a_single_stream_is_spoken_while_it_is_written_and_ends_with_an_empty_text(server: LiveServer) -> None:
    with Client(server, "single") as client:
        client.send(**OPEN)
        client.send(text="It is here. ", try_trigger_generation=True)
        client.send(text="And ", try_trigger_generation=True)
        messages = [client.next()]
        while not alignments(messages):
            messages.append(client.next())
        assert audio_of(messages) == pcm_of("It is here.")
        client.send(text="more.")
        client.send(text="")
        messages += client.until_final()
        assert audio_of(messages) == pcm_of("It is here.") + pause("It is here.") + pcm_of("And more.")
        assert messages[-1] == {"audio": None, "isFinal": True}
        assert all(message["isFinal"] is None and "error" not in message for message in messages[:-1])
        assert client.close_code() == 1000


def test_times_restart_in_each_alignment_and_cover_all_audio_since_the_one_before(server: LiveServer) -> None:
    with Client(server) as client:
        client.send(**OPEN, context_id="a")
        client.send(text="One two. Three", context_id="a", flush=True)
        client.send(context_id="a", close_context=True)
        messages = client.until_final()
    first, second = alignments(messages)
    assert "".join(first["chars"]) == "One two. "
    assert first["charStartTimesMs"] == [0, 10, 20, 30, 40, 50, 60, 70, 80]
    assert first["charDurationsMs"] == [10] * 8 + [0]
    begin = round(pause_s("One two.") * 1000)
    assert "".join(second["chars"]) == "Three "
    assert second["charStartTimesMs"] == [begin + 10 * place for place in range(6)]
    assert {message["alignment_precision"] for message in messages if message.get("alignment")} == {"segment"}
    assert all(message["alignment"] == message["normalizedAlignment"] for message in messages[:-1])
    assert {message["contextId"] for message in messages} == {"a"}


def test_times_count_from_the_start_with_sync_alignment(server: LiveServer) -> None:
    with Client(server, sync_alignment="true") as client:
        client.send(text="One two. Three", context_id="a", flush=True)
        client.send(context_id="a", close_context=True)
        first, second = alignments(client.until_final())
    assert second["charStartTimesMs"][0] == first["charStartTimesMs"][-1] + round(pause_s("One two.") * 1000)


def test_sentences_without_a_space_behind_are_not_glued_together(server: LiveServer) -> None:
    with Client(server) as client:
        for text in ("Hello there.", "Yes.", "It works."):
            client.send(text=text, context_id="a")
        client.send(context_id="a", flush=True)
        client.send(context_id="a", close_context=True)
        texts = ["".join(alignment["chars"]).strip() for alignment in alignments(client.until_final())]
    assert texts == ["Hello there.", "Yes.", "It works."]


def test_a_message_is_a_whole_sentence_with_auto_mode(server: LiveServer) -> None:
    sentences = ["Okay.", "3 items are left.", "Dr.", "iPhones? "]
    with Client(server, auto_mode="true") as client:
        for text in (*sentences, "No end"):
            client.send(text=text, context_id="a")
        client.send(context_id="a", flush=True)
        client.send(context_id="a", close_context=True)
        texts = ["".join(alignment["chars"]).strip() for alignment in alignments(client.until_final())]
    assert texts == [*(sentence.strip() for sentence in sentences), "No end"]


def test_tags_are_read_where_the_query_says_so(server: LiveServer) -> None:
    with Client(server, enable_ssml_parsing="true", language_code="de") as client:
        assert client.socket.response is not None
        assert client.socket.response.headers["x-ignored-settings"] == "language_code, ssml.phoneme"
        for piece in ("One <bre", 'ak time="0.5s"/>t', 'wo <phoneme ph="x">th', "ree</phoneme> <b"):
            client.send(text=piece, context_id="a")
        client.send(context_id="a", flush=True)
        client.send(context_id="a", close_context=True)
        messages = client.until_final()
        assert "".join(alignments(messages)[0]["chars"]).split() == ["One", "two", "three", "<b"]
        assert audio_of(messages) == pcm_of("One ") + bytes(RATE_HZ) + pcm_of("two three <b")
        client.send(text='<break time="x"/>', context_id="b")
        assert client.next()["error"] == "invalid_request"
        assert client.until_final()
    with Client(server) as client:
        client.send(text="a <b> c", context_id="a", flush=True)
        client.send(context_id="a", close_context=True)
        assert audio_of(client.until_final()) == pcm_of("a <b> c")


def test_contexts_are_streams_of_their_own(server: LiveServer) -> None:
    with Client(server) as client:
        client.send(text="First context", context_id="a")
        client.send(text="Second", context_id="b", flush=True)
        client.send(context_id="b", close_context=True)
        ended = client.until_final()
        assert audio_of(ended) == pcm_of("Second")
        assert ended[-1]["contextId"] == "b"
        client.send(context_id="a", flush=True)
        client.send(context_id="a", close_context=True)
        assert audio_of(client.until_final()) == pcm_of("First context")
        client.send(text="Without an id", flush=True)
        client.send(close_context=True)
        assert client.until_final()[-1] == {"audio": None, "isFinal": True, "contextId": None}
        client.send(close_socket=True)
        assert client.close_code() == 1000


def test_keep_alives_and_bare_flushes_open_no_context(server: LiveServer) -> None:
    with Client(server) as client:
        for number in range(20):
            client.send(text="", context_id=f"c{number}")
            client.send(flush=True, context_id=f"d{number}")
            client.send(close_context=True, context_id=f"e{number}")
        client.send(text="")
        client.send(text="Still here.", context_id="a", flush=True)
        assert client.next()["contextId"] == "a"
        assert len(server.service.streams) == 1


def test_a_sixth_context_ends_the_session(server: LiveServer) -> None:
    with Client(server) as client:
        for number in range(6):
            client.send(text="Hello ", context_id=str(number))
        error = client.next()
        assert (error["error"], error["code"]) == ("max_active_conversations", 1008)
        assert client.close_code() == 1008
    eventually(lambda: is_idle(server))


@pytest.mark.parametrize("how", ["text", "closed twice"])
def test_close_context_interrupts_and_frees_the_slot(how: str) -> None:
    gate = Gate()
    with running(FakeEngine(lambda _: [tone(0.02), gate])) as live, Client(live) as client:  # audio in one message
        client.send(text="A long story. And", context_id="a")
        assert client.next()["audio"]
        if how == "closed twice":
            client.send(context_id="a", flush=True)
            client.send(context_id="a", close_context=True)
        client.send(context_id="a", close_context=True)
        assert client.until_final() == [{"audio": None, "isFinal": True, "contextId": "a"}]
        assert is_idle(live)
        client.send(text="Next turn. And", context_id="b")
        assert client.next()["contextId"] == "b"
        client.send(context_id="b", close_context=True)
        client.send(text="The same again. And", context_id="b")
        assert client.until_final()[-1]["contextId"] == "b"
        assert client.next()["audio"]
        texts = ["A long story.", "Next turn.", "The same again."]
        assert [request.text for request in live.engine.requests] == texts


def test_close_context_after_a_flush_finishes_the_turn() -> None:
    gate = Gate()
    with running(FakeEngine(lambda _: [tone(0.1), gate, tone(0.1)])) as live, Client(live) as client:
        client.send(text="A long story", context_id="a")
        client.send(text="", context_id="a", flush=True)
        client.send(context_id="a", close_context=True)
        found = [client.next()]
        client.send(text="More of it", context_id="a")
        while "error" not in found[-1]:
            found.append(client.next())
        assert (found[-1]["error"], found[-1]["contextId"]) == ("invalid_request", "a")
        gate.open()
        assert len(audio_of([*found, *client.until_final()])) == 4 * round(0.1 * RATE_HZ)


def test_a_failing_context_leaves_the_others_alive() -> None:
    def script(request: SpeechRequest) -> list[Step]:
        return [tone(0.1), ValueError("broken")] if request.text == "Bad one." else [tone(0.1)]

    with running(FakeEngine(script)) as live, Client(live) as client:
        client.send(text="Bad one.", context_id="a")
        error = next(message for message in iter(client.next, None) if "error" in message)
        assert (error["error"], error["contextId"]) == ("engine_failed", "a")
        assert client.next() == {"audio": None, "isFinal": True, "contextId": "a"}
        client.send(text="x" * 20001, context_id="b")
        assert client.next()["error"] == "text_too_long"
        client.until_final()
        client.send(text="Good one.", context_id="c", voice_settings={"speed": 9})
        assert client.next()["error"] == "invalid_voice_settings"
        client.send(text="Good one", context_id="c", voice_settings=None, flush=None, close_socket=None)
        broken: list[dict[str, Any]] = [
            {"voice_settings": {"speed": "fast"}},
            {"text": 3},
            {"text": "x" * 131072},
            {"flush": "now"},
        ]
        for fields in broken:
            client.send(text="Bad one", context_id="d")
            client.send(**fields, context_id="d")
            error = client.next()
            assert (error["contextId"], error["code"]) == ("d", 1008)
            assert client.next() == {"audio": None, "isFinal": True, "contextId": "d"}
        client.send(context_id="c", close_context=None, flush=True)
        client.send(context_id="c", close_context=True)
        assert len(audio_of(client.until_final())) == 2 * round(0.1 * RATE_HZ)
        client.send(context_id=5, text="Whose?")
        assert "contextId" not in client.next()
        assert client.close_code() == 1008


@pytest.mark.parametrize(
    ("message", "word"),
    [
        ("{", "malformed_body"),
        ("[]", "malformed_body"),
        ('{"text": 3}', "malformed_body"),
        ('{"text": "a\\u0000"}', "invalid_request"),
        (json.dumps({"text": "x" * 20001}), "text_too_long"),
        (json.dumps({"text": "x" * 131072}), "invalid_request"),
        ('{"text": "a", "voice_settings": {"speed": 9}}', "invalid_voice_settings"),
        (b"audio", "invalid_request"),
    ],
)
def test_a_bad_message_ends_a_single_stream(server: LiveServer, message: str | bytes, word: str) -> None:
    with Client(server, "single") as client:
        client.socket.send(message)
        error = client.next()
        assert (error["error"], error["code"]) == (word, 1008)
        assert error["message"]
        assert client.close_code() == 1008


def test_a_full_queue_is_told_at_once() -> None:
    gate = Gate()
    with running(FakeEngine(lambda _: [gate]), max_queue=0) as live, Client(live) as holder, Client(live) as client:
        holder.send(text="Hold it.", context_id="a", flush=True)
        eventually(lambda: live.engine.running)
        client.send(text="Hello you.", context_id="b", flush=True)
        assert client.next()["error"] == "system_busy"
        gate.open()


def test_a_silent_client_is_closed_but_not_while_it_is_spoken_to() -> None:
    def converse(live: LiveServer) -> bool:
        with Client(live, inactivity_timeout=1) as client:
            with suppress(ConnectionClosed):
                client.send(text="Slow one.", context_id="a", flush=True)
            first = client.next()
            if "error" in first and not live.engine.requests:
                return False  # the text came more than a second after the handshake
            assert first["audio"]
            error = next(message for message in iter(client.next, None) if "error" in message)
            assert error["error"] == "input_timeout_exceeded"
            assert client.close_code() == 1008
            return True

    with running(FakeEngine(lambda _: [1.5, tone(0.1)])) as live:
        eventually(lambda: converse(live))


@pytest.mark.parametrize(
    ("query", "status", "word"),
    [
        ({"output_format": "mp3_1"}, 400, "invalid_output_format"),
        ({"inactivity_timeout": 181}, 400, "malformed"),
        ({"voice": "nobody"}, 404, "voice_not_found"),
    ],
)
def test_a_bad_handshake_is_refused(server: LiveServer, query: dict[str, Any], status: int, word: str) -> None:
    with pytest.raises(InvalidStatus) as refused:
        Client(server, **query)
    assert refused.value.response.status_code == status
    detail = json.loads(refused.value.response.body)["detail"]
    assert detail["message"]
    assert word in {detail["status"], "malformed"}


def test_a_refused_handshake_is_no_error_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    with running(speaking_texts()) as live, pytest.raises(InvalidStatus):
        Client(live, output_format="mp3_1")
    assert logged(caplog, status=400)
    assert not [record for record in caplog.records if record.levelname == "ERROR"]


def test_keys_are_taken_from_headers_and_from_the_first_message() -> None:
    with running(speaking_texts(), api_keys=("secret",)) as live:
        with pytest.raises(InvalidStatus) as refused:
            Client(live, headers={"xi-api-key": "wrong"})
        assert refused.value.response.status_code == 401
        assert json.loads(refused.value.response.body)["detail"]["status"] == "invalid_api_key"
        for headers in ({"xi-api-key": "secret"}, {"Authorization": "Bearer secret"}, {"X-API-Key": "secret"}):
            with Client(live, "single", headers=headers) as client:
                client.send(text="")
                assert client.next()["isFinal"] is True
        for fields in ({"xi-api-key": "secret"}, {"xi_api_key": "secret"}, {"authorization": "Bearer secret"}):
            with Client(live) as client:
                client.send(text="One word.", context_id="a", **fields)
                assert client.next()["audio"]
        for wrong in ({}, {"xi_api_key": "wrong"}, {"xi_api_key": 3}):
            with Client(live) as client:
                client.send(text="One word.", context_id="a", **wrong)
                assert client.next()["error"] == "invalid_api_key"
                assert client.close_code() == 1008
        for fields, error in (({}, "invalid_api_key"), ({"xi_api_key": "secret"}, "voice_not_found")):
            with Client(live, voice="nobody") as client:  # which voices there are is for clients with a key
                client.send(text="One word.", context_id="a", **fields)
                assert client.next()["error"] == error
                assert client.close_code() == 1008


def test_a_session_has_a_log_line_and_a_gauge(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    with running(speaking_texts()) as live:
        with Client(live, "single") as client:
            client.send(text="Ten letters", flush=True)
            assert client.next()["audio"]
            assert 'speech_sessions{protocol="elevenlabs"} 1.0' in live.get("/metrics").text
            client.send(text="")
            client.until_final()
        eventually(lambda: logged(caplog, method="WEBSOCKET"))
        (fields,) = logged(caplog, method="WEBSOCKET")
        assert (fields["outcome"], fields["characters"], fields["audio_s"]) == ("complete", 11, 0.11)
        assert 'speech_sessions{protocol="elevenlabs"} 0.0' in live.get("/metrics").text


def test_shutdown_is_told_in_the_protocols_own_message(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    with running(FakeEngine(lambda _: [tone(0.1), Gate()])) as live:
        client = Client(live)
        client.send(text="One word.", context_id="a", flush=True)
        assert client.next()["audio"]
    error = next(message for message in iter(client.next, None) if "error" in message)
    assert (error["error"], error["code"]) == ("system_busy", 1012)
    assert client.close_code() == 1012
    assert logged(caplog, outcome="shutting_down")


def test_malformed_frames_and_messages_break_nothing(server: LiveServer, caplog: pytest.LogCaptureFixture) -> None:
    rng = random.Random(11)
    fields = ["text", "context_id", "flush", "close_context", "close_socket", "voice_settings", "xi_api_key"]
    values: list[Callable[[], Any]] = [
        lambda: rng.choice([None, True, -1, 1e300, "", " ", "a", "b", "One word. Two", [], {}, [[]] * 50]),
        lambda: "".join(chr(rng.randrange(0x3000)) for _ in range(rng.randrange(40))),
    ]

    def message() -> str:
        text = json.dumps({rng.choice(fields): rng.choice(values)() for _ in range(3)})
        return text if rng.random() < 0.9 else text[: rng.randrange(len(text) + 1)]

    for _ in range(60):
        client = Client(server, rng.choice(["single", "multi"]))
        try:
            for _ in range(8):
                client.socket.send(message() if rng.random() < 0.95 else rng.randbytes(20))
            frame = Frame(rng.choice([Opcode.TEXT, Opcode.CONT]), rng.randbytes(30), fin=rng.random() < 0.5)
            for content in (frame.serialize(mask=rng.random() < 0.7), rng.randbytes(rng.randrange(50))):
                client.socket.socket.sendall(content)
        except (ConnectionClosed, OSError):
            pass
        with suppress(OSError):
            client.socket.socket.shutdown(socket.SHUT_RDWR)
    eventually(lambda: is_idle(server))
    assert not [record for record in caplog.records if record.name in {"asyncio", "streaming_server.api.middleware"}]
    with Client(server) as client:
        client.send(text="Fine now.", context_id="a")
        assert client.next()["audio"]


def test_many_sessions_leave_nothing_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    # A machine that stalls makes the expected wait long.
    monkeypatch.setattr("streaming_server.api.elevenlabs.session._MAX_WAIT_S", 3600.0)

    def converse(live: LiveServer, number: int) -> None:
        client = Client(live)
        client.send(text=f"This is number {number}. It has two sentences.", context_id="a")
        match number % 4:
            case 0:
                client.send(context_id="a", flush=True)
                client.send(context_id="a", close_context=True)
                client.until_final()
                client.socket.close()
            case 1:
                client.send(close_socket=True)
                client.close_code()
            case 2:
                client.socket.close()
            case _:
                client.socket.socket.shutdown(socket.SHUT_RDWR)
                client.socket.close()

    with running(FakeEngine(lambda _: [tone(0.05)]), max_queue=200) as live:
        for first in range(0, 60, 20):
            threads = [threading.Thread(target=converse, args=(live, first + number)) for number in range(20)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join(180)
                assert not thread.is_alive()
        eventually(lambda: is_idle(live))
        eventually(lambda: 'speech_sessions{protocol="elevenlabs"} 0.0' in live.get("/metrics").text)
        assert live.service.budget.unsent_bytes == 0
