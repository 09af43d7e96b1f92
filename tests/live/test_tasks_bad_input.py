"""Invalid uploads and names get a clear 4xx and leave nothing behind."""

from __future__ import annotations

import http.client
import io
import json
import socket
import threading
import wave
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import requests

from tests.support.fakes import FakeEngine
from tests.support.postgres import PostgreSQL, files_below
from tests.support.recordings import SUFFIXES, cut, made
from tests.support.server import RECORDINGS, LiveServer, eventually, running

VOICE = (RECORDINGS / "voice_01.wav").read_bytes()
SECRET = "the-secret-of-another-folder"
TRAVERSALS = [
    *("..", ".", "../..", "../server.db", "../../secret.wav", "..\\secret.wav", "....//....//secret.wav"),
    *(
        "/etc/passwd",
        "//etc/passwd",
        "../../../../../../../../etc/passwd",
        "file:///etc/passwd",
        "C:\\Windows\\win.ini",
    ),
    *("%2e%2e", "%2e%2e%2fsecret.wav", "..%2f..%2fsecret.wav", "..%252f..%252fsecret.wav", "%252e%252e%252f"),
    *("..%5c..%5csecret.wav", "..%c0%af..%c0%afsecret.wav", "%c0%ae%c0%ae/secret.wav", "..%ef%bc%8fsecret.wav"),
    *("secret.wav%00", "%00", "%00.wav", "..;/secret.wav", "..%3b/secret.wav", "%0a", "%0d%0aX-Injected:%20yes"),
    *("~", "~root", "$HOME", "${HOME}", "`id`", "$(id)", "|id", "*", "?", "%25", "%", "%zz", "'", "' OR 1=1 --"),
    *("uploads/", "audio/", "../uploads/x", "scratch", ".lock", "server.db", "server.db-wal", "voice_01.wav/.."),
    *("0" * 63, "0" * 65, "0" * 31, "0" * 33, "A" * 64, "g" * 64, "０" * 64, "0" * 4000, "-1", "1e9", "null", "NaN"),
    *("0" * 64 + "%0a", "0" * 32 + "%00", "../audio/" + "0" * 32, "0" * 32 + ".wav", "[]", "{}", "😀"),
]
PATHS = [
    ("GET", "/api/v1/task/{}"),
    ("DELETE", "/api/v1/task/{}"),
    ("GET", "/api/v1/audio/{}"),
    ("GET", "/api/v1/file/{}"),
    ("GET", "/streams/{}"),
    ("DELETE", "/streams/{}"),
    ("GET", "/download_reference_audio/{}"),
    ("GET", "/static/{}"),
]
NAMES: list[tuple[str, dict[str, Any], str]] = [
    ("/api/v1/tts", {"text": "a"}, "prompt_audio_id"),
    ("/api/v1/tts/sync", {"text": "a"}, "prompt_audio_id"),
    *(
        ("/api/v1/tts", {"text": "a", "prompt_audio_id": "voice_01", "emo_control_method": 1}, name)
        for name in ("emo_audio_id", "emo_audio_path")
    ),
    ("/v1/audio/speech", {"model": "tts-1", "input": "a"}, "voice"),
    ("/tts_url", {"text": "a"}, "spk_audio_path"),
    ("/tts_url", {"text": "a", "spk_audio_path": "voice_01.wav", "emo_control_method": 1}, "emo_ref_path"),
    ("/tts", {"text": "a"}, "character"),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("above") / "data"
    (folder.parent / "secret.wav").write_bytes(VOICE + SECRET.encode())
    return folder


@pytest.fixture(scope="module")
def live(folder: Path) -> Iterator[LiveServer]:
    with running(FakeEngine(), data_dir=folder, upload_max_mb=2, upload_max_s=60.0) as server:
        yield server


@pytest.fixture(autouse=True)
def unharmed(live: LiveServer, folder: Path) -> Iterator[None]:
    yield
    eventually(lambda: files_below(folder) == [])
    assert live.get("/api/v1/tasks").json()["total"] == 0
    assert not live.engine.requests


def raw(live: LiveServer, method: str, path: str, body: bytes = b"", **headers: str) -> tuple[int, bytes]:
    """A request whose path no client has tidied."""
    with socket.create_connection(("127.0.0.1", live.port), timeout=120) as connection:
        lines = [f"{method} {path} HTTP/1.1", "Host: x", "Connection: close", f"Content-Length: {len(body)}"]
        lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
        connection.sendall("\r\n".join([*lines, "", ""]).encode() + body)
        answer = http.client.HTTPResponse(connection, method=method)
        answer.begin()
        return answer.status, answer.read()


def refused(answer: requests.Response | tuple[int, bytes], status: int, *words: str) -> str:
    code, content = answer if isinstance(answer, tuple) else (answer.status_code, answer.content)
    assert code == status, content
    body = json.loads(content)
    assert set(body) == {"success", "message"}
    assert body["success"] is False
    message: str = body["message"]
    for word in words:
        assert word in message
    return message


def upload(live: LiveServer, content: bytes, name: str = "voice.wav", field: str = "file") -> requests.Response:
    url = f"http://127.0.0.1:{live.port}/api/v1/upload/audio"
    return requests.post(url, files={field: (name, content)}, timeout=180)


@pytest.mark.parametrize(("method", "path"), PATHS)
def test_traversal_in_a_path(live: LiveServer, folder: Path, method: str, path: str) -> None:
    for payload in TRAVERSALS:
        for sent in {payload, "".join(f"%{byte:02x}" for byte in payload.encode())}:
            target = path.format(sent)
            if not target.isascii() or set(target) & set(" \\`{}|'\""):
                continue  # no request line can hold it as it stands; the encoded form is tried
            if payload.split("%")[0].isdecimal() and "reference_audio" in path:
                continue  # an index, however many zeros it begins with
            status, content = raw(live, method, target)
            assert 400 <= status < 500, (target, status, content)
            assert SECRET.encode() not in content
            assert str(folder).encode() not in content
            assert b"root:" not in content
            if path.startswith("/api/v1") and content:
                assert json.loads(content)["success"] is False


def test_names_that_postgresql_cannot_hold(postgresql: PostgreSQL) -> None:
    with running(FakeEngine(), database_url=postgresql.new_database()) as live:
        for method, path in PATHS[:4]:
            for name in ("%00", "a%00b", "%ff", "%ed%a0%80", "0" * 31 + "%00", "0" * 5000):
                assert raw(live, method, path.format(name))[0] in {400, 404}
        name = 'form-data; name="file"; filename="\xff\xfe声.wav"'
        body = multipart(VOICE, name)
        assert raw(live, "POST", "/api/v1/upload/audio", body, Content_Type="multipart/form-data; boundary=b")[0] == 200


@pytest.mark.parametrize(("path", "body", "name"), NAMES)
def test_traversal_in_a_body(live: LiveServer, folder: Path, path: str, body: dict[str, Any], name: str) -> None:
    for payload in [*TRAVERSALS, str(folder.parent / "secret.wav"), str(folder), "\0", "a\0b", "\ud800", "", " "]:
        answer = live.client.post(
            path, content=json.dumps({**body, name: payload}), headers={"Content-Type": "application/json"}
        )
        assert 400 <= answer.status_code < 500, (payload, answer.text)
        assert "root:" not in answer.text


@pytest.mark.parametrize(
    "file_id", ["0", "0" * 63, "0" * 65, "A" * 64, "g" * 64, "0" * 32, "0" * 64 + ".wav"], ids=lambda value: value[:5]
)
def test_an_id_that_is_none_is_400_and_says_what_one_is(live: LiveServer, file_id: str) -> None:
    refused(raw(live, "GET", f"/api/v1/file/{file_id}"), 400, "64", "SHA-256")


@pytest.mark.parametrize("raw_text", ["\\u0000", "\\ud800", "ok\\u0007"])
def test_an_emotion_that_cannot_be_read(live: LiveServer, raw_text: str) -> None:
    body = f'{{"text": "a", "prompt_audio_id": "voice_01", "emo_control_method": 3, "emo_text": "{raw_text}"}}'
    for path in ("/api/v1/tts", "/api/v1/tts/sync"):
        refused(raw(live, "POST", path, body.encode(), Content_Type="application/json"), 400, "emo_text")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *(("text", value) for value in (None, "", "  ", 3, "a\0", "x" * 20_001)),
        *(("prompt_audio_id", value) for value in (None, 3, "nobody")),
        *(("emo_control_method", value) for value in (-1, 4, "x", 1.5, None)),
        *(("emo_weight", value) for value in (-0.1, 1.1, "x", None)),
        *(("emo_vector", value) for value in ([0.1] * 7, [0.1] * 9, [1.1] * 8, [-0.1] * 8, ["x"] * 8, "x")),
        *(("emo_random", value) for value in ("x", 2, None)),
        *(("max_text_tokens_per_segment", value) for value in (0, -1, 1.5, None)),
        *(("top_p", value) for value in (-0.1, 1.1)),
        *(("temperature", value) for value in (0, -1)),
        *(("num_beams", value) for value in (0, 11)),
        *(("max_mel_tokens", value) for value in (0, 801)),
    ],
)
def test_a_field_out_of_its_range(live: LiveServer, field: str, value: object) -> None:
    body = {"text": "a", "prompt_audio_id": "voice_01", field: value}
    for path in ("/api/v1/tts", "/api/v1/tts/sync"):
        answer = live.post(path, body)
        message = refused((answer.status_code, answer.content), 400)
        assert field in message


