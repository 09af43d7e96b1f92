from __future__ import annotations

import io
import os
import re
import socket
import subprocess
import sys
import threading
import wave
from contextlib import chdir, redirect_stderr, redirect_stdout
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from unittest.mock import patch
from urllib.parse import quote, unquote

import pytest

from streaming_server import __version__
from streaming_server.audio.decode import decode_native
from streaming_server.cli import main
from streaming_server.errors import LeaseLost
from streaming_server.jobs.inspection import SPEECH
from streaming_server.jobs.store import NewJob
from tests.support.children import free_port
from tests.support.postgres import files_below, opened_storage
from tests.support.stored import put

ROOT = Path(__file__).parent.parent
pytestmark = pytest.mark.slow


def run(*arguments: str, text: str | None = None, **environment: str) -> subprocess.CompletedProcess[bytes]:
    command = [sys.executable, "-m", "streaming_server.cli", *arguments]
    given = text.encode() if text is not None else None
    return subprocess.run(
        command, cwd=ROOT, capture_output=True, input=given, check=False, env=os.environ | environment, timeout=180
    )


def within(*arguments: str, **environment: str) -> subprocess.CompletedProcess[bytes]:
    """As `run`, within this process: for what starts no engine."""
    out, err = io.StringIO(), io.StringIO()
    with chdir(ROOT), patch.dict(os.environ, environment), redirect_stdout(out), redirect_stderr(err):
        try:
            status: object = main(arguments)
        except SystemExit as ended:
            status = ended.code
    assert isinstance(status, int)
    return subprocess.CompletedProcess(arguments, status, out.getvalue().encode(), err.getvalue().encode())


@pytest.mark.parametrize("suffix", ["ogg", "opus", "wav"])
def test_say_writes_a_file_and_shows_progress(suffix: str, tmp_path: Path) -> None:
    result = run("say", "Hello there. 你好。", "-o", str(tmp_path / f"out.{suffix}"), "-v", "4")
    assert (result.returncode, result.stdout) == (0, b"")
    assert b"100%" in result.stderr
    samples, rate_hz = decode_native(tmp_path / f"out.{suffix}")
    assert 1 < samples.size / rate_hz < 4
    if suffix == "wav":
        with wave.open(str(tmp_path / "out.wav")) as file:
            assert file.getnframes() == samples.size
    assert [path.name for path in tmp_path.iterdir()] == [f"out.{suffix}"]


def test_say_writes_raw_samples(tmp_path: Path) -> None:
    assert run("say", "Hello there.", "-o", str(tmp_path / "out.pcm")).returncode == 0
    assert (tmp_path / "out.pcm").stat().st_size % 2 == 0


def test_say_writes_ogg_to_standard_output_and_reads_standard_input(tmp_path: Path) -> None:
    result = run("say", "-", "-o", "-", text="Hello there.")
    assert result.returncode == 0
    assert result.stdout.startswith(b"OggS")
    (tmp_path / "a.ogg").write_bytes(result.stdout)
    assert decode_native(tmp_path / "a.ogg")[0].size > 20000


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["say", " ", "-o", "x.ogg"], "text is empty"),
        (["say", "a\x07", "-o", "x.ogg"], "U+0007 at position 1"),
        (["say", "a", "-o", "x.doc"], "the suffix must be one of .ogg"),
        (["say", "a", "-o", "x.ogg", "-v", "99"], "--voice 99: the voice does not exist; valid: from 0 to 10"),
        (["say", "a", "-o", "/nonexistent/x.ogg"], "No such file"),
        (["say", "a"], "-o/--output"),
        (["serve", "--port", "70000"], "70000 is not from 0 to 65535"),
        (["serve", "--nonsense"], "--nonsense"),
        (["serve", "--max-new-tokens", "4097"], "4097 is not from 1 to 4096"),
        (["test", "--test", "dance"], "invalid choice"),
        (["test", "--url", "http://127.0.0.1:1"], "http://127.0.0.1:1/info"),
        (["test", "--url", "nonsense"], "nonsense/info"),
        (["serve", "--deepspeed"], "--deepspeed: DeepSpeed is not supported; use --fp16 or --bf16"),
        (["serve", "--cuda_kernel"], "--cuda_kernel: custom CUDA kernels are not supported"),
        (["serve", "--workers", "2"], "run one server per GPU behind a load balancer"),
        (["jobs", "--limit", "0"], "0 is not from 1 to 1000000"),
        (["jobs", "--cancel"], "--cancel"),
        (["jobs", "--clear", "--cancel", "a"], "not allowed with"),
        (["dance"], "invalid choice"),
        ([], "required"),
    ],
)
def test_mistakes_are_a_sentence_and_a_status(arguments: list[str], sentence: str) -> None:
    result = within(*arguments)
    assert result.returncode != 0
    assert sentence in result.stderr.decode()
    assert "Traceback" not in result.stderr.decode()


