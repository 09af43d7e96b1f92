"""The examples for nginx and Caddy, with the real proxies over TLS in front of a server."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import ssl
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
from websockets.sync.client import connect

from streaming_server.settings import Settings
from tests.support.children import end, free_port, spawn
from tests.support.fakes import FOREVER, FakeEngine, tone
from tests.support.recordings import float_wav
from tests.support.server import LiveServer, eventually, running

DEPLOY = Path(__file__).parents[2] / "deploy"
NAME = "speech.example.com"


def replaced(text: str, *pairs: tuple[str, str]) -> str:
    for old, new in pairs:
        assert old in text, old
        text = text.replace(old, new)
    return text


def nginx(folder: Path, server: int, plain: int, secure: int) -> list[str | Path]:
    site = replaced(
        (DEPLOY / "nginx.conf").read_text(),
        ("127.0.0.1:8000", f"127.0.0.1:{server}"),
        ("listen 80;", f"listen 127.0.0.1:{plain};"),
        ("listen 443 ssl", f"listen 127.0.0.1:{secure} ssl"),
        (f"/etc/ssl/certs/{NAME}.pem", f"{folder}/certificate.pem"),
        (f"/etc/ssl/private/{NAME}.key", f"{folder}/key.pem"),
        ("limit_conn speech_clients 128;", "limit_conn speech_clients 8;"),
    )
    (folder / "site.conf").write_text(site)
    spools = "".join(
        f"{kind}_temp_path {folder}/{kind};" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    (folder / "nginx.conf").write_text(
        f"{'user root;' if os.geteuid() == 0 else ''} daemon off; pid {folder}/nginx.pid; error_log stderr;"
        "events {}\n"
        f"http {{ access_log off; {spools} include {folder}/site.conf; }}"
    )
    return [shutil.which("nginx") or "/usr/sbin/nginx", "-e", "stderr", "-c", folder / "nginx.conf"]


def caddy(folder: Path, server: int, plain: int, secure: int) -> list[str | Path]:
    site = replaced(
        (DEPLOY / "Caddyfile").read_text(),
        ("127.0.0.1:8000", f"127.0.0.1:{server}"),
        (f"{NAME} {{", f"https://{NAME}:{secure} {{\n\ttls {folder}/certificate.pem {folder}/key.pem"),
    )
    options = f"{{\n\tadmin off\n\thttp_port {plain}\n\thttps_port {secure}\n}}\n"
    (folder / "Caddyfile").write_text(options + site)
    return ["caddy", "run", "--adapter", "caddyfile", "--config", folder / "Caddyfile"]


@dataclass(frozen=True)
class Proxy:
    port: int
    client: httpx.Client
    trust: ssl.SSLContext
    is_limiting: bool
    """Whether it limits the requests of a client, here to 8 at once; Caddy cannot."""


@contextmanager
def proxied(
    command: Callable[[Path, int, int, int], list[str | Path]], folder: Path, server: LiveServer
) -> Iterator[Proxy]:
    key, certificate = folder / "key.pem", folder / "certificate.pem"
    made = f"req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -noenc -subj /CN={NAME} -days 2"
    named = f"-addext subjectAltName=DNS:{NAME} -keyout {key} -out {certificate}"
    subprocess.run(["openssl", *made.split(), *named.split()], check=True, capture_output=True)
    plain, secure = free_port(), free_port()
    trust = ssl.create_default_context(cafile=certificate)
    process = spawn(
        command(folder, server.port, plain, secure), env={"HOME": str(folder), "PATH": "/usr/sbin:/usr/bin"}
    )
    transport = httpx.HTTPTransport(verify=trust)
    try:
        with httpx.Client(
            base_url=f"https://127.0.0.1:{secure}",
            headers={"Host": NAME},
            transport=_Named(transport),
            timeout=120,
        ) as client:
            eventually(lambda: process.poll() is not None or _answers(client))
            assert process.poll() is None
            yield Proxy(secure, client, trust, command is nginx)
    finally:
        end(process)


class _Named(httpx.BaseTransport):
    """Asks for the certificate of `NAME`, as a browser of that host does."""

    def __init__(self, transport: httpx.HTTPTransport) -> None:
        self._transport = transport

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        request.extensions["sni_hostname"] = NAME
        return self._transport.handle_request(request)

    def close(self) -> None:
        self._transport.close()


def _answers(client: httpx.Client) -> bool:
    try:
        return client.get("/livez").status_code == 200
    except httpx.TransportError:
        return False


@pytest.fixture(params=[nginx, caddy], ids=["nginx", "caddy"], scope="module")
def stage(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Proxy, LiveServer]]:
    engine = FakeEngine(lambda asked: [tone(0.02), FOREVER] if asked.text.startswith("Endless") else [tone(0.5)])
    with (
        running(engine) as server,
        proxied(request.param, tmp_path_factory.mktemp("proxy"), server) as proxy,
    ):
        yield proxy, server


def test_audio_passes_while_it_is_made_and_a_client_that_disconnects_frees_the_slot(
    stage: tuple[Proxy, LiveServer],
) -> None:
    proxy, server = stage
    body = {"text": "Endless.", "reference_audio_index": 0}
    with proxy.client.stream("POST", "/synthesize_stream", json=body) as response:
        assert response.status_code == 200
        audio = response.iter_bytes()
        assert len(next(audio)) > 0  # the engine has not ended, and never will
        assert server.queue()["is_processing"]
    eventually(lambda: server.queue()["queue_available"])


def test_websocket_sessions_pass(stage: tuple[Proxy, LiveServer]) -> None:
    proxy, _ = stage
    with (
        socket.create_connection(("127.0.0.1", proxy.port)) as connection,
        connect(f"wss://{NAME}/v1/audio/speech/stream", sock=connection, ssl=proxy.trust, open_timeout=120) as session,
    ):
        session.send(json.dumps({"type": "session.config", "response_format": "wav"}))
        session.send(json.dumps({"type": "input.text", "text": "A sentence."}))
        session.send(json.dumps({"type": "input.done"}))
        assert json.loads(session.recv(timeout=120))["type"] == "audio.start"
        assert bytes(session.recv(timeout=120))[:4] == b"RIFF"  # type: ignore[arg-type]


def test_recordings_pass_and_what_is_for_operators_does_not(stage: tuple[Proxy, LiveServer], tmp_path: Path) -> None:
    proxy, _ = stage
    recording = float_wav(tmp_path / "voice.wav", 0.1, 192_000).read_bytes()
    assert len(recording) > 1024 * 1024  # what nginx takes unless told otherwise
    answer = proxy.client.post("/api/v1/upload/audio", files={"file": ("voice.wav", recording, "audio/wav")})
    assert answer.status_code == 200, answer.text
    assert [proxy.client.get(path).status_code for path in ("/metrics", "/debug/streams", "/health")] == [404, 404, 200]


def test_nginx_limits_each_client(stage: tuple[Proxy, LiveServer]) -> None:
    proxy, _ = stage
    with ExitStack() as opened:
        events = [opened.enter_context(proxy.client.stream("GET", "/opus_queue_status/events")) for _ in range(9)]
        refused = 429 if proxy.is_limiting else 200
        assert [response.status_code for response in events] == [200] * 8 + [refused]


def test_clients_of_nginx_may_pause_as_long_as_the_server_allows() -> None:
    text = (DEPLOY / "nginx.conf").read_text()
    assert re.findall(r"^ {4}send_timeout (\d+)s;$", text, re.MULTILINE) == [f"{Settings().send_timeout_s:.0f}"]
