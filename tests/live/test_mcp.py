"""The Model Context Protocol through the official client, over HTTP and over standard input and output."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import signal
import sys
import wave
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import httpx2
import psutil
import pytest
from mcp import Client, StdioServerParameters
from mcp.client.streamable_http import streamable_http_client

from streaming_server import app
from streaming_server.audio.decode import decode_native
from streaming_server.environment import InvalidSetting
from streaming_server.mcp import tools
from streaming_server.settings import Settings
from tests.support.fakes import FOREVER, Gate, tone
from tests.support.process import ROOT
from tests.support.recordings import made
from tests.support.scripted import SCRIPTED
from tests.support.server import LiveServer, eventually, logged, running, speaking


@pytest.fixture(scope="module")
def server() -> Iterator[LiveServer]:
    with running(speaking(tone(0.25)), mcp=True) as live:
        yield live


def called(target: Any, work: Callable[[Client], Awaitable[Any]]) -> Any:
    async def session() -> Any:
        async with asyncio.timeout(180), Client(target) as client:
            return await work(client)

    return asyncio.run(session())


def url_of(live: LiveServer) -> str:
    return f"http://127.0.0.1:{live.port}/mcp"


def call(live: LiveServer, tool: str, **arguments: Any) -> Any:
    """The result of a tool."""
    return called(url_of(live), lambda client: client.call_tool(tool, arguments))


def test_the_tools_are_described(server: LiveServer) -> None:
    tools = called(url_of(server), lambda client: client.list_tools()).tools
    described = {tool.name: tool for tool in tools}
    assert set(described) == {"speak", "list_voices", "clone_voice"}
    assert all(tool.description for tool in tools)
    speak = described["speak"].input_schema
    assert speak["required"] == ["text"]
    assert (speak["properties"]["speed"]["minimum"], speak["properties"]["speed"]["maximum"]) == (0.25, 4.0)


@pytest.mark.parametrize(
    ("audio_format", "media_type"), [("mp3", "audio/mpeg"), ("wav", "audio/wav"), ("opus", "audio/ogg")]
)
def test_speak_returns_the_url_of_a_file(
    server: LiveServer, audio_format: str, media_type: str, tmp_path: Path
) -> None:
    result = call(
        server, "speak", text="Hello [pause 1s] there.", voice="nova", audio_format=audio_format, language="de"
    )
    assert not result.is_error
    spoken = result.structured_content
    assert (spoken["voice"], spoken["media_type"]) == ("nova", media_type)
    assert spoken["duration_s"] == pytest.approx(1.5)
    assert spoken["ignored_settings"] == ["language"]
    answer = httpx.get(spoken["audio"], timeout=120)
    assert answer.headers["content-type"] == media_type
    file = tmp_path / f"a.{audio_format}"
    file.write_bytes(answer.content)
    samples, rate_hz = decode_native(file)
    assert samples.size / rate_hz == pytest.approx(1.5, abs=0.1)
    if audio_format == "wav":
        with wave.open(str(file)) as stored:
            assert stored.getnframes() == samples.size
    assert server.engine.requests[-1].voice.name == "voice_05"


def test_speak_reports_the_seconds_of_speech_so_far() -> None:
    seconds: list[float] = []

    async def reported(progress: float, total: float | None, message: str | None) -> None:
        assert (total, message) == (None, f"{progress:.0f} s of speech")
        seconds.append(progress)

    async def work(client: Client) -> Any:
        return await client.call_tool("speak", {"text": "One. Two. Three."}, progress_callback=reported)

    with running(speaking(*[tone(1.2)] * 3), mcp=True) as live:
        result = called(url_of(live), work)
    assert seconds == sorted(set(seconds))
    assert seconds[0] >= 1
    assert seconds[-1] <= result.structured_content["duration_s"] == pytest.approx(3.6)


def test_speak_reports_that_it_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tools, "WAIT_REPORT_S", 0.01)
    gate, waits, seconds = Gate(), list[float](), list[float]()

    async def reported(progress: float, total: float | None, message: str | None) -> None:
        assert total is None
        (waits if message == "waiting for the first audio" else seconds).append(progress)
        if len(waits) == 3:
            gate.open()

    async def work(client: Client) -> Any:
        return await client.call_tool("speak", {"text": "One."}, progress_callback=reported)

    with running(speaking(gate, tone(1.2)), mcp=True) as live:
        assert not called(url_of(live), work).is_error
    assert [*waits, *seconds] == sorted({*waits, *seconds})
    assert waits[-1] < 1 <= seconds[0]


def test_a_voice_is_cloned_listed_and_used(server: LiveServer, tmp_path: Path) -> None:
    recording = made(tmp_path / "a.flac").read_bytes()
    audio = base64.b64encode(recording).decode()
    cloned = call(server, "clone_voice", name="My voice", audio=audio, consent="mine", transcript="One.")
    assert cloned.structured_content["name"] == "My voice"
    assert cloned.structured_content["is_cloned"] is False
    names = [voice["name"] for voice in call(server, "list_voices").structured_content["result"]]
    assert (names[0], names[-1]) == ("alloy", "My voice")
    assert not call(server, "speak", text="Hello.", voice="My voice").is_error
    assert server.engine.requests[-1].voice.transcript == "One."
    again = call(server, "clone_voice", name="My voice", audio=audio, consent="mine")
    assert (again.is_error, "taken" in again.content[0].text) == (True, True)


@pytest.mark.parametrize(
    ("tool", "arguments", "sentence"),
    [
        ("speak", {"text": "a", "voice": "nobody"}, "unknown voice 'nobody'"),
        ("speak", {"text": "  "}, "blank"),
        ("speak", {"text": "a" * 20_001}, "at most 20000"),
        ("speak", {"text": "a", "speed": 9}, "speak: speed: Input should be less than or equal to 4"),
        ("speak", {"audio_format": "aac"}, "text: Field required; audio_format: Input should be 'mp3', 'wav', "),
        ("speak", {"text": "<speak>", "ssml": True}, "line 1"),
        ("clone_voice", {"name": "x", "audio": "!!", "consent": "c"}, "base64"),
        ("clone_voice", {"name": "x", "audio": "/etc/passwd", "consent": "c"}, "base64"),
        ("clone_voice", {"name": "x", "audio": "http://127.0.0.1/a.wav", "consent": "c"}, "REF_AUDIO_HOSTS"),
        ("clone_voice", {"name": "a,b", "audio": "AAAA", "consent": "c"}, "name"),
    ],
)
def test_an_error_is_a_sentence_for_the_model(
    server: LiveServer, tool: str, arguments: dict[str, Any], sentence: str
) -> None:
    result = call(server, tool, **arguments)
    assert result.is_error
    assert sentence in result.content[0].text
    assert "pydantic" not in result.content[0].text


def test_keys_origins_and_unknown_files(server: LiveServer) -> None:
    with running(speaking(tone(0.1)), mcp=True, api_keys=("secret",)) as live:
        assert live.post("/mcp", {}).status_code == 401
        assert live.get("/mcp/audio/x").status_code == 401

        async def listed(headers: dict[str, str]) -> int:
            http = httpx2.AsyncClient(headers=headers, timeout=180)
            async with http, Client(streamable_http_client(url_of(live), http_client=http)) as client:
                return len((await client.list_tools()).tools)

        for headers in ({"Authorization": "Bearer secret"}, {"X-API-Key": "secret"}):
            assert asyncio.run(listed(headers)) == 3
    with running(speaking(tone(0.1)), mcp=True, cors_origins=("http://mine.test",)) as live:
        refused = live.post("/mcp", {}, headers={"Origin": "http://other.test"})
        assert refused.status_code == 403
    for name in ("x", "../server.db", f"{'0' * 32}.mp3", f"{'0' * 32}.txt"):
        assert server.get(f"/mcp/audio/{name}").status_code == 404


def test_malformed_messages_break_nothing(server: LiveServer) -> None:
    headers = {"Content-Type": "application/json", "Accept": "application/json, text/event-stream"}
    for content in (b"{", b"[]", b"\xff", json.dumps({"jsonrpc": "2.0", "method": 5}).encode(), b"0" * 7_000_000):
        assert 400 <= server.client.post("/mcp", content=content, headers=headers).status_code < 500
    assert call(server, "list_voices").structured_content


def test_a_client_that_leaves_frees_the_slot_and_is_counted(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    with running(speaking(tone(0.1), FOREVER), mcp=True) as live:

        async def leave() -> None:
            async with Client(url_of(live)) as client:
                speaking_task = asyncio.create_task(client.call_tool("speak", {"text": "a"}))
                while not live.engine.running:
                    await asyncio.sleep(0.005)
                speaking_task.cancel()

        asyncio.run(leave())
        eventually(lambda: not live.engine.running)
        eventually(lambda: not live.service.streams)
        eventually(lambda: 'speech_disconnects_total{route="/mcp"} 1' in live.get("/metrics").text)
        (left,) = logged(caplog, outcome="disconnected")
        assert (left["route"], left["characters"], left["audio_s"]) == ("/mcp", 1, 0.1)


def test_standard_input_and_output(tmp_path: Path) -> None:
    """SIGINT ends the process while its input is still open."""
    recording = made(tmp_path / "mine.flac")
    environment = os.environ | {
        **SCRIPTED,
        "DATA_DIR": str(tmp_path / "data"),
        "REFERENCE_AUDIO_DIR": str(ROOT / "reference_audios"),
    }
    arguments = ["-m", "streaming_server.cli", "mcp", "--output", str(tmp_path)]

    async def work(client: Client) -> dict[str, Any]:
        cloned = await client.call_tool("clone_voice", {"name": "me", "audio": str(recording), "consent": "mine"})
        assert not cloned.is_error, cloned.content
        content = base64.b64encode(recording.read_bytes()).decode()
        again = await client.call_tool("clone_voice", {"name": "me again", "audio": content, "consent": "mine"})
        assert not again.is_error, again.content
        result = await client.call_tool("speak", {"text": "Good morning.", "voice": "me", "audio_format": "wav"})
        assert not result.is_error, result.content
        assert result.structured_content is not None
        children = psutil.Process().children()  # some may have ended, and have no arguments any more
        (process,) = (child for child in children if child.as_dict(["cmdline"], [])["cmdline"][1:] == arguments)
        process.send_signal(signal.SIGINT)

        def has_ended() -> bool:
            try:
                return process.status() == psutil.STATUS_ZOMBIE
            except psutil.NoSuchProcess:
                return True

        await asyncio.to_thread(eventually, has_ended, 60)
        return dict(result.structured_content)

    spoken = called(StdioServerParameters(command=sys.executable, args=arguments, env=environment), work)
    assert Path(spoken["audio"]).parent == tmp_path
    samples, rate_hz = decode_native(Path(spoken["audio"]))
    assert samples.size / rate_hz == pytest.approx(spoken["duration_s"], abs=0.01)
    assert spoken["duration_s"] == 0.1
    assert [path.name for path in (tmp_path / "data" / "scratch").iterdir()] == [".lock"]


def test_an_output_folder_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    """It is removed once the server runs."""
    output = tmp_path / "output"
    output.mkdir()
    environment = os.environ | {**SCRIPTED, "DATA_DIR": str(tmp_path / "data")}
    arguments = ["-m", "streaming_server.cli", "mcp", "--output", str(output)]

    async def work(client: Client) -> Any:
        await client.list_tools()
        output.rmdir()
        return await client.call_tool("speak", {"text": "Good morning."})

    result = called(StdioServerParameters(command=sys.executable, args=arguments, env=environment), work)
    assert result.is_error
    assert f"--output {output}: the audio file cannot be written: No such file or directory" in result.content[0].text


def test_it_is_off_by_default_and_names_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    with running(speaking(tone(0.1))) as live:
        assert live.post("/mcp", {}).status_code == 404
    monkeypatch.setitem(sys.modules, "streaming_server.mcp.http", None)
    with pytest.raises(InvalidSetting, match=r"MCP needs .*scripts/install mcp"):
        app._mcp(Settings(mcp=True), None, None)  # type: ignore[arg-type]
