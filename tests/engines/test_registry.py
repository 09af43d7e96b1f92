"""The registry, and an engine that another distribution brings."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from streaming_server.engines import registry
from streaming_server.engines.indextts2.options import IndexTTS2Options
from streaming_server.environment import InvalidSetting
from tests.support.documentation import example
from tests.support.process import server_process
from tests.support.server import eventually

MODULE = example("tone_engine.py")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of installed packages with one distribution, whose entry point is an engine."""
    folder = tmp_path_factory.mktemp("site")
    (folder / "tone_engine.py").write_text(MODULE)
    information = folder / "tone_engine-1.0.dist-info"
    information.mkdir()
    (information / "METADATA").write_text("Metadata-Version: 2.1\nName: tone-engine\nVersion: 1.0\n")
    (information / "entry_points.txt").write_text("[streaming_server.engines]\ntone = tone_engine:ENGINE\n")
    return folder


@pytest.fixture
def installed(site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(site)


def run(site: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join([str(site), os.environ.get("PYTHONPATH", "")])
    return subprocess.run(
        [sys.executable, "-m", "streaming_server.cli", *arguments],
        env=os.environ | {"PYTHONPATH": path} | environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=180,
    )


@pytest.mark.usefixtures("installed")
def test_an_engine_of_another_distribution_is_in_the_registry(tmp_path: Path) -> None:
    assert "tone" in registry.names()
    assert "TONE_HZ" in registry.variables()
    assert registry.choose("tone", {}).spec.title == "a sine"
    (tmp_path / "tone.txt").touch()
    assert registry.choose("auto", {"MODEL_DIR": str(tmp_path)}).spec.name == "tone"
    with pytest.raises(InvalidSetting, match=r"^TONE_HZ=5: a number from 20 to 4000 is needed by the tone engine$"):
        registry.choose("tone", {"TONE_HZ": "5"})


def test_the_command_line_offers_it(site: Path) -> None:
    help_text = run(site, "serve", "--help").stdout
    assert "tone: a sine" in " ".join(help_text.split())
    assert "--tone-hz" in help_text
    assert "TONE_HZ=9: a number from 20 to 4000" in run(site, "serve", "--engine", "tone", "--tone-hz", "9").stderr
    assert run(site, "extras", "--engine", "tone").stdout == "\n"


def test_the_server_runs_it(site: Path) -> None:
    path = os.pathsep.join([str(site), os.environ.get("PYTHONPATH", "")])
    with (
        server_process(ENGINE="tone", TONE_HZ="1000", PYTHONPATH=path) as server,
        httpx.Client(base_url=server.url, timeout=120) as client,
    ):
        info = client.get("/model_info").json()
        audio = client.post("/synthesize_stream", json={"text": "Hello."})
        eventually(lambda: any("server ready: " in line for line in server.log))
    ready = next(line for line in server.log if "server ready: " in line)
    for fact in ("engine tone", "model 7", "device cpu", "precision none", "voices 11", f"{server.url}/player"):
        assert fact in ready
    assert (info["engine"], info["model_version"], info["sample_rate"]) == ("tone", "7", 16000)
    assert info["capabilities"]["text_to_speech"]
    assert not info["capabilities"]["seed"]
    assert len(audio.content) == 2 * 16000


def test_a_package_that_does_not_load_is_left_out(
    site: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    information = tmp_path / "broken-1.0.dist-info"
    information.mkdir()
    (information / "METADATA").write_text("Metadata-Version: 2.1\nName: broken\nVersion: 1.0\n")
    (information / "entry_points.txt").write_text("[streaming_server.engines]\nbroken = no_such_module:ENGINE\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert "broken" not in registry.names()
    assert "engine plugin not loaded: broken = no_such_module:ENGINE" in caplog.text


@pytest.mark.parametrize(
    ("version", "engine"), [(None, "indextts"), ("1.5", "indextts"), ("2.0", "indextts2"), ("'2.5'", "indextts2")]
)
@pytest.mark.parametrize("name", ["auto", "indextts"])
def test_the_configuration_names_the_engine(version: str | None, engine: str, name: str, tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("gpt:\n  version: 9\n" + (f"version: {version}\n" if version else ""))
    choice = registry.choose(name, {"MODEL_DIR": str(tmp_path)})
    assert (choice.spec.name, choice.spec.extra) == (engine, engine)


@pytest.mark.parametrize("place", [{"DEVICE": "cuda"}, {"DEVICE": "mps"}, {"PRECISION": "fp16"}, {"PRECISION": "bf16"}])
def test_a_device_that_other_engines_lack_is_no_error(place: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("version: 1.5\n")
    assert registry.choose("auto", {"MODEL_DIR": str(tmp_path)} | place).spec.name == "indextts"
    with pytest.raises(InvalidSetting, match="is needed by the hibari engine"):
        registry.choose("auto", {"MODEL_DIR": ""} | place)


def test_options_come_from_their_variables() -> None:
    options = IndexTTS2Options.from_env(
        {
            "MODEL_DIR": "m",
            "INDEXTTS2_STEPS": "12",
            "INDEXTTS2_EMOTION_CAP": "off",
            "INDEXTTS2_EXTERNAL_MODELS_DIR": " ",
        }
    )
    assert (options.model_dir, options.steps, options.emotion_cap) == (Path("m"), 12, False)
    assert (options.device, options.external_models_dir) == ("auto", None)


@pytest.mark.parametrize(
    ("engine", "variable", "value", "sentence"),
    [
        ("espeak", "DEVICE", "cuda", "one of auto, cpu is needed by the espeak engine"),
        ("espeak", "PRECISION", "fp16", "one of auto is needed by the espeak engine"),
        ("indextts", "LOOK_AHEAD", "32", "exact or a whole number from 1 to 31 is needed by the indextts engine"),
        ("indextts", "VOICE_CACHE", "0", "a whole number of at least 1"),
        ("indextts2", "INDEXTTS2_STEPS", "1.5", "a whole number from 1 to 100"),
        ("indextts2", "INDEXTTS2_LOOK_AHEAD", "173", "a whole number from 0 to 172"),
        ("indextts2", "INDEXTTS2_EMOTION_CAP", "maybe", "true or false"),
        ("indextts2", "INDEXTTS2_STREAM", "token", "one of segment, chunk"),
        ("higgs", "DEVICE", "tpu", "one of auto, cuda, mps, cpu"),
    ],
)
def test_an_option_that_is_not_valid_names_the_variable(engine: str, variable: str, value: str, sentence: str) -> None:
    with pytest.raises(InvalidSetting, match=f"^{variable}={value}: {sentence}"):
        registry.choose(engine, {variable: value})


def test_an_unknown_engine_names_the_known_ones() -> None:
    with pytest.raises(InvalidSetting, match=r"^ENGINE=dance: one of auto, espeak, .* is needed$"):
        registry.choose("dance", {})


def test_choosing_imports_no_engine() -> None:
    code = (
        "import sys; from streaming_server.engines import registry; registry.variables(); "
        "registry.choose('auto', {}), registry.choose('higgs', {}); "
        "print(*{'torch', 'transformers', 'yaml', 'espeakng_loader', 'onnxruntime', 'numba'} & set(sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout == "\n"