@pytest.mark.parametrize("field", ["text", "prompt_audio_id"])
def test_a_field_that_is_missing(live: LiveServer, field: str) -> None:
    body = {"text": "a", "prompt_audio_id": "voice_01"}
    del body[field]
    answer = live.post("/api/v1/tts", body)
    refused((answer.status_code, answer.content), 400, field)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"null", b"\xff"])
def test_a_body_that_is_no_object(live: LiveServer, content: bytes) -> None:
    refused(raw(live, "POST", "/api/v1/tts", content, Content_Type="application/json"), 400)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_an_empty_file(live: LiveServer, suffix: str) -> None:
    refused(upload(live, b"", f"a.{suffix}"), 400, "empty")


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("share", [0.02, 0.5, 0.97])
def test_a_truncated_file(live: LiveServer, suffix: str, share: float, tmp_path: Path) -> None:
    content = cut(made(tmp_path / f"a.{suffix}", seconds=4.0), share).read_bytes()
    refused(upload(live, content, f"a.{suffix}"), 400)


@pytest.mark.parametrize("name", ["a.txt", "a", "wav", ".wav.", "a.wav.exe", "a.ogg", "a.wav ", "", "x" * 252 + ".wav"])
def test_a_name_that_does_not_end_as_it_must(live: LiveServer, name: str) -> None:
    refused(upload(live, VOICE, name), 400, "file")


