"""The Wyoming server, through the official client; what that cannot send goes over a plain socket."""

from __future__ import annotations

import asyncio
import json
import logging
import socket
import warnings
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import pytest

from streaming_server import app
from streaming_server.domain import Voice
from streaming_server.engines.base import Engine
from streaming_server.engines.espeak.voices import VOICES
from streaming_server.environment import InvalidSetting
from streaming_server.settings import Settings
from tests.support.children import free_port
from tests.support.fakes import FOREVER, RATE_HZ, FakeEngine, Gate, tone
from tests.support.server import LiveServer, eventually, running, speaking

with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)  # of the standard library's audioop
    from wyoming.audio import AudioChunk, AudioStart
    from wyoming.client import AsyncTcpClient
    from wyoming.event import Event
    from wyoming.info import Describe, Info
    from wyoming.ping import Ping
    from wyoming.tts import Synthesize, SynthesizeChunk, SynthesizeStart, SynthesizeStop, SynthesizeVoice

HOST = "127.0.0.1"


@dataclass(frozen=True)
class Home:
    """A server, and clients as Home Assistant has them."""

    live: LiveServer
    port: int

    def run(self, work: Callable[[AsyncTcpClient], Awaitable[Any]]) -> Any:
        async def session() -> Any:
            async with AsyncTcpClient(HOST, self.port) as client:
                async with asyncio.timeout(180):
                    return await work(client)

        return asyncio.run(session())

    def ask(self, *events: Event, until: str) -> list[Event]:
        """Send events; what is received up to the first of a type."""

        async def work(client: AsyncTcpClient) -> list[Event]:
            for event in events:
                await client.write_event(event)
            return await received(client, until)

        found: list[Event] = self.run(work)
        return found


@contextmanager
def home(engine: Engine | None = None, **settings: Any) -> Iterator[Home]:
    port = free_port()
    with running(engine or speaking(tone(0.1), tone(0.1)), wyoming_port=port, **settings) as live:
        yield Home(live, port)


class Polyglot(FakeEngine):
    """Has the voices of espeak, and one of its own."""

    @property
    def info(self) -> Any:
        own = Voice("hilde", is_preset=True, languages=("de",)), Voice("rita", is_preset=True, languages=("pt-BR",))
        return replace(super().info, presets=(*VOICES, *own), languages=("de", "en"))


@pytest.fixture(scope="module")
def server() -> Iterator[Home]:
    with home(Polyglot(lambda _: [tone(0.1), tone(0.1)])) as started:
        yield started


async def received(client: AsyncTcpClient, until: str) -> list[Event]:
    events: list[Event] = []
    while not events or events[-1].type != until:
        event = await client.read_event()
        assert event is not None
        events.append(event)
    return events


def kinds(events: list[Event]) -> list[str]:
    """The types, repeated ones once."""
    return [event.type for number, event in enumerate(events) if not number or events[number - 1].type != event.type]


def samples(events: list[Event]) -> bytes:
    return b"".join(AudioChunk.from_event(event).audio for event in events if event.type == "audio-chunk")


def say(text: str, **options: Any) -> Event:
    return Synthesize(text, **options).event()


def test_it_describes_every_voice_with_its_languages(server: Home) -> None:
    (event,) = server.ask(Describe().event(), until="info")
    (program,) = Info.from_event(event).tts
    assert (program.installed, program.supports_synthesize_streaming) == (True, True)
    voices = {voice.name: voice.languages for voice in program.voices}
    assert {"voice_01", "nova"} <= set(voices)
    assert voices["hilde"] == ["de"]
    assert all(languages for languages in voices.values())
    assert not event.data["asr"]
    assert server.ask(Ping("here").event(), until="pong")[0].data == {"text": "here"}


def test_a_text_is_answered_with_raw_samples(server: Home) -> None:
    events = server.ask(say("Hello.", voice=SynthesizeVoice(name="voice_03")), until="audio-stop")
    assert kinds(events) == ["audio-start", "audio-chunk", "audio-stop"]
    start = AudioStart.from_event(events[0])
    assert (start.rate, start.width, start.channels) == (RATE_HZ, 2, 1)
    assert len(samples(events)) == RATE_HZ // 5 * 2
    assert server.live.engine.requests[-1].voice.name == "voice_03"


