"""Uploaded voices, consents and recordings that come with a request, through the official client where it can."""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
import resource
from collections.abc import Iterator
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import httpx
import openai
import pytest
from websockets.sync.client import connect

from streaming_server.api import references
from streaming_server.api.openai import routes
from streaming_server.audio.decode import decode_native
from tests.support.fakes import Gate, tone
from tests.support.postgres import PostgreSQL
from tests.support.recordings import made, with_index
from tests.support.server import LiveServer, eventually, running, speaking

SPEECH = "/v1/audio/speech"
VOICES = "/v1/audio/voices"
CONSENTS = "/v1/audio/voice_consents"


@pytest.fixture(scope="module")
def recording(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return made(tmp_path_factory.mktemp("recording") / "a.flac").read_bytes()


@pytest.fixture(scope="module")
def shared() -> Iterator[LiveServer]:
    with running(speaking(tone(0.1)), ref_audio_hosts=("allowed.test", "localhost")) as live:
        yield live


@pytest.fixture
def server(shared: LiveServer) -> Iterator[LiveServer]:
    """Without voices, consents and requests of an earlier test."""
    yield shared
    for voice in shared.get(VOICES).json()["uploaded_voices"]:
        shared.client.delete(f"{VOICES}/{voice['id']}").raise_for_status()
    for consent in shared.get(CONSENTS).json()["data"]:
        shared.client.delete(f"{CONSENTS}/{consent['id']}").raise_for_status()
    shared.engine.requests.clear()


def client_of(live: LiveServer) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"http://127.0.0.1:{live.port}/v1", api_key="none", max_retries=0)


def upload(live: LiveServer, recording: bytes, **fields: str) -> httpx.Response:
    form = {"name": "narrator", "consent": "in writing", **fields}
    return live.client.post(VOICES, data=form, files={"audio_sample": ("a.flac", recording)})


def spoken(live: LiveServer, **fields: Any) -> httpx.Response:
    return live.post(SPEECH, {"model": "m", "input": "Hello.", **fields})


def test_the_official_client_adds_a_voice_speaks_with_it_and_deletes_it(server: LiveServer, recording: bytes) -> None:
    with client_of(server) as client:
        consent = client.audio.voice_consents.create(name="Jane", language="en-US", recording=("c.flac", recording))
        voice = client.audio.voices.create(name="Narrator 7", audio_sample=("a.flac", recording), consent=consent.id)
        assert (voice.object, voice.type, voice.name) == ("audio.voice", "audio_sample", "Narrator 7")
        paths = set()
        for name in (voice.id, voice.name, {"id": voice.id}):
            assert client.audio.speech.create(model="m", voice=name, input="Hello.").content
            used = server.engine.requests[-1].voice
            assert used.path.read_bytes() == recording
            paths.add(used.path)
        assert len(paths) == 1
        deleted = client.audio.voices.delete(voice.id)
        assert (deleted.id, deleted.deleted, deleted.object) == (voice.id, True, "audio.voice.deleted")
        with pytest.raises(openai.BadRequestError, match="unknown voice"):
            client.audio.speech.create(model="m", voice=voice.id, input="Hello.")
        with pytest.raises(openai.NotFoundError):
            client.audio.voices.delete(voice.id)
        assert client.audio.voice_consents.retrieve(consent.id).name == "Jane"


@pytest.mark.parametrize(
    ("options", "media_type"),
    [("-c:a libopus -f ogg", "audio/ogg"), ("-c:a libopus -f webm", "audio/webm"), ("-f adts", "audio/aac")],
)
def test_what_browsers_record_becomes_a_voice(
    server: LiveServer, tmp_path: Path, options: str, media_type: str
) -> None:
    content = made(tmp_path / "a", *options.split(), rate_hz=48000).read_bytes()
    created = upload(server, content).json()
    assert created["voice"]["mime_type"] == media_type
    assert spoken(server, voice="narrator").status_code == 200
    used = server.engine.requests[-1].voice.path
    assert decode_native(used)[0].size / 48000 == pytest.approx(1.0, abs=0.05)