@pytest.mark.parametrize("escaped", ["a%00.wav", "a\\x01.wav", "\x07.wav"])
def test_a_name_with_control_characters(live: LiveServer, escaped: str) -> None:
    name = escaped.replace("\\x01", "\x01").replace("%00", "\0")
    body = multipart(VOICE, f'form-data; name="file"; filename="{name}"')
    refused(raw(live, "POST", "/api/v1/upload/audio", body, Content_Type="multipart/form-data; boundary=b"), 400)


@pytest.mark.parametrize("name", ["a.wav", "a.mp3", "a.m4a", "a.flac"])
@pytest.mark.parametrize("kind", ["text", "png", "ogg", "zip", "zeros", "playlist", "script"])
def test_a_name_that_lies(live: LiveServer, name: str, kind: str, folder: Path, tmp_path: Path) -> None:
    secret = folder.parent / "secret.wav"
    contents = {
        "text": b"no sound " * 1000,
        "png": made(tmp_path / "a.png", "-frames:v", "1", source="color=red", rate_hz=1).read_bytes(),
        "ogg": made(tmp_path / "a.ogg", "-c:a", "libopus", rate_hz=48000).read_bytes(),
        "zip": b"PK\x03\x04" + bytes(1000),
        "zeros": bytes(100_000),
        "playlist": f"#EXTM3U\n#EXTINF:1,\nfile://{secret}\n#EXT-X-ENDLIST\n".encode(),
        "script": f"ffconcat version 1.0\nfile '{secret}'\n".encode(),
    }
    refused(upload(live, contents[kind], name), 400, "not a recording in wav, mp3, m4a or flac")