def test_ssml_is_declared_by_the_text_format(server: Home) -> None:
    plain = len(samples(server.ask(say("One."), until="audio-stop")))
    markup = "<speak>One.<break time='100ms'/></speak>"
    events = server.ask(say(markup, text_format="ssml"), until="audio-stop")
    assert len(samples(events)) == plain + RATE_HZ // 10 * 2
    refused = server.ask(say("<speak>", text_format="ssml"), until="audio-stop")
    assert (refused[0].data["code"], "line 1" in refused[0].data["text"]) == ("invalid_markup", True)


def test_a_language_chooses_a_voice_that_has_it_and_reaches_the_engine(server: Home) -> None:
    server.ask(say("Hallo.", voice=SynthesizeVoice(language="de-DE")), until="audio-stop")
    for language in ("pt", "pt-BR", "pt_PT", "es"):
        server.ask(say("Hola.", voice=SynthesizeVoice(language=language)), until="audio-stop")
    asked = [(request.voice.name, request.language) for request in server.live.engine.requests[-5:]]
    portuguese = [("rita", "pt"), ("rita", "pt-br"), ("rita", "pt_pt")]
    assert asked == [("hilde", "de-de"), *portuguese, ("voice_01", "es")]


def test_a_streamed_text_sounds_from_its_first_sentence_on(server: Home) -> None:
    async def work(client: AsyncTcpClient) -> list[Event]:
        opening = (SynthesizeStart(), SynthesizeChunk("First one here. "), SynthesizeChunk("Second"))
        for event in (each.event() for each in opening):
            await client.write_event(event)
        events = await received(client, "audio-chunk")  # before the text has ended
        # Home Assistant repeats the whole text before the stop, for servers that do not stream.
        closing = (SynthesizeChunk(" one."), Synthesize("First one here. Second one."), SynthesizeStop())
        for event in (each.event() for each in closing):
            await client.write_event(event)
        return events + await received(client, "synthesize-stopped")

    before = len(server.live.engine.requests)
    events = server.run(work)
    assert kinds(events) == ["audio-start", "audio-chunk", "audio-stop", "synthesize-stopped"]
    texts = [request.text for request in server.live.engine.requests[before:]]
    assert texts == ["First one here.", "Second one."]
    assert len(samples(events)) >= 2 * RATE_HZ // 5 * 2  # a pause may lie between the sentences


def test_one_text_after_the_other_and_ping_in_between() -> None:
    gate = Gate()
    with home(speaking(gate, tone(0.1))) as server:

        async def work(client: AsyncTcpClient) -> list[str]:
            for event in (say("one"), say("two"), Ping("x").event()):
                await client.write_event(event)
            found = kinds(await received(client, "pong"))
            gate.open()
            return found + kinds(await received(client, "audio-stop")) + kinds(await received(client, "audio-stop"))

        sound = ["audio-start", "audio-chunk", "audio-stop"]
        assert server.run(work) == ["pong", *sound, *sound]
        assert [request.text for request in server.live.engine.requests] == ["one", "two"]


@pytest.mark.parametrize(
    ("event", "code"),
    [
        (say("  "), "blank_text"),
        (say("a", voice=SynthesizeVoice(name="nobody")), "voice_unknown"),
        (say("a\x00"), "invalid_request"),
        (say("a" * 20_001), "text_too_long"),
        (Event("synthesize", {}), "malformed_body"),
        (Event("synthesize", {"text": 5}), "malformed_body"),
        (Event("synthesize", {"text": "a", "voice": "x"}), "malformed_body"),
        (say("a", text_format="html"), "malformed_body"),
    ],
)
def test_bad_input_is_an_error_and_an_end_and_the_connection_lives(server: Home, event: Event, code: str) -> None:
    events = server.ask(event, Ping().event(), say("after"), until="audio-chunk")
    assert [found.type for found in events if found.type != "pong"] == [
        *("error", "audio-stop"),
        *("audio-start", "audio-chunk"),
    ]
    error = next(found for found in events if found.type == "error")
    assert error.data["code"] == code
    assert error.data["text"]


@pytest.mark.parametrize(
    ("events", "code"),
    [
        ([SynthesizeStart(), SynthesizeStop()], "blank_text"),
        ([SynthesizeStart(SynthesizeVoice("nobody")), SynthesizeChunk("Hello."), SynthesizeStop()], "voice_unknown"),
        ([SynthesizeStart(), SynthesizeChunk("a" * 20_001), SynthesizeStop()], "text_too_long"),
        ([SynthesizeStart(), SynthesizeChunk("a\x00. B. C."), SynthesizeStop()], "invalid_request"),
        ([SynthesizeStart(), Event("synthesize-chunk", {"text": 5}), SynthesizeStop()], "malformed_body"),
        ([SynthesizeChunk("a")], "invalid_request"),
        ([SynthesizeStop()], "invalid_request"),
    ],
)  # fmt: skip
def test_a_stream_that_fails_ends_as_the_client_expects(server: Home, events: list[Any], code: str) -> None:
    sent = [event if isinstance(event, Event) else event.event() for event in events]
    found = server.ask(*sent, until="synthesize-stopped")
    assert kinds(found) == ["error", "synthesize-stopped"]
    assert found[0].data["code"] == code