def test_standard_input_that_is_not_utf_8_is_a_sentence() -> None:
    given = io.TextIOWrapper(io.BytesIO(b"Hello \xff there."), "utf-8")
    with patch.object(sys, "stdin", given):
        refused(within("say", "-", "-o", "x.ogg"), "text is not valid UTF-8 at byte 6")


class _Other(BaseHTTPRequestHandler):
    """A server that answers everything with the JSON of its path."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(unquote(self.path).removesuffix("/info")[1:].encode())

    def log_message(self, *_: object) -> None:
        pass


def test_a_test_of_another_server_fails_with_a_sentence() -> None:
    with HTTPServer(("127.0.0.1", 0), _Other) as other:
        threading.Thread(target=other.serve_forever).start()
        try:
            for answer, reason in (('{"status": "ok"}', "model_name is missing"), ("[]", "list indices")):
                result = within("test", "--url", f"http://127.0.0.1:{other.server_port}/{quote(answer)}")
                sentence = result.stderr.decode()
                assert f"not an answer of the HiggsAudio dialect: {reason}" in sentence
                assert (result.returncode, len(sentence.splitlines())) == (1, 1)
        finally:
            other.shutdown()


def test_a_wrong_setting_is_a_sentence() -> None:
    result = within("serve", MAX_QUEUE="many")
    assert result.returncode == 2
    assert "MAX_QUEUE=many" in result.stderr.decode()


def refused(result: subprocess.CompletedProcess[bytes], *parts: str) -> None:
    """One sentence of plain English, before anything is logged, and exit code 2."""
    sentence = result.stderr.decode()
    assert result.returncode == 2, sentence
    assert len(sentence.splitlines()) == 1
    assert sentence.startswith("streaming-server: ")
    assert sentence.isascii()
    assert not {"[Errno", "{", "Traceback"} & set(sentence.split())
    for part in parts:
        assert part in sentence


@pytest.mark.parametrize("variable", ["PORT", "AGENT_PORT", "WYOMING_PORT"])
def test_a_port_in_use_is_a_sentence(variable: str, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        ports = {"PORT": "0", variable: str(port)}
        result = within("serve", "--host", "127.0.0.1", DATA_DIR=str(tmp_path), **ports)
    refused(result, f"{variable}={port}: the port is in use")


def test_one_port_for_two_servers_is_a_sentence(tmp_path: Path) -> None:
    port = str(free_port())
    environment = {"PORT": "0", "AGENT_PORT": port, "WYOMING_PORT": port, "DATA_DIR": str(tmp_path)}
    refused(within("serve", "--host", "127.0.0.1", **environment), f"WYOMING_PORT={port}: the same port as AGENT_PORT")


def test_an_address_of_another_machine_is_a_sentence(tmp_path: Path) -> None:
    refused(within("serve", "--host", "192.0.2.1", "--port", "0", DATA_DIR=str(tmp_path)), "HOST=192.0.2.1")


def test_a_data_directory_that_cannot_be_written_is_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    folder = tmp_path / "file" / "data"
    refused(within("serve", "--port", "0", DATA_DIR=str(folder)), f"DATA_DIR={folder}: the folder cannot be written")


@pytest.mark.parametrize("command", [["serve", "--port", "0"], ["voices"], ["say", "a", "-o", "a.ogg"]])
def test_a_missing_folder_of_recordings_is_a_sentence(command: list[str], tmp_path: Path) -> None:
    result = within(*command, DATA_DIR=str(tmp_path), REFERENCE_AUDIO_DIR=str(tmp_path / "none"))
    refused(result, f"REFERENCE_AUDIO_DIR={tmp_path / 'none'}: the folder cannot be read")


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (
            ["--model_dir", "none"],
            ["MODEL_DIR=none", "does not exist", "download indextts-2 --dir none"],
        ),
        (["--engine", "indextts", "--model-dir", "tests"], ["MODEL_DIR=tests", "download indextts-1.5 --dir tests"]),
        (["--engine", "indextts2"], ["MODEL_DIR=checkpoints", "download indextts-2 --dir checkpoints"]),
        (["--model-path", "tests"], ["MODEL_PATH=tests", "config.json", "streaming-server download higgs"]),
        (["--model-path", "tests/none"], ["MODEL_PATH=tests/none", "neither a folder nor a repository on the hub"]),
        (["--engine", "higgs", "--model-path", "/none"], ["MODEL_PATH=/none"]),
    ],
)
def test_a_model_that_is_missing_is_a_sentence(arguments: list[str], parts: list[str]) -> None:
    refused(within("extras", *arguments), *parts)


def test_a_model_that_is_missing_ends_the_start(tmp_path: Path) -> None:
    refused(run("serve", "--model_dir", "none", DATA_DIR=str(tmp_path), PORT="0"), "MODEL_DIR=none")


@pytest.mark.parametrize(
    ("environment", "extras"),
    [
        ({}, "hibari espeak"),
        ({"MODEL_PATH": "bosonai/higgs-audio-v2-generation-3B-base"}, "higgs"),
        ({"ENGINE": "higgs"}, "higgs"),
    ],
)
def test_a_model_of_the_hub_chooses_higgs(environment: dict[str, str], extras: str) -> None:
    assert within("extras", **environment).stdout.decode() == f"{extras}\n"


def test_voices_are_listed(tmp_path: Path) -> None:
    lines = run("voices").stdout.decode().splitlines()
    assert len(lines) == 11
    assert lines[2].split()[:2] == ["2", "voice_03"]
    empty = within("voices", REFERENCE_AUDIO_DIR=str(tmp_path))
    assert (empty.stdout, empty.returncode) == (b"", 0)
    assert b"no recordings" in empty.stderr


def test_jobs_are_listed_cancelled_and_cleared(tmp_path: Path, database_url: str) -> None:
    environment = {"DATA_DIR": str(tmp_path), "DATABASE_URL": database_url}
    with opened_storage(tmp_path, database_url) as storage:
        pending, running, done = (storage.jobs.submit([NewJob(name * 32, SPEECH, "")])[0].id for name in "abc")
        storage.jobs.cancel(done)
        storage.jobs.delete(done)
        job = storage.jobs.submit([NewJob("d" * 32, SPEECH, "")])[0]
        finished = storage.jobs.claim("me")
        assert finished is not None
        (tmp_path / "source").write_bytes(b"RIFF")
        storage.jobs.finish(finished, "", lambda: put(storage.files, f"audio/{finished.id}.wav", tmp_path / "source"))
        held = storage.jobs.claim("me")
        assert held is not None

        listed = run("jobs", **environment)
        assert [line.split()[:3:2] for line in listed.stdout.decode().splitlines()] == [
            *([job.id, "0%"], [running, "0%"]),
            [pending, "100%"],
        ]
        assert [line.split()[1] for line in listed.stdout.decode().splitlines()] == ["pending", "running", "completed"]
        assert b"3 of 3" in listed.stderr
        assert len(within("jobs", "--limit", "1", **environment).stdout.splitlines()) == 1

        cancelled = within("jobs", "--cancel", job.id, held.id, **environment)
        assert cancelled.returncode == 0
        assert cancelled.stdout.decode().split() == [job.id, "cancelled", held.id, "cancelled"]
        with pytest.raises(LeaseLost):
            storage.jobs.renew(held, 0.5)
        unknown = within("jobs", "--cancel", "nothing", **environment)
        assert (unknown.returncode, b"task not found" in unknown.stderr) == (1, True)

        assert within("jobs", "--clear", **environment).stdout == b"3 tasks deleted\n"
        assert storage.jobs.page(9) == ([], 0)
        assert files_below(tmp_path) == []


def test_jobs_of_a_database_that_is_away_are_a_sentence(tmp_path: Path) -> None:
    result = within("jobs", DATA_DIR=str(tmp_path), DATABASE_URL="postgresql://127.0.0.1:1/none")
    assert result.returncode == 1
    assert b"cannot be used" in result.stderr
    assert b"Traceback" not in result.stderr


def test_version() -> None:
    """With the commit, where the tests run from a Git working tree."""
    commit = r"(\+g[0-9a-f]+(\.modified)?)?"
    assert re.fullmatch(re.escape(__version__) + commit, run("--version").stdout.decode().strip())