def test_a_video(live: LiveServer, tmp_path: Path) -> None:
    picture = ["-f", "lavfi", "-i", "testsrc=d=1:s=64x64:r=5"]
    content = made(tmp_path / "a.mp4", *picture).read_bytes()
    refused(upload(live, content, "a.m4a"), 400, "video")


@pytest.mark.parametrize("suffix", ["flac", "mp3", "m4a"])
def test_a_silence_that_expands(live: LiveServer, suffix: str, tmp_path: Path) -> None:
    content = made(tmp_path / f"a.{suffix}", "-b:a", "8k", seconds=1200, source="anullsrc", rate_hz=8000).read_bytes()
    assert len(content) < 2**21
    refused(upload(live, content, f"a.{suffix}"), 400, "longer than 60 s")


def test_a_hundred_megabytes(live: LiveServer) -> None:
    refused(upload(live, VOICE + bytes(100_000_000)), 413, "2 MiB")


def test_a_hundred_megabytes_without_a_length(live: LiveServer, folder: Path) -> None:
    """The server stops reading soon after the limit, and never holds more than that on its disk."""
    sent = 0

    def pieces() -> Iterator[bytes]:
        nonlocal sent
        head = multipart(b"", 'form-data; name="file"; filename="a.wav"', end=False)
        yield head + VOICE[:44]
        for _ in range(1600):
            sent += 65536
            yield bytes(65536)
            if sent % 2**23 == 0:
                on_disk = 0
                for name in files_below(folder):
                    with suppress(FileNotFoundError):  # the server deletes it once it refuses the upload
                        on_disk += (folder / name).stat().st_size
                assert on_disk <= 3 * 2**20

    url = f"http://127.0.0.1:{live.port}/api/v1/upload/audio"
    headers = {"Content-Type": "multipart/form-data; boundary=b"}
    refused(requests.post(url, data=pieces(), headers=headers, timeout=180), 413, "2 MiB")


def test_who_asks_first_is_told_before_the_file_is_sent(live: LiveServer) -> None:
    with socket.create_connection(("127.0.0.1", live.port), timeout=120) as connection:
        connection.sendall(
            b"POST /api/v1/upload/audio HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 100000000\r\n"
            b"Content-Type: multipart/form-data; boundary=b\r\n\r\n"
        )
        assert connection.recv(1000).startswith(b"HTTP/1.1 413 ")


def test_exactly_at_the_limit_and_a_byte_more(live: LiveServer, folder: Path) -> None:
    content = silent_wav(2**21)
    answer = upload(live, content)
    assert answer.status_code == 200, answer.text
    (folder / "uploads" / answer.json()["file_id"]).unlink()
    refused(upload(live, content + b"\0"), 413)


