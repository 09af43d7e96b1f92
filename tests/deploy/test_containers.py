"""Dockerfile and compose file, checked by linters and replayed without a container engine."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
import yaml

from streaming_server.engines import registry
from streaming_server.settings import Settings
from tests.support.process import ServerProcess, server_process
from tests.support.server import eventually

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
LINES = (DEPLOY / "Dockerfile").read_text().replace("\\\n", " ").splitlines()
STEPS = [line.split(maxsplit=1) for line in LINES if line and not line.startswith("#")]
SETTINGS = set(Settings.variables()) | set(registry.variables())
OTHERS = {
    "PATH",
    "PYTHONUNBUFFERED",
    "PYTHONDONTWRITEBYTECODE",
    "NVIDIA_VISIBLE_DEVICES",
    "NVIDIA_DRIVER_CAPABILITIES",
    "XDG_CACHE_HOME",
}
OF_WORKERS = {"CELERY_BROKER_URL", "DATABASE_URL", "DATA_DIR"}
OF_POSTGRESQL = {"PGPASSWORD"}
OF_S3 = {"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_DEFAULT_REGION", "AWS_ENDPOINT_URL"}
OF_THE_IMAGE = {"HOST", "PORT"}
PASSWORD = "a@b:c/d%41#?"


def steps(instruction: str) -> list[str]:
    return [argument for name, argument in STEPS if name == instruction]


def tool(name: str) -> str:
    """One that was installed into the environment of these tests, or with the system."""
    found = shutil.which(name, path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    assert found, f"{name} is not installed"
    return found


def copied() -> list[tuple[str, str]]:
    """What is copied from the repository, and where to."""
    pairs = [shlex.split(step) for step in steps("COPY") if not step.startswith("--from")]
    return [(source, target) for *sources, target in pairs for source in sources]


def test_the_linter_finds_nothing() -> None:
    result = subprocess.run([tool("hadolint"), "-t", "style", DEPLOY / "Dockerfile"], capture_output=True, check=False)
    assert (result.stdout, result.returncode) == (b"", 0)


def test_every_stage_and_file_that_is_copied_exists() -> None:
    stages = [shlex.split(step)[-1] for step in steps("FROM")]
    assert {"cpu", "cuda"} <= set(stages)
    for step in steps("COPY"):
        if step.startswith("--from"):
            assert step.split()[0].removeprefix("--from=") in stages
    ignored = (DEPLOY / "Dockerfile.dockerignore").read_text().splitlines()
    for source, _ in copied():
        assert (ROOT / source).exists(), source
        assert f"!{source}" in ignored, f"{source} is not in the build's context"
    for line in ignored:
        if line.startswith("!"):
            assert line[1:] in {source for source, _ in copied()}, f"{line} is sent and never used"


def test_every_extra_exists() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for step in steps("ARG"):
        assert set(step.removeprefix("EXTRAS=").split(",")) <= set(extras)


def test_every_variable_is_one_that_something_reads() -> None:
    given = {pair.partition("=")[0] for step in steps("ENV") for pair in shlex.split(step)}
    assert given <= SETTINGS | OTHERS | OF_WORKERS


def test_the_server_does_not_run_as_root() -> None:
    last_user = steps("USER")[-1]
    assert last_user == "10001"
    assert f"--uid {last_user}" in "".join(steps("RUN"))


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """What the image holds and runs, in a folder: the package as it is built, and what is copied."""
    root = tmp_path_factory.mktemp("image")
    for source, target in copied():
        destination = root / "build" / target / (Path(source).name if target.endswith("/") else "")
        destination.parent.mkdir(parents=True, exist_ok=True)
        copy = shutil.copytree if (ROOT / source).is_dir() else shutil.copy
        copy(ROOT / source, destination)
    install = [
        "install",
        "--quiet",
        "--no-deps",
        "--no-build-isolation",
        "--no-compile",
        "--target",
        str(root / "site"),
        ".",
    ]
    subprocess.run([sys.executable, "-m", "pip", *install], cwd=root / "build", check=True)
    app = root / "app"
    app.mkdir()
    for folder in ("reference_audios", "checkpoints"):
        (root / "build" / folder).rename(app / folder)
    [entrypoint], [*arguments] = (json.loads(steps(name)[-1]) for name in ("ENTRYPOINT", "CMD"))
    assert (root / "site" / "bin" / entrypoint).exists()
    start = f"import os, sys; os.chdir({str(app)!r}); sys.path.insert(0, {str(root / 'site')!r}); sys.argv[0] = 'x'; "
    start += "from streaming_server import cli; assert '/site/' in cli.__file__; sys.exit(cli.main())"
    with server_process(sys.executable, "-I", "-c", start, *arguments) as server:
        yield server


@pytest.mark.slow
def test_what_is_built_speaks_and_calls_itself_healthy(image: ServerProcess) -> None:
    with httpx.Client(base_url=image.url, timeout=120) as client:
        assert client.post("/synthesize", json={"text": "Hello.", "reference_audio_index": 10}).status_code == 200
        assert client.get("/player").status_code == client.get("/static/player.js").status_code == 200
    [_, command] = steps("HEALTHCHECK")[0].split("CMD", 1)
    python, *arguments = json.loads(command)
    assert python == "python"

    def status(port: int) -> int:
        environment = os.environ | {"PORT": str(port)}
        return subprocess.run(
            [sys.executable, *arguments], env=environment, capture_output=True, check=False
        ).returncode

    eventually(lambda: status(image.port) == 0)  # the command allows the server four seconds
    assert status(1) == 1


def compose(*files: str, **environment: str) -> subprocess.CompletedProcess[bytes]:
    names = [argument for name in files for argument in ("-f", str(DEPLOY / name))]
    command = [tool("docker-compose"), *names, "--profile", "fleet", "config"]
    clean = {name: value for name, value in os.environ.items() if name != "POSTGRES_PASSWORD"}
    return subprocess.run(command, env=clean | environment, capture_output=True, check=False)


def composed(*files: str, **environment: str) -> dict[str, Any]:
    result = compose(*files, POSTGRES_PASSWORD=PASSWORD, **environment)
    assert result.returncode == 0, result.stderr
    described: dict[str, Any] = yaml.safe_load(result.stdout)
    return described


def test_compose_has_what_the_server_and_its_workers_need() -> None:
    services = composed("compose.yaml")["services"]
    assert {"server", "worker", "redis", "postgres", "gateway"} == set(services)
    assert services["worker"]["command"] == ["worker"]
    assert services["postgres"]["environment"]["POSTGRES_PASSWORD"] == PASSWORD
    for name in ("server", "worker"):
        given = services[name]["environment"]
        assert set(given) == (SETTINGS | OF_WORKERS | OF_POSTGRESQL | OF_S3) - OF_THE_IMAGE
        for url in (given["CELERY_BROKER_URL"], given["DATABASE_URL"]):
            host = urlsplit(url).hostname
            assert host in services[name]["depends_on"]
        assert given["PGPASSWORD"] == PASSWORD  # in the URL some of its characters would have another meaning
        assert urlsplit(given["DATABASE_URL"]).netloc == "speech@postgres"
        assert any(volume.endswith(":" + given["DATA_DIR"] + ":rw") for volume in services[name]["volumes"])


def test_settings_and_extras_of_the_shell_reach_servers_and_workers() -> None:
    given = {"MAX_QUEUE": "4", "API_KEYS": "a,b", "EXTRAS": "kokoro,espeak"}
    services = composed("compose.yaml", "compose.cuda.yaml", **given)["services"]
    for name in ("server", "worker"):
        environment = services[name]["environment"]
        assert (environment["MAX_QUEUE"], environment["API_KEYS"]) == (given["MAX_QUEUE"], given["API_KEYS"])
        assert environment["DATA_DIR"] == "/data"
        assert services[name]["build"]["args"] == {"EXTRAS": given["EXTRAS"]}


def test_the_statistics_of_the_gateway_are_on_loopback_only() -> None:
    gateway = composed("compose.yaml")["services"]["gateway"]
    port = gateway["environment"]["STATS"].removeprefix(":")
    assert [mapping for mapping in gateway["ports"] if port in str(mapping)] == [f"127.0.0.1:{port}:{port}/tcp"]


def test_compose_restarts_checks_and_limits_every_service() -> None:
    built_with_a_check = {"server"}
    without_http = {"worker"}
    for name, service in composed("compose.yaml")["services"].items():
        assert service["restart"] == "unless-stopped", name
        assert service["mem_limit"], name
        assert set(service["logging"]["options"]) == {"max-size", "max-file"}, name
        assert ("healthcheck" in service) != (name in built_with_a_check), name
        assert (service.get("healthcheck", {}).get("test") == ["NONE"]) == (name in without_http), name


def test_images_have_a_version_and_the_extras_of_the_dockerfile() -> None:
    extras = [step.removeprefix("EXTRAS=") for step in steps("ARG")]
    for files, expected in zip((("compose.yaml",), ("compose.yaml", "compose.cuda.yaml")), extras, strict=True):
        services = composed(*files)["services"]
        for name, service in services.items():
            assert re.search(r":\d", service["image"]), name
        # An argument that Compose leaves empty would replace the one of the Dockerfile.
        assert services["server"]["build"]["args"] == services["worker"]["build"]["args"] == {"EXTRAS": expected}


def test_compose_without_a_password_says_what_is_needed() -> None:
    result = compose("compose.yaml")
    assert result.returncode
    assert b"is needed" in result.stderr


def test_on_gpus_server_and_worker_have_one_each() -> None:
    services = composed("compose.yaml", "compose.cuda.yaml")["services"]
    for name, gpu in (("server", "0"), ("worker", "1")):
        [device] = services[name]["deploy"]["resources"]["reservations"]["devices"]
        assert device["device_ids"] == [gpu]
    assert services["worker"]["build"]["target"] == "cuda"
    assert services["worker"]["command"] == ["worker"]