def test_consents_are_listed_renamed_and_deleted(server: LiveServer, recording: bytes) -> None:
    with client_of(server) as client:
        consents = client.audio.voice_consents
        made_ids = [
            consents.create(name=f"c{number}", language="de", recording=("c.flac", recording)).id for number in range(3)
        ]
        assert [consent.id for consent in consents.list(limit=2)] == made_ids[::-1]  # both pages
        assert [consent.id for consent in consents.list(after=made_ids[1]).data] == made_ids[:1]
        assert consents.update(made_ids[0], name="other").name == "other"
        assert consents.delete(made_ids[0]).deleted
        for refused in (consents.retrieve, consents.delete):
            with pytest.raises(openai.NotFoundError, match="consent"):
                refused(made_ids[0])
        with pytest.raises(openai.BadRequestError, match="limit"):
            consents.list(limit=101)


def test_an_id_that_postgresql_does_not_accept_is_unknown(postgresql: PostgreSQL) -> None:
    with running(speaking(tone(0.1)), database_url=postgresql.new_database()) as live:
        asked = [(method, f"{CONSENTS}/%00", {"name": "a"}) for method in ("GET", "POST", "DELETE")]
        for method, path, body in [*asked, ("GET", f"{CONSENTS}?after=%00", None), ("DELETE", f"{VOICES}/%00", None)]:
            answer = live.client.request(method, path, json=body)
            assert (method, answer.status_code) == (method, 404), answer.text


def test_uploads_are_listed_in_both_forms(server: LiveServer, recording: bytes) -> None:
    created = upload(server, recording, ref_text="One two.", speaker_description="calm").json()
    stored = {
        "id": created["id"],
        "name": "narrator",
        "consent": "in writing",
        "created_at": created["created_at"],
        "mime_type": "audio/flac",
        "file_size": len(recording),
        "ref_text": "One two.",
        "speaker_description": "calm",
    }
    assert created["success"] is True
    assert created["voice"] == stored
    listed = server.get(VOICES).json()
    assert listed["voices"][-1] == {"id": created["id"], "name": "narrator", "language": "multi"}
    assert listed["uploaded_voices"] == [stored]
    legacy = server.get(VOICES, params={"legacy": "true"}).json()["voices"]
    assert (legacy[0], legacy[-1]) == ("alloy", "narrator")
    cloned = server.get(f"/v1/voices/{created['id']}").json()
    assert (cloned["voice_id"], cloned["category"]) == ("narrator", "cloned")
    spoken(server, voice="narrator")
    assert server.engine.requests[-1].voice.transcript == "One two."


@pytest.mark.parametrize("name", ["a/b", "q?x", "#1", "50%41", "..", "My voice"])
def test_a_name_that_no_url_holds_is_listed_by_its_id(server: LiveServer, recording: bytes, name: str) -> None:
    created = upload(server, recording, name=name).json()
    cloned = server.get("/v1/voices").json()["voices"][-1]
    assert (cloned["voice_id"], cloned["name"], cloned["category"]) == (created["id"], name, "cloned")
    assert server.get(f"/v1/voices/{cloned['voice_id']}").json() == cloned
    assert server.get("/v1/voices/nobody").json()["detail"]["message"].endswith(f", {name}")
    assert server.post(f"/v1/text-to-speech/{cloned['voice_id']}", {"text": "Hello."}).status_code == 200
    assert spoken(server, voice=name).status_code == 200


def test_marin_and_cedar_are_voices_after_the_eleven(server: LiveServer) -> None:
    names = [voice["id"] for voice in server.get(VOICES).json()["voices"]]
    assert names[10:13] == ["verse", "marin", "cedar"]
    for name, file in (("marin", "voice_09"), ("cedar", "voice_07")):
        assert spoken(server, voice=name).status_code == 200
        assert server.engine.requests[-1].voice.name == file