def silent_wav(size: int) -> bytes:
    """So many bytes in all."""
    out = io.BytesIO()
    with wave.open(out, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(24000)
        file.writeframes(bytes(size - 44))
    return out.getvalue()


def multipart(content: bytes, disposition: str, *, end: bool = True) -> bytes:
    head = f"--b\r\nContent-Disposition: {disposition}\r\n\r\n".encode()
    return head + content + (b"\r\n--b--\r\n" if end else b"")


WHOLE = multipart(VOICE, 'form-data; name="file"; filename="a.wav"')


@pytest.mark.parametrize(
    ("body", "content_type", "word"),
    [
        (b"--b--\r\n", "multipart/form-data; boundary=b", "file"),
        (b"", "multipart/form-data; boundary=b", ""),
        (multipart(VOICE, 'form-data; name="file"'), "multipart/form-data; boundary=b", "file is required"),
        (multipart(VOICE, 'form-data; name="audio"; filename="a.wav"'), "multipart/form-data; boundary=b", "file"),
        (multipart(VOICE, "form-data"), "multipart/form-data; boundary=b", "file"),
        (multipart(VOICE, "\xff\xfe;;;==="), "multipart/form-data; boundary=b", "file"),
        (WHOLE, "multipart/form-data; boundary=other", ""),
        (WHOLE, "multipart/form-data; boundary=" + "b" * 300, ""),
        (WHOLE, "multipart/form-data", "boundary"),
        (WHOLE, "multipart/mixed; boundary=b", "multipart/form-data"),
        (VOICE, "audio/wav", "multipart/form-data"),
        (b'{"file": "a"}', "application/json", "multipart/form-data"),
        (b"file=a", "application/x-www-form-urlencoded", "multipart/form-data"),
        (WHOLE[:-8], "multipart/form-data; boundary=b", "last boundary"),
        (WHOLE[:-300], "multipart/form-data; boundary=b", "last boundary"),
        (WHOLE[:60], "multipart/form-data; boundary=b", ""),
        (b"--b\r\n" + b"a" * 100_000, "multipart/form-data; boundary=b", ""),
        (b"--b\r\n" + b"A: b\r\n" * 10_000, "multipart/form-data; boundary=b", ""),
        (bytes(10_000), "multipart/form-data; boundary=b", ""),
    ],
    ids=range(19),
)
def test_a_body_that_is_broken(live: LiveServer, body: bytes, content_type: str, word: str) -> None:
    refused(raw(live, "POST", "/api/v1/upload/audio", body, Content_Type=content_type), 400, word)


@pytest.mark.parametrize("share", [0.001, 0.5, 0.999])
@pytest.mark.parametrize("abruptly", [True, False])
def test_a_connection_that_is_cut(live: LiveServer, folder: Path, share: float, abruptly: bool) -> None:
    content = multipart(bytes(1_500_000), 'form-data; name="file"; filename="a.wav"')
    with socket.create_connection(("127.0.0.1", live.port), timeout=120) as connection:
        head = "POST /api/v1/upload/audio HTTP/1.1\r\nHost: x\r\nContent-Type: multipart/form-data; boundary=b\r\n"
        connection.sendall(f"{head}Content-Length: {len(content)}\r\n\r\n".encode())
        connection.sendall(content[: int(len(content) * share)])
        if share > 0.1:
            eventually(lambda: files_below(folder))
        if abruptly:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    eventually(lambda: files_below(folder) == [])


def test_the_same_content_by_two_at_once(tmp_path: Path) -> None:
    with running(FakeEngine(), data_dir=tmp_path) as live:
        answers: list[requests.Response] = []
        for round_number in range(4):
            content = made(tmp_path.parent / "a.wav", source=f"sine={300 + round_number}").read_bytes()
            threads = [threading.Thread(target=lambda: answers.append(upload(live, content))) for _ in range(4)]  # noqa: B023
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            told = [answer.json() for answer in answers[-4:]]
            assert [one["success"] for one in told] == [True] * 4
            assert sorted(one["is_duplicate"] for one in told) == [False, True, True, True]
            assert len({one["file_id"] for one in told}) == 1
            assert len(files_below(tmp_path)) == round_number + 1
