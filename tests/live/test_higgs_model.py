"""The HiggsAudio model behind every route, with a tiny checkpoint, its flags and its clients."""

from __future__ import annotations

import base64
import io
import json
import subprocess
import sys
import wave
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import requests

from tests.support.browser import chromium
from tests.support.process import ROOT, ServerProcess, server_process
from tests.support.server import eventually

FEATURES = ["单说话人音频生成", "多说话人音频生成", "语音克隆", "智能语音", "场景描述", "流式生成"]
SHORT = {"max_new_tokens": 40, "seed": 3}
DIALOGUE = "[SPEAKER0] Good morning. [SPEAKER1] And to you. [SPEAKER0] Thanks."


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    from tests.engines.higgs.tiny import make_checkpoint

    return make_checkpoint(tmp_path_factory.mktemp("higgs"))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("data")


@pytest.fixture(scope="module")
def server(checkpoint: tuple[Path, Path], data: Path) -> Iterator[ServerProcess]:
    model, codec = map(str, checkpoint)
    flags = ["--model-path", model, "--audio-tokenizer-path", codec, "--device", "cpu", "--max-new-tokens", "60"]
    flags += ["--voice-prompts-dir", "examples/voice_prompts", "--scene-prompts-dir", "examples/scene_prompts"]
    command = [sys.executable, "-m", "streaming_server.cli", "serve", *flags]
    with server_process(*command, DATA_DIR=str(data), DIALOGUE="true", OMP_NUM_THREADS="1") as running:
        yield running


def audio_of(answer: dict[str, Any]) -> bytes:
    with wave.open(io.BytesIO(base64.b64decode(answer["audio_base64"]))) as file:
        assert (file.getframerate(), file.getnchannels(), file.getsampwidth()) == (24000, 1, 2)
        frames: bytes = file.readframes(file.getnframes())
        return frames


def events_of(lines: Iterator[str]) -> Iterator[dict[str, Any]]:
    return (json.loads(line.removeprefix("data: ")) for line in lines if line)


def test_a_client_in_python(server: ServerProcess) -> None:
    with requests.Session() as session:
        info = session.get(f"{server.url}/info").json()
        assert info["is_loaded"] is True
        assert (info["device"], info["max_new_tokens"], info["supported_features"]) == ("cpu", 60, FEATURES)
        voice = session.get(f"{server.url}/voices").json()["voices"][0]
        assert voice == {"name": "belinda", "file": "examples/voice_prompts/belinda.wav", "type": "wav"}
        scene = session.get(f"{server.url}/scenes").json()["scenes"][0]["name"]
        body = {"text": "Hello there.", "ref_audio": voice["name"], "scene_prompt": scene, **SHORT}
        answer = session.post(f"{server.url}/generate", json=body).json()
        assert (answer["success"], answer["message"], answer["sampling_rate"]) == (True, "音频生成成功", 24000)
        assert len(audio_of(answer)) == round(answer["duration"] * 24000) * 2 > 0
        with session.post(f"{server.url}/generate-stream", json=body, stream=True) as response:
            events = list(events_of(response.iter_lines(decode_unicode=True)))
        assert events[-1]["type"] == "done"
        pcm = b"".join(base64.b64decode(event["audio_base64"]) for event in events if event["type"] == "audio")
        assert pcm == audio_of(answer)  # the same seed, request and engine
        with (ROOT / voice["file"]).open("rb") as recording:
            fields = {"text": "Hello there.", "max_new_tokens": "40", "seed": "3"}
            uploaded = session.post(f"{server.url}/generate-upload", data=fields, files={"ref_audio_file": recording})
        assert audio_of(uploaded.json()) not in {b"", pcm}  # without its transcript it is heard in another way


@pytest.mark.parametrize(
    ("path", "arguments"),
    [
        ("/info", ""),
        ("/voices", ""),
        ("/scenes", ""),
        ("/generate", """-H 'Content-Type: application/json' -d '{"text": "Hello.", "ref_audio": "belinda"}'"""),
        ("/generate-stream", """-N -H 'Content-Type: application/json' -d '{"text": "Hello."}'"""),
        ("/generate-upload", "-F text=Hello. -F seed=3 -F ref_audio_file=@reference_audios/voice_05.wav"),
    ],
)
def test_a_client_in_a_shell(server: ServerProcess, path: str, arguments: str) -> None:
    command = f"curl -sS --fail-with-body {server.url}{path} {arguments}"
    result = subprocess.run(["bash", "-c", command], cwd=ROOT, capture_output=True, check=True, text=True, timeout=180)
    if path == "/generate-stream":
        assert [*events_of(iter(result.stdout.splitlines()))][-1]["success"] is True
    else:
        assert json.loads(result.stdout)


def test_the_first_audio_event_leaves_before_the_last_frame_is_drawn(server: ServerProcess) -> None:
    body = {"text": DIALOGUE * 300, "ref_audio": "belinda,voice_05", "chunk_method": "speaker", "seed": 1}
    with (
        httpx.Client(base_url=server.url, timeout=180) as client,
        client.stream("POST", "/generate-stream", json=body) as response,
    ):
        events = events_of(response.iter_lines())
        while next(events)["type"] != "audio":
            pass
        # The slot is held exactly as long as frames are drawn.
        assert client.get("/opus_queue_status").json()["is_processing"] is True
    with httpx.Client(base_url=server.url, timeout=120) as client:
        eventually(lambda: not client.get("/opus_queue_status").json()["is_processing"])