def test_an_upload_speaks_in_every_dialect_and_outlives_a_restart_and_its_expiry(
    recording: bytes, tmp_path: Path
) -> None:
    settings: dict[str, Any] = {"data_dir": tmp_path, "upload_keep_s": 1}
    with running(speaking(tone(0.1)), **settings) as live:
        assert upload(live, recording).status_code == 200
    with running(speaking(tone(0.1)), **settings) as live:
        eventually(lambda: _is_expired(live, recording))
        bodies = {
            "/generate": {"text": "Hello.", "ref_audio": "narrator"},
            "/tts": {"text": "Hello.", "character": "narrator"},
            "/api/v1/tts/sync": {"text": "Hello.", "prompt_audio_id": "narrator"},
        }
        for path, body in bodies.items():
            assert live.post(path, body).status_code == 200, path
            assert live.engine.requests[-1].voice.path.read_bytes() == recording
        spoken_as = live.post("/v1/text-to-speech/narrator", {"text": "Hello."})
        assert spoken_as.status_code == 200
        assert live.engine.requests[-1].voice.path.read_bytes() == recording
        cloned = [voice["name"] for voice in live.get("/v1/voices").json()["voices"] if voice["category"] == "cloned"]
        assert cloned == ["narrator"]
        assert live.get("/v1/voices/narrator").json()["category"] == "cloned"
        task = live.post("/api/v1/tts", bodies["/api/v1/tts/sync"]).json()["task_id"]
        eventually(lambda: live.get(f"/api/v1/task/{task}").json()["status"] == "completed")


def _is_expired(live: LiveServer, recording: bytes) -> bool:
    """Whether the time of the upload is over, so that the named voice alone keeps it."""
    found = live.get(f"/api/v1/file/{hashlib.sha256(recording).hexdigest()}").json()
    return datetime.fromisoformat(found["expires_at"]) < datetime.now(UTC)


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"name": "nova"}, "taken"),
        ({"name": "marin"}, "taken"),
        ({"name": "voice_01"}, "taken"),
        ({"name": "voice_01.wav"}, "taken"),
        ({"name": "f" * 64}, "taken"),
        ({"name": "a,b"}, "name"),
        ({"name": "  "}, "name"),
        ({"name": "n" * 101}, "name"),
        ({"consent": " "}, "consent"),
        ({"consent": "cons_none"}, "does not exist"),
        ({"consent": "a\0"}, "consent has U+0000 at position 1"),
        ({"ref_text": "a\0"}, "ref_text has U+0000 at position 1"),
        ({"speaker_description": "a\x1b"}, "speaker_description has U+001B at position 1"),
        ({"type": "prompt"}, "type"),
    ],
)
def test_a_voice_that_cannot_be_added_is_refused(
    server: LiveServer, recording: bytes, fields: dict[str, str], sentence: str
) -> None:
    refused = upload(server, recording, **fields)
    assert refused.status_code == 400
    assert sentence in refused.json()["error"]["message"]
    assert server.get(VOICES).json()["uploaded_voices"] == []


def test_other_refusals_of_uploads(server: LiveServer, recording: bytes) -> None:
    assert upload(server, recording).status_code == 200
    again = upload(server, recording).json()["error"]
    assert (again["param"], "taken" in again["message"]) == ("name", True)
    assert upload(server, b"no recording", name="b").status_code == 400
    missing = server.client.post(VOICES, files={"name": (None, "c"), "consent": (None, "d")})
    assert missing.json()["error"]["param"] == "audio_sample"
    large = upload(server, bytes(10 * 1024 * 1024 + 1), name="d")
    assert (large.status_code, "10 MiB" in large.text) == (413, True)
    for name in ("nova", "voice_01"):
        shipped = server.client.delete(f"{VOICES}/{name}")
        assert (shipped.status_code, "not an upload" in shipped.text) == (400, True)
    gone = server.client.delete(f"{VOICES}/nobody")
    assert (gone.status_code, gone.json()["success"]) == (404, False)


@pytest.mark.parametrize("prefix", ["", "data:audio/flac;base64,"])
def test_a_recording_comes_with_the_request_and_is_gone_after_it(
    server: LiveServer, recording: bytes, prefix: str
) -> None:
    read = []

    async def look() -> None:
        read.append(server.engine.requests[-1].voice.path.read_bytes())

    server.engine.script = lambda _: [look, tone(0.1)]
    source = prefix + base64.b64encode(recording).decode()
    answer = spoken(server, ref_audio=source, ref_text="One.", seed=4, language="en")
    assert answer.status_code == 200
    assert read == [recording]
    request = server.engine.requests[-1]
    assert (request.voice.transcript, request.generation.seed) == ("One.", 4)
    eventually(lambda: not request.voice.path.exists())
    assert "x-stream-id" not in answer.headers