def test_a_start_that_is_refused_begins_a_stream_all_the_same(server: Home) -> None:
    text = "A sentence."
    start = SynthesizeStart(text_format="ssml").event()
    rest = [*[SynthesizeChunk(text).event()] * 20, say(text * 20), SynthesizeStop().event()]
    before = len(server.live.engine.requests)
    found = server.ask(start, *rest, say("after"), until="audio-stop")
    assert [event.type for event in found[:3]] == ["error", "synthesize-stopped", "audio-start"]
    assert [request.text for request in server.live.engine.requests[before:]] == ["after"]


def test_a_full_queue_and_a_broken_engine_are_errors() -> None:
    with home(speaking(FOREVER), max_queue=0) as server:

        async def work(client: AsyncTcpClient) -> list[Event]:
            async with AsyncTcpClient(HOST, server.port) as other:
                await client.write_event(say("first"))
                while not server.live.engine.running:
                    await asyncio.sleep(0.005)
                await other.write_event(say("second"))
                return await received(other, "audio-stop")

        events = server.run(work)
        assert (kinds(events), events[0].data["code"]) == (["error", "audio-stop"], "queue_full")
    with home(speaking(tone(0.1), RuntimeError("broken"))) as server:
        events = server.ask(say("a"), until="audio-stop")
        assert kinds(events) == ["audio-start", "audio-chunk", "error", "audio-stop"]


def test_a_client_that_leaves_frees_the_slot_and_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO), home(speaking(tone(0.1), FOREVER)) as server:
        server.ask(say("a"), until="audio-chunk")
        eventually(lambda: not server.live.engine.running and server.live.queue()["is_processing"] is False)
        text = "speech_requests_total"
        eventually(lambda: f'{text}{{method="WYOMING",route="synthesize",status="none"}} 1.0' in _metrics(server))
        eventually(lambda: "speech_wyoming_connections 0.0" in _metrics(server))
    record: Any = next(record for record in caplog.records if getattr(record, "fields", {}).get("method") == "WYOMING")
    assert record.fields["outcome"] == "disconnected"
    assert (record.fields["voice"], record.fields["characters"]) == ("voice_01", 1)


def _metrics(server: Home) -> str:
    return server.live.get("/metrics").text


def test_shutdown_tells_the_client() -> None:
    async def work(client: AsyncTcpClient, server: Home, stop: Callable[[], object]) -> list[Event]:
        await client.write_event(SynthesizeStart().event())
        await client.write_event(SynthesizeChunk("A sentence. And").event())
        events = await received(client, "audio-chunk")
        await asyncio.to_thread(stop)
        return events + await received(client, "synthesize-stopped")

    running_server = home(speaking(tone(0.1)))
    server = running_server.__enter__()
    events = server.run(lambda client: work(client, server, lambda: running_server.__exit__(None, None, None)))
    assert kinds(events) == ["audio-start", "audio-chunk", "error", "audio-stop", "synthesize-stopped"]
    assert next(event for event in events if event.type == "error").data["code"] == "shutting_down"


@pytest.mark.parametrize(
    "sent",
    [
        b"\x00\xff\n",
        b"[]\n",
        b"{}\n",
        b'{"type": 5}\n',
        b'{"type": "ping", "data_length": -1}\n',
        b'{"type": "ping", "data_length": "5"}\n',
        b'{"type": "ping", "data_length": 99999999999}\n',
        b'{"type": "audio-chunk", "payload_length": 99999999999}\n',
        b"[" * 60_000 + b"\n",
        b"x" * 70_000,
    ],
)
def test_what_is_no_event_ends_the_connection_with_an_error(server: Home, sent: bytes) -> None:
    with socket.create_connection((HOST, server.port), timeout=180) as client:
        client.sendall(sent)
        answer = b""
        while piece := client.recv(65536):
            answer += piece
    line, _, rest = answer.partition(b"\n")
    assert json.loads(line)["type"] == "error"
    assert json.loads(rest)["code"] == "malformed_event"


