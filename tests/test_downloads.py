"""Downloads from a hub, over HTTP, with the hub's own client library."""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from streaming_server.downloads import MODELS, DownloadFailed, download
from streaming_server.engines.kokoro.folder import find_models, find_voices

BIG = bytes(range(256)) * (24 << 12)
"""24 MiB: the client saves what it has received every 10 MB."""


class Hub(ThreadingHTTPServer):
    """Serves repositories as a hub does: revisions, trees with checksums, files by range."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repositories: dict[str, dict[str, bytes]] = {}
        self.break_after_bytes: int | None = None
        """The next file response ends after that many bytes."""
        self.corrupt_next = False
        self.gated: set[str] = set()
        """Repositories whose files need a token."""
        self.revisions: set[str] = set()
        self.ranges: list[str] = []
        self.files: list[str] = []

    def commit(self, name: str) -> str:
        """A repository's revision; the client caches by it."""
        sizes = [(path, len(content)) for path, content in self.repositories[name].items()]
        return hashlib.sha1(repr((name, sizes)).encode()).hexdigest()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class _Handler(BaseHTTPRequestHandler):
    server: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = self.path.split("?")[0]
        if found := re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/(revision|tree)/[^/]+(?:/(.+))?)?", path):
            self._describe(found[1], found[3] or "", is_tree=found[2] == "tree")
        elif found := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            self.server.revisions.add(found[2])
            self._file(found[1], found[3])
        else:
            self._answer(404, b"{}")

    def _describe(self, name: str, folder: str, *, is_tree: bool) -> None:
        if name not in self.server.repositories:
            self._answer(404, b'{"error": "Repository not found"}', {"X-Error-Code": "RepoNotFound"})
            return
        files = self.server.repositories[name]
        tree = [
            {
                "type": "file",
                "path": path,
                "size": len(content),
                "oid": hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest(),
                "lfs": {"oid": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 130},
            }
            for path, content in files.items()
            if path.startswith(folder)
        ]
        siblings = [{"rfilename": path} for path in files]
        body: object = (
            tree if is_tree else {"id": name, "sha": self.server.commit(name), "siblings": siblings, "private": False}
        )
        self._answer(200, json.dumps(body).encode())

    def _file(self, name: str, path: str) -> None:
        content = self.server.repositories.get(name, {}).get(path)
        if content is None:
            self._answer(404, b"", {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": self.server.commit(name)})
            return
        if name in self.server.gated and self.headers.get("Authorization") != "Bearer hf_accepted":
            self._answer(403, b"", {"X-Error-Code": "GatedRepo", "X-Error-Message": "Access is restricted."})
            return
        digest = hashlib.sha256(content).hexdigest()
        headers = {"ETag": f'"{digest}"', "X-Linked-Etag": f'"{digest}"', "X-Linked-Size": str(len(content))}
        headers["X-Repo-Commit"] = self.server.commit(name)
        if self.command == "HEAD":
            self._answer(200, content, headers)
            return
        self.server.files.append(path)
        if self.server.corrupt_next:
            self.server.corrupt_next = False
            content = bytes(len(content))
        if found := re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", "")):
            self.server.ranges.append(found[0])
            headers["Content-Range"] = f"bytes {found[1]}-{len(content) - 1}/{len(content)}"
            self._answer(206, content[int(found[1]) :], headers)
        else:
            self._answer(200, content, headers)

    def _answer(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "HEAD":
            return
        limit = self.server.break_after_bytes
        if limit is not None and len(body) > limit:
            self.server.break_after_bytes = None
            self.wfile.write(body[:limit])
            self.close_connection = True
            return
        self.wfile.write(body)


@pytest.fixture
def hub() -> Iterator[Hub]:
    with Hub() as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def publish(hub: Hub, model: str, big: bytes = b"weights") -> None:
    """Offers every file of a model, and one that is not part of it."""
    for part in MODELS[model].parts:
        files = {name.replace("*", "one.bin"): f"{part.repository} {name}".encode() for name in part.files}
        hub.repositories[part.repository] = files | {"README.md": b"not part of it"}
    hub.repositories[MODELS[model].parts[0].repository] |= {"gpt.pth": big}


def run(hub: Hub, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    own = {"HF_ENDPOINT": hub.url, "HF_HUB_DISABLE_XET": "1", "HF_HUB_DOWNLOAD_TIMEOUT": "60", "HF_HUB_OFFLINE": "0"}
    own["HF_HUB_ETAG_TIMEOUT"] = "60"
    return subprocess.run(
        [sys.executable, "-m", "streaming_server.cli", "download", *arguments],
        env=os.environ | own | environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
    )


def below(folder: Path) -> set[str]:
    return {
        path.relative_to(folder).as_posix()
        for path in folder.rglob("*")
        if path.is_file() and ".cache" not in path.parts
    }


def test_a_model_comes_with_all_its_companions(hub: Hub, tmp_path: Path) -> None:
    publish(hub, "indextts-2")
    done = run(hub, "indextts-2", "--dir", str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert below(tmp_path) == {
        *("config.yaml", "gpt.pth", "s2mel.pth", "feat1.pt", "feat2.pt", "wav2vec2bert_stats.pt", "bpe.model"),
        *("qwen0.6bemo4-merge/one.bin", "hf_cache/w2v-bert-2.0/config.json"),
        *("hf_cache/w2v-bert-2.0/model.safetensors", "hf_cache/campplus_cn_common.bin", "hf_cache/bigvgan/config.json"),
        *("hf_cache/bigvgan/bigvgan_generator.pt", "hf_cache/semantic_codec/model.safetensors"),
    }
    assert f"./start_api.sh --model_dir {tmp_path}" in done.stdout
    hub.files.clear()
    assert run(hub, "indextts-2", "--dir", str(tmp_path)).returncode == 0
    assert hub.files == []  # what is there and whole is not downloaded again


@pytest.mark.slow
def test_an_interrupted_download_is_resumed(hub: Hub, tmp_path: Path) -> None:
    publish(hub, "indextts-1.5", BIG)
    hub.break_after_bytes = 16 << 20
    runs = [run(hub, "indextts-1.5", "--dir", str(tmp_path)) for _ in range(2)]
    assert runs[-1].returncode == 0, runs[-1].stderr
    assert (tmp_path / "gpt.pth").read_bytes() == BIG
    assert [text for text in hub.ranges if text != "bytes=0-"], "nothing was resumed"


def test_a_damaged_file_is_downloaded_again(hub: Hub, tmp_path: Path) -> None:
    publish(hub, "indextts-1.5")
    assert run(hub, "indextts-1.5", "--dir", str(tmp_path)).returncode == 0
    (tmp_path / "bpe.model").write_bytes(b"damaged")
    os.utime(tmp_path / "bpe.model", (0, 0))  # by its time it is the file that was downloaded
    done = run(hub, "indextts-1.5", "--dir", str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert "checksum mismatch, downloading again: bpe.model" in done.stdout
    assert (tmp_path / "bpe.model").read_bytes() != b"damaged"


def test_a_file_that_arrives_damaged_is_not_accepted(hub: Hub, tmp_path: Path) -> None:
    publish(hub, "indextts-1.5")
    hub.corrupt_next = True
    assert run(hub, "indextts-1.5", "--dir", str(tmp_path)).returncode == 0
    for name, content in hub.repositories["IndexTeam/IndexTTS-1.5"].items():
        assert name == "README.md" or (tmp_path / name).read_bytes() == content


def test_a_file_that_the_hub_lacks_is_named(hub: Hub, tmp_path: Path) -> None:
    publish(hub, "indextts-1.5")
    del hub.repositories["IndexTeam/IndexTTS-1.5"]["bpe.model"]
    done = run(hub, "indextts-1.5", "--dir", str(tmp_path))
    assert done.returncode == 1
    assert "IndexTeam/IndexTTS-1.5: incomplete after the download: bpe.model (missing)" in done.stderr


def test_a_hub_that_is_away_is_one_sentence(hub: Hub, tmp_path: Path) -> None:
    done = run(hub, "indextts-1.5", "--dir", str(tmp_path))
    assert done.returncode == 1
    assert "IndexTeam/IndexTTS-1.5: download from" in done.stderr
    assert "Traceback" not in done.stderr
    away = run(hub, "indextts-1.5", "--dir", str(tmp_path), HF_ENDPOINT="http://127.0.0.1:9")
    assert away.returncode == 1
    assert "download from http://127.0.0.1:9 failed" in away.stderr
    assert "HF_ENDPOINT" in away.stderr
    assert "Traceback" not in away.stderr


@pytest.mark.parametrize("endpoint", ["", "hf-mirror.example"])
def test_an_address_of_the_hub_without_a_scheme_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, endpoint: str
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", endpoint)
    if endpoint:
        with pytest.raises(
            DownloadFailed, match=r"HF_ENDPOINT=hf-mirror\.example: must begin with http:// or https://"
        ):
            download([], tmp_path, print)
    else:
        download([], tmp_path, print)
        assert "HF_ENDPOINT" not in os.environ


def test_an_unknown_model_names_the_known_ones(hub: Hub) -> None:
    done = run(hub, "nothing")
    assert done.returncode == 2
    assert "indextts-1.5" in done.stderr


def test_pocket_comes_language_by_language_from_pinned_commits(hub: Hub, tmp_path: Path) -> None:
    gated, public = "kyutai/pocket-tts", "kyutai/pocket-tts-without-voice-cloning"
    hub.gated = {gated}
    files = {f"languages/{name}/model.safetensors": b"weights" for name in ("english", "french")}
    others = ("tokenizer.json", "embeddings/alba.safetensors", "model.safetensors")
    hub.repositories[gated] = files
    hub.repositories[public] = {f"languages/{name}/{file}": b"x" for name in ("english", "french") for file in others}
    refused = run(hub, "pocket", "--dir", str(tmp_path), HF_TOKEN="")
    assert refused.returncode == 1
    assert f"accept the publisher's terms at {hub.url}/{gated}, then" in refused.stderr
    assert "Traceback" not in refused.stderr
    for arguments in ((), ("--variant", "french")):
        done = run(hub, "pocket", "--dir", str(tmp_path), *arguments, HF_TOKEN="hf_accepted")
        assert done.returncode == 0, done.stderr
    wanted = ("model.safetensors", "tokenizer.json", "embeddings/alba.safetensors")
    assert below(tmp_path) == {f"languages/{name}/{file}" for name in ("english", "french") for file in wanted}
    assert (tmp_path / "languages/french/model.safetensors").read_bytes() == b"weights"
    pinned = {part.revision for name in ("english", "french") for part in MODELS["pocket"].variants[name]}
    assert pinned <= hub.revisions
    unknown = run(hub, "pocket", "--dir", str(tmp_path), "--variant", "klingon")
    assert "--variant klingon: this model has no such variant; it has english, french" in unknown.stderr


def test_kokoro_comes_in_the_precision_asked_for(hub: Hub, tmp_path: Path) -> None:
    (repository,) = {part.repository for part in MODELS["kokoro"].parts_of(None)}
    models = {f"onnx/{name}.onnx": name.encode() for name in ("model", "model_fp16", "model_quantized", "model_q4")}
    voices = {f"voices/{name}.bin": name.encode() for name in ("af_heart", "zf_xiaoxiao")}
    hub.repositories[repository] = models | voices | {"README.md": b"not part of it"}
    done = run(hub, "kokoro", "--dir", str(tmp_path), "--variant", "fp16")
    assert done.returncode == 0, done.stderr
    assert below(tmp_path) == {*voices, "onnx/model_fp16.onnx"}
    hub.files.clear()
    assert run(hub, "kokoro", "--dir", str(tmp_path)).returncode == 0
    assert below(tmp_path) == {*voices, "onnx/model_fp16.onnx", "onnx/model_quantized.onnx"}
    assert not [file for file in hub.files if "voices" in file], "a voice was downloaded twice"
    assert find_models(tmp_path).keys() == {"fp16", "int8"}
    assert find_voices(tmp_path).keys() == {"af_heart", "zf_xiaoxiao"}
    unknown = run(hub, "kokoro", "--dir", str(tmp_path), "--variant", "int3")
    assert "--variant int3: this model has no such variant; it has int8, fp16, fp32" in unknown.stderr
