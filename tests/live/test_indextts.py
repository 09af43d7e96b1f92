"""The IndexTTS runtime behind every route, with a tiny checkpoint, started by ``./start_api.sh``."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from streaming_server.audio.decode import decode_native
from tests.engines.indextts.tiny import make_checkpoint
from tests.support.process import ServerProcess, server_process
from tests.support.server import eventually

TEXT = "你好，世界。Hello world, this is a test. 今天天气很好，我们去公园。" * 3


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("checkpoints"))


@pytest.fixture(scope="module")
def server(checkpoint: Path) -> Iterator[ServerProcess]:
    with server_process("./start_api.sh", "--model_dir", str(checkpoint), LOOK_AHEAD="4") as running:
        yield running


@pytest.fixture(scope="module")
def client(server: ServerProcess) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.url, timeout=180) as connected:
        yield connected


def test_model_info_tells_what_is_loaded(client: httpx.Client, checkpoint: Path) -> None:
    info = client.get("/model_info").json()
    assert (info["engine"], info["model_version"], info["sample_rate"]) == ("indextts", "1.5.0", 24000)
    assert (info["device"], info["is_fp16"], info["use_cuda_kernel"]) == ("cpu", False, False)
    assert (info["model_dir"], info["config_path"]) == (str(checkpoint), str(checkpoint / "config.yaml"))
    assert info["capabilities"]["voice_cloning"] is True


@pytest.mark.parametrize("path", ["/synthesize_stream_opus", "/synthesize_stream"])
def test_the_first_audio_leaves_before_the_last_code_is_decoded(client: httpx.Client, path: str) -> None:
    with client.stream("POST", path, json={"text": TEXT * 130, "seed": 1}) as response:  # takes minutes; broken off
        assert response.status_code == 200
        pieces = response.iter_bytes()
        next(pieces)
        # The slot is held exactly as long as the model decodes.
        assert client.get("/opus_queue_status").json()["is_processing"] is True


@pytest.mark.parametrize("path", ["/synthesize", "/synthesize_simple", "/test"])
@pytest.mark.parametrize("fast", [False, True])
def test_whole_files(client: httpx.Client, path: str, fast: bool, tmp_path: Path) -> None:
    body = {"text": TEXT, "use_fast_inference": fast, "sentences_bucket_max_size": 3, "num_beams": 2}
    response = client.get(path) if path == "/test" else client.post(path, json=body)
    (tmp_path / "a.wav").write_bytes(response.raise_for_status().content)
    samples, rate_hz = decode_native(tmp_path / "a.wav")
    assert rate_hz == 24000
    assert samples.size > 24000


@pytest.mark.parametrize("granularity", ["token", "sentence"])
def test_a_seed_gives_the_same_audio_again_and_another_one_another(client: httpx.Client, granularity: str) -> None:
    def samples(seed: int) -> bytes:
        body = {"text": "你好，世界。", "seed": seed, "stream_granularity": granularity, "num_beams": 2}
        return client.post("/synthesize_stream", json=body).raise_for_status().content

    assert samples(5) == samples(5) != samples(6)


def test_another_reference_is_another_voice(client: httpx.Client) -> None:
    def samples(index: int) -> bytes:
        body = {"text": "你好。", "seed": 5, "reference_audio_index": index}
        return client.post("/synthesize_stream", json=body).raise_for_status().content

    assert samples(0) == samples(0) != samples(4)


def test_generation_limits_are_the_models(client: httpx.Client) -> None:
    refused = client.post("/synthesize", json={"text": "a", "max_mel_tokens": 10**6})
    assert refused.status_code == 422
    assert refused.json()["detail"][0]["loc"] == ["body", "max_mel_tokens"]
    short = client.post("/synthesize_stream", json={"text": "你好。", "max_mel_tokens": 3}).content
    assert 0 < len(short) <= 3 * 1024 * 2


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *[("top_k", value) for value in (0, 2**63, 10**30)],
        *[("temperature", value) for value in (1e-300, 1e300)],
        *[("repetition_penalty", value) for value in (1e-300, 1e300)],
        *[("length_penalty", value) for value in (-1e308, -300, 400, 1e308)],
    ],
)
@pytest.mark.parametrize("path", ["/synthesize", "/synthesize_stream"])
def test_absurd_numbers_that_the_contract_allows_are_spoken(
    client: httpx.Client, path: str, field: str, value: float
) -> None:
    body = {"text": "你好。", "max_mel_tokens": 8, field: value}
    assert client.post(path, json=body).status_code == 200


def test_one_line_is_logged(client: httpx.Client, server: ServerProcess) -> None:
    client.post("/synthesize_stream_opus", json={"text": "你好"}, headers={"X-Request-Id": "logged"})
    eventually(lambda: any('"logged"' in line for line in list(server.log)))
    record = next(json.loads(line) for line in server.log if '"logged"' in line)
    assert (record["outcome"], record["voice"]) == ("complete", "voice_01")


def test_a_broken_checkpoint_does_not_start_and_nothing_takes_its_place(checkpoint: Path, tmp_path: Path) -> None:
    for name in ("config.yaml", "bpe.model", "gpt.pth"):
        (tmp_path / name).symlink_to(checkpoint / name)
    sentence = "bigvgan_generator.pth"
    with pytest.raises(AssertionError, match=sentence), server_process("./start_api.sh", "--model_dir", str(tmp_path)):
        pass


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["--engine", "espeak", "--fp16"], "PRECISION=fp16: one of auto is needed by the espeak engine"),
        (["--engine", "espeak", "--device", "cuda"], "DEVICE=cuda: one of auto, cpu is needed by the espeak"),
        (["--engine", "indextts", "--model_dir", "nowhere"], "nowhere"),
    ],
)
def test_what_an_engine_cannot_do_is_refused_at_start(flags: list[str], sentence: str) -> None:
    with pytest.raises(AssertionError, match=sentence), server_process("./start_api.sh", *flags):
        pass


def test_fp16_on_the_cpu_is_refused(checkpoint: Path) -> None:
    flags = ["--engine", "indextts", "--model_dir", str(checkpoint), "--device", "cpu", "--fp16"]
    with pytest.raises(AssertionError, match="fp16 requires a GPU"), server_process("./start_api.sh", *flags):
        pass