def test_unknown_events_and_payloads_are_dropped_and_a_torn_event_harms_nobody(server: Home) -> None:
    unknown = Event("transcribe", {"name": "x"}, b"\x00" * 100_000)
    assert kinds(server.ask(unknown, Ping().event(), until="pong")) == ["pong"]
    with socket.create_connection((HOST, server.port), timeout=180) as client:
        client.sendall(b'{"type": "synthesize", "data_length": 50}\n{"te')
    bad_data = b'{"type": "synthesize", "data_length": 2}\n[]' + b'{"type": "ping"}\n'
    with socket.create_connection((HOST, server.port), timeout=180) as client:
        client.sendall(bad_data)
        answer = b""
        while b'"pong"' not in answer or b"audio-stop" not in answer:
            answer += client.recv(65536)
    assert b'"error"' in answer


def test_limits_of_connections_of_waiting_texts_and_of_idle_time(monkeypatch: pytest.MonkeyPatch) -> None:
    with home(speaking(FOREVER), max_connections_per_address=20) as server:
        # All at once: the server closes the connection at the first text too many.
        with socket.create_connection((HOST, server.port), timeout=180) as client:
            client.sendall(b'{"type": "synthesize", "data": {"text": "a"}}\n' * 12)
            answer = b""
            while b"waiting" not in answer:
                piece = client.recv(65536)
                assert piece, answer
                answer += piece
        eventually(lambda: not server.live.engine.running)
    with home(max_connections=3) as server:

        async def refused(client: AsyncTcpClient) -> bool:
            async with AsyncTcpClient(HOST, server.port), AsyncTcpClient(HOST, server.port):
                fourth = AsyncTcpClient(HOST, server.port)
                async with fourth:
                    return await fourth.read_event() is None

        assert server.run(refused)
    from streaming_server.wyoming import server as module

    monkeypatch.setattr(module.WyomingOptions, "__init__", _impatient(module.WyomingOptions.__init__))
    with home() as server:
        assert server.ask(until="error")[0].data["code"] == "session_timeout"


def _impatient(init: Callable[..., None]) -> Callable[..., None]:
    return lambda *args, **options: init(*args, **{**options, "idle_s": 0.05})


def test_fifty_clients_leave_nothing_behind() -> None:
    with home(speaking(tone(0.02))) as server:

        async def one(number: int) -> None:
            async with AsyncTcpClient(HOST, server.port) as client:
                await client.write_event(say(f"text {number}"))
                if number % 2:
                    await received(client, "audio-stop")

        async def all_of_them(_: AsyncTcpClient) -> None:
            await asyncio.gather(*(one(number) for number in range(50)))

        server.run(all_of_them)
        eventually(lambda: "speech_wyoming_connections 0.0" in _metrics(server))
        eventually(lambda: not server.live.service.streams)


def test_zeroconf_announces_the_port() -> None:
    from zeroconf import ServiceBrowser, ServiceStateChange, Zeroconf

    names: list[str] = []
    with home(wyoming_zeroconf=True) as server:
        browser, kind = Zeroconf(interfaces=[HOST]), "_wyoming._tcp.local."

        def changed(zeroconf: Zeroconf, service_type: str, name: str, state_change: ServiceStateChange) -> None:
            names.append(name)

        def is_found() -> bool:
            found = [browser.get_service_info(kind, name) for name in list(names)]
            return any(details is not None and details.port == server.port for details in found)

        try:
            ServiceBrowser(browser, kind, handlers=[changed])
            eventually(is_found)
        finally:
            browser.close()


def test_a_server_on_ipv6_is_announced_at_ipv6_addresses() -> None:
    from streaming_server.wyoming.discovery import Discovery

    async def announced(host: str) -> list[str]:
        discovery = Discovery(host, 1)
        await discovery.aclose()
        return discovery._info.parsed_addresses()

    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        pytest.skip("the machine has no IPv6")
    assert asyncio.run(announced("::1")) == ["::1"]
    addresses = asyncio.run(announced("::"))
    assert "::1" in addresses
    assert all(":" in address for address in addresses)


def test_without_the_package_the_start_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "streaming_server.wyoming.server", None)
    with pytest.raises(InvalidSetting, match=r"WYOMING_PORT needs .*scripts/install wyoming"):
        app._wyoming(Settings(wyoming_port=1), None, None)  # type: ignore[arg-type]