@pytest.mark.parametrize(
    ("source", "sentence"),
    [
        ("!!!", "base64"),
        (base64.b64encode(b"no recording").decode(), "not a recording in wav"),
        ("file:///etc/passwd", "not file:"),
        ("ftp://allowed.test/a.wav", "not ftp:"),
        ("data:audio/wav,abc", "not data:"),
        ("http://other.test/a.wav", "REF_AUDIO_HOSTS"),
        ("http://localhost:1/a.wav", "not public"),
        ("http://[::1]/a.wav", "REF_AUDIO_HOSTS"),
        ("http://allowed.test@127.0.0.1/a.wav", "REF_AUDIO_HOSTS"),
    ],
)
def test_a_recording_that_cannot_be_used_names_the_field(server: LiveServer, source: str, sentence: str) -> None:
    refused = spoken(server, ref_audio=source)
    assert refused.status_code == 400
    assert refused.json()["error"]["param"] == "ref_audio"
    assert sentence in refused.json()["error"]["message"]
    assert not server.engine.requests


class _Files(BaseHTTPRequestHandler):
    content = b""

    def do_GET(self) -> None:
        is_there = self.path == "/a.flac"
        is_compressed = "gzip" in self.headers.get("Accept-Encoding", "")
        self.send_response(200 if is_there else 302)
        self.send_header("Location", "/a.flac")
        if is_compressed:
            self.send_header("Content-Encoding", "gzip")
        self.end_headers()
        content = gzip.compress(self.content) if is_compressed else self.content
        self.wfile.write(content if is_there else b"")

    def log_message(self, *_: object) -> None:
        pass