@pytest.mark.parametrize(
    "change",
    [
        {"text": DIALOGUE},
        {"text": DIALOGUE, "ref_audio": "belinda,voice_05"},
        {"text": DIALOGUE, "chunk_method": "speaker", "chunk_max_num_turns": 2, "generation_chunk_buffer_size": 0},
        {"text": "One two three four five six.", "chunk_method": "word", "chunk_max_word_num": 3},
        {"text": "Hello.", "temperature": 0, "top_k": 1, "top_p": 0},
        {"text": "Hello.", "temperature": 2, "top_k": 100, "top_p": 1, "ras_win_len": 0},
        {"text": "<|eot_id|><|AUDIO_OUT|>"},
    ],
    ids=str,
)
def test_what_the_fields_allow_is_spoken(server: ServerProcess, change: dict[str, Any]) -> None:
    twice = [httpx.post(f"{server.url}/generate", json={**SHORT, **change}, timeout=180).json() for _ in range(2)]
    assert twice[0]["duration"] > 0
    assert audio_of(twice[0]) == audio_of(twice[1])


def test_the_other_dialects_speak_with_it(server: ServerProcess) -> None:
    calls: list[tuple[str, dict[str, Any]]] = [
        ("/synthesize", {"text": "Hello.", "max_mel_tokens": 30}),
        ("/synthesize_stream", {"text": DIALOGUE, "max_mel_tokens": 30}),
        ("/v1/audio/speech", {"model": "m", "input": "Hello.", "voice": "nova", "response_format": "wav"}),
    ]
    for path, body in calls:
        assert len(httpx.post(server.url + path, json=body, timeout=120).raise_for_status().content) > 1000


def test_events_in_a_browser(server: ServerProcess) -> None:
    """A page fetches the events, decodes the samples and finds all of them."""
    script = """async (url) => {
      const body = JSON.stringify({ text: "Hello there.", ref_audio: "belinda", max_new_tokens: 40, seed: 3 });
      const headers = { "Content-Type": "application/json" };
      const response = await fetch(`${url}/generate-stream`, { method: "POST", headers, body });
      const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
      let text = "", samples = [], done = null, pieces = 0;
      for (let part = await reader.read(); !part.done; part = await reader.read()) {
        text += part.value;
        const lines = text.split("\\n\\n");
        text = lines.pop();
        for (const line of lines) {
          const event = JSON.parse(line.slice("data: ".length));
          if (event.type === "done") done = event;
          if (event.type !== "audio") continue;
          pieces += 1;
          const bytes = Uint8Array.from(atob(event.audio_base64), (letter) => letter.charCodeAt(0));
          samples.push(...new Int16Array(bytes.buffer));
        }
      }
      const context = new OfflineAudioContext(1, samples.length, done.sampling_rate);
      const buffer = context.createBuffer(1, samples.length, done.sampling_rate);
      buffer.getChannelData(0).set(samples.map((sample) => sample / 32768));
      const source = new AudioBufferSourceNode(context, { buffer });
      source.connect(context.destination);
      source.start();
      const heard = (await context.startRendering()).getChannelData(0);
      return { pieces, seconds: heard.length / done.sampling_rate, loudest: Math.max(...heard), done };
    }"""
    with chromium() as browser:
        page = browser.new_page()
        page.set_default_timeout(180_000)
        page.goto(f"{server.url}/docs")
        found = page.evaluate(script, server.url)
    assert found["done"]["success"] is True
    assert found["seconds"] == pytest.approx(found["done"]["duration"], abs=0.001)
    assert found["pieces"] >= 2
    assert found["loudest"] > 0.01


@pytest.mark.parametrize("test", ["basic", "voice-clone", "streaming"])
def test_the_test_client(server: ServerProcess, test: str) -> None:
    command = [sys.executable, "-m", "streaming_server.cli", "test", "--test", test, "--url", server.url + "/"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, check=False, text=True, timeout=180)
    assert result.returncode == 0, result.stderr
    expected = {"basic": FEATURES[3], "voice-clone": "voice belinda", "streaming": "first audio after"}
    assert expected[test] in result.stdout
    assert "s of audio" in result.stdout


def test_the_log_is_kept_in_a_file_too(server: ServerProcess, data: Path) -> None:
    requests.get(f"{server.url}/info", headers={"X-Request-Id": "kept-in-a-file"}, timeout=120)
    log = data / "api_server.log"
    eventually(lambda: "kept-in-a-file" in log.read_text())
    assert all(json.loads(line)["time"] for line in log.read_text().splitlines())
    eventually(lambda: any("kept-in-a-file" in line for line in list(server.log)))


def test_a_name_that_cannot_be_had_does_not_start(tmp_path: Path) -> None:
    flags = ["--engine", "higgs", "--model-path", str(tmp_path)]
    command = [sys.executable, "-m", "streaming_server.cli", "serve", *flags]
    with (
        pytest.raises(AssertionError, match=r"MODEL_PATH=.*: the folder has no config\.json") as caught,
        server_process(*command),
    ):
        pass
    assert "Traceback" not in str(caught.value)