def test_a_recording_is_fetched_from_an_allowed_host(recording: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(references.References.__init__, "__defaults__", (lambda _: True,))
    handler = type("_Handler", (_Files,), {"content": recording})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as files:
        Thread(target=files.serve_forever).start()
        try:
            with running(speaking(tone(0.1)), ref_audio_hosts=("localhost",)) as live:
                url = f"http://localhost:{files.server_port}"
                assert spoken(live, ref_audio=f"{url}/a.flac").status_code == 200
                moved = spoken(live, ref_audio=f"{url}/elsewhere").json()["error"]["message"]
                assert "status 302" in moved
        finally:
            files.shutdown()


def test_events_begin_while_the_request_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(routes, "QUEUE_KEEP_ALIVE_S", 0.02)
    gate = Gate()
    with running(speaking(gate, tone(0.1))) as live:
        body = {"model": "m", "input": "a", "stream_format": "sse"}
        with live.client.stream("POST", SPEECH, json=body) as response:
            lines = response.iter_lines()
            assert response.status_code == 200
            assert [next(lines) for _ in range(3)] == [": keep-alive", "", ": keep-alive"]
            gate.open()
            events = [json.loads(line[6:]) for line in lines if line.startswith("data: ")]
    assert [event["type"] for event in events][-1] == "speech.audio.done"


def test_a_failure_after_the_headers_is_an_event_and_cuts_the_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(routes, "QUEUE_KEEP_ALIVE_S", 0.02)
    gate = Gate()
    received: list[str] = []

    def read(response: httpx.Response) -> None:
        for line in response.iter_lines():
            received.append(line)
            gate.open()

    with running(speaking(gate, RuntimeError("broken"))) as live:
        body = {"model": "m", "input": "a", "stream_format": "sse"}
        with live.client.stream("POST", SPEECH, json=body) as response, pytest.raises(httpx.RemoteProtocolError):
            read(response)
    (event,) = (json.loads(line[6:]) for line in received if line.startswith("data: "))
    assert event["type"] == "speech.audio.error"
    assert event["error"]["type"] == "server_error"


def test_a_session_speaks_in_the_voice_of_its_recording(server: LiveServer, recording: bytes) -> None:
    config = {"type": "session.config", "ref_audio": base64.b64encode(recording).decode(), "ref_text": "One."}
    url = f"ws://127.0.0.1:{server.port}/v1/audio/speech/stream"
    with connect(url, open_timeout=180, close_timeout=180, ping_interval=None) as session:
        for message in (config, {"type": "input.text", "text": "Hello."}, {"type": "input.done"}):
            session.send(json.dumps(message))
        while "session.done" not in str(session.recv(timeout=180)):
            pass
        request = server.engine.requests[-1]
        assert request.voice.transcript == "One."
        assert request.voice.path.is_file()
    eventually(lambda: not request.voice.path.exists())


def test_ssml_is_read_where_it_is_declared(server: LiveServer) -> None:
    markup = "<speak>One<break time='500ms'/>two <voice name='nova'>three</voice></speak>"
    plain = len(spoken(server, input="One", response_format="pcm").content)
    server.engine.requests.clear()
    answer = spoken(server, input=markup, ssml=True, response_format="pcm")
    assert len(answer.content) == 3 * plain + 24000
    assert [request.text for request in server.engine.requests] == ["One", "two ", "three"]
    assert [request.voice.name for request in server.engine.requests] == ["voice_01", "voice_01", "voice_05"]
    server.engine.requests.clear()
    spoken(server, input=markup)
    assert server.engine.requests[0].text == markup


def test_events_have_the_times_of_words_and_marks(server: LiveServer) -> None:
    def times(**fields: Any) -> list[dict[str, Any]]:
        response = spoken(server, stream_format="sse", word_timestamps=True, language="de", **fields)
        assert response.headers["x-ignored-settings"] == "language"
        events = [json.loads(line[6:]) for line in response.text.splitlines() if line.startswith("data: ")]
        assert events[-1]["usage"]["input_tokens"] == len(fields["input"].removeprefix("<speak>").split("<")[0])
        return [event for event in events if event["type"] == "speech.audio.timestamps"]

    first, second = times(input="One two. Three")
    assert [word["word"] for word in (*first["words"], *second["words"])] == ["One", "two.", "Three"]
    assert first["words"][0]["start"] == 0
    assert first["words"][1]["end"] < second["words"][0]["start"]
    assert (first["alignment_precision"], first["marks"]) == ("segment", [])
    (marked,) = times(input="<speak>One<mark name='here'/></speak>", ssml=True)
    assert marked["marks"] == [{"name": "here", "time": marked["words"][0]["end"]}]
    refused = spoken(server, input="a", word_timestamps=True)
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "word_timestamps")


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"input": "<speak>\n<break time='x'/></speak>", "ssml": True}, "line 2, column 1: time"),
        ({"input": "<speak><voice name='nobody'>a</voice></speak>", "ssml": True}, "nobody"),
        ({"input": "<speak> </speak>", "ssml": True}, "blank"),
        ({"input": "<speak>" + "a" * 4097 + "</speak>", "ssml": True}, "at most 4096"),
        ({"input": "a [pause 60s] b"}, "pause of 60 s"),
    ],
)
def test_markup_that_is_not_valid_is_a_400(server: LiveServer, fields: dict[str, Any], sentence: str) -> None:
    refused = spoken(server, **fields)
    assert refused.status_code == 400
    assert sentence in refused.json()["error"]["message"]
    assert refused.json()["error"]["param"] == "input"


def test_an_index_of_a_gigabyte_in_a_small_file_costs_the_server_nothing(server: LiveServer, tmp_path: Path) -> None:
    small = with_index(made(tmp_path / "a.m4a"), 30_000_000, b"soun").read_bytes()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    refusals = (
        upload(server, small),
        server.client.post("/api/v1/upload/audio", files={"file": ("a.m4a", small)}),
        spoken(server, ref_audio=base64.b64encode(small).decode()),
        server.client.post("/generate-upload", data={"text": "a"}, files={"ref_audio_file": ("a.m4a", small)}),
    )
    assert [refused.status_code for refused in refusals] == [400, 400, 400, 422]
    assert all("limits on memory and time" in refused.text for refused in refusals)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000
    assert server.engine.requests == []
