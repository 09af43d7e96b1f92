"""The ElevenLabs dialect over HTTP, and unmodified clients of it with another base URL."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from elevenlabs import VoiceSettings
from elevenlabs.client import ElevenLabs
from elevenlabs.core.api_error import ApiError

from streaming_server.api.elevenlabs.formats import OUTPUT_FORMATS
from streaming_server.audio.g711 import G711Encoder, Law
from streaming_server.audio.pcm import to_int16
from streaming_server.domain import AudioChunk, Capability, Mark, Voice
from streaming_server.engines.base import EngineInfo
from tests.support.decoders import ffmpeg_decode, ffprobe
from tests.support.fakes import RATE_HZ, FakeEngine, tone
from tests.support.server import LiveServer, running
from tests.support.tls import certificate, tls_in_front

ROOT = Path(__file__).parents[2]
SPEECH = "/v1/text-to-speech/voice_01"
TEXT = "One two. Three"


def speaking_texts(**options: Any) -> FakeEngine:
    return FakeEngine(lambda request: [tone(len(request.text) / 20, 440.0)], **options)


class MeasuringEngine(FakeEngine):
    """Says when the last word of each text begins."""

    async def stream(self, request: Any) -> Any:
        async for chunk in super().stream(request):
            yield AudioChunk(chunk.samples, [Mark(request.text.rfind(" ") + 1, 0.3)])


@pytest.fixture(scope="module")
def server() -> Iterator[LiveServer]:
    with running(speaking_texts(), api_keys=("secret",)) as live:
        live.client.headers["xi-api-key"] = "secret"
        yield live


@pytest.fixture(scope="module")
def sdk(server: LiveServer) -> Iterator[ElevenLabs]:
    with httpx.Client(timeout=180) as client:
        yield ElevenLabs(base_url=f"http://127.0.0.1:{server.port}", api_key="secret", httpx_client=client)


@pytest.mark.parametrize("name", OUTPUT_FORMATS)
def test_every_output_format_is_decoded_by_ffmpeg(sdk: ElevenLabs, name: str) -> None:
    content = b"".join(sdk.text_to_speech.convert("voice_01", text="Ten letter", output_format=name))
    kind, rate, *bitrate = name.split("_")
    rate_hz = int(rate)
    if kind == "pcm":
        samples = np.frombuffer(content, "<i2")
    elif kind in {"ulaw", "alaw"}:
        form = {"ulaw": "mulaw", "alaw": "alaw"}[kind]
        command = ["ffmpeg", "-v", "error", "-f", form, "-ar", rate, "-ac", "1", "-i", "-", "-f", "s16le", "-"]
        samples = np.frombuffer(subprocess.run(command, input=content, capture_output=True, check=True).stdout, "<i2")
    else:
        probed = ffprobe(content)
        assert probed["codec_name"] == {"mp3": "mp3", "wav": "pcm_s16le", "opus": "opus"}[kind]
        assert probed["sample_rate"] == rate
        samples = ffmpeg_decode(content, rate_hz)
    if kind == "mp3" and bitrate:
        assert len(content) * 8 / (samples.size / rate_hz) == pytest.approx(int(bitrate[0]) * 1000, rel=0.05)
    assert samples.size / rate_hz == pytest.approx(0.5, abs=0.12)
    crossings = np.count_nonzero(np.diff(np.signbit(samples[samples.size // 4 : samples.size // 2])))
    assert crossings / 2 / (samples.size / 4 / rate_hz) == pytest.approx(440, rel=0.05)


@pytest.mark.parametrize(("law", "codec"), [("ulaw", "pcm_mulaw"), ("alaw", "pcm_alaw")])
def test_telephone_codes_are_ffmpegs_for_every_sample(law: Law, codec: str) -> None:
    samples = np.arange(65536, dtype=np.uint16).view(np.int16)
    encoder = G711Encoder(law)
    ours = encoder.start(8000) + encoder.push(samples) + encoder.finish()
    form = ["-f", "s16le", "-ar", "8000", "-ac", "1"]
    decode = ["ffmpeg", "-v", "error", "-f", codec[4:], "-ar", "8000", "-ac", "1", "-i", "-", *form, "-"]
    decoded = np.frombuffer(subprocess.run(decode, input=ours, capture_output=True, check=True).stdout, "<i2")
    step = np.maximum(np.abs(samples.astype(int)) / 16, 16)
    assert (np.abs(decoded.astype(int) - samples) <= step).all()


def test_a_language_includes_its_regions() -> None:
    presets = tuple(Voice(name, is_preset=True, languages=(name,)) for name in ("en-US", "en-GB", "pt-BR"))

    class Regional(FakeEngine):
        @property
        def info(self) -> EngineInfo:
            return replace(super().info, presets=presets)

    with running(Regional(lambda _: [tone(0.1)])) as server:
        for wanted, expected in (("en", {"en-US", "en-GB"}), ("EN-us", {"en-US"}), ("pt", {"pt-BR"}), ("e", set())):
            found = server.get("/v2/voices", params={"language": wanted, "page_size": 100}).json()["voices"]
            assert {voice["voice_id"] for voice in found} & {preset.name for preset in presets} == expected


def test_the_sdk_lists_voices_models_and_the_account(server: LiveServer, sdk: ElevenLabs) -> None:
    voices = sdk.voices.get_all().voices
    assert [voice.voice_id for voice in voices][:2] == ["voice_01", "voice_02"]
    assert voices[1].preview_url
    assert server.get(voices[1].preview_url).content == (ROOT / "reference_audios/voice_02.wav").read_bytes()
    page = sdk.voices.search(page_size=2)
    assert (len(page.voices), page.has_more, page.total_count) == (2, True, len(voices))
    following = sdk.voices.search(page_size=2, next_page_token=page.next_page_token)
    assert [voice.voice_id for voice in following.voices] == ["voice_03", "voice_04"]
    assert [voice.voice_id for voice in sdk.voices.search(search="_05").voices] == ["voice_05"]
    women = sdk.voices.search(gender="Female", page_size=100).voices
    assert {voice.labels["gender"] for voice in women} == {"female"}
    assert len(sdk.voices.search(language=["de", "EN"], page_size=100).voices) == len(voices)
    assert not sdk.voices.search(language="de").voices
    assert sdk.voices.get("voice_03").category == "premade"
    models = sdk.models.list()
    assert [model.model_id for model in models][:2] == ["fake", "eleven_flash_v2_5"]
    assert models[0].can_do_text_to_speech
    assert sdk.user.subscription.get().status == "active"


def test_models_without_the_header_are_openais(server: LiveServer) -> None:
    del server.client.headers["xi-api-key"]
    listed = server.get("/v1/models", headers={"Authorization": "Bearer secret"}).json()
    server.client.headers["xi-api-key"] = "secret"
    assert listed["object"] == "list"


def test_streams_are_the_same_audio_as_in_other_dialects(server: LiveServer, sdk: ElevenLabs) -> None:
    format_ = f"pcm_{RATE_HZ}"
    given = b"".join(sdk.text_to_speech.stream("voice_01", text=TEXT, output_format=format_))
    assert given == server.post("/synthesize_stream", {"text": TEXT}).content == to_int16(tone(0.7, 440.0)).tobytes()


def test_the_speed_is_honoured_and_what_is_not_is_named(server: LiveServer, sdk: ElevenLabs) -> None:
    settings = {"speed": 2.0, "stability": 0.5, "style": None, "use_speaker_boost": True}
    body = {"text": "x" * 40, "voice_settings": settings, "seed": 3, "language_code": "en", "previous_text": "No."}
    response = server.post(f"{SPEECH}?output_format=pcm_16000", body)
    ignored = "voice_settings.stability, voice_settings.use_speaker_boost, seed, language_code"
    assert response.headers["x-ignored-settings"] == ignored
    assert len(response.content) / 2 / 16000 == pytest.approx(1.0, abs=0.05)
    plain = sdk.text_to_speech.with_raw_response.convert("voice_01", text="a", voice_settings=VoiceSettings(speed=1.0))
    with plain as answer:
        assert "x-ignored-settings" not in answer.headers


def test_the_length_is_checked_before_the_tags(server: LiveServer) -> None:
    """Reading the tags of any length would hold up all others."""
    response = server.post(SPEECH, {"text": '<break time="99s"/>' + "<" * 100_000})
    assert response.json()["detail"]["status"] == "text_too_long"


def test_tags_in_a_text_are_pauses_and_phonemes(server: LiveServer) -> None:
    text = 'One <break time="1s"/><phoneme alphabet="cmu-arpabet" ph="T UW1">two</phoneme>'
    response = server.post(f"{SPEECH}/with-timestamps?output_format=pcm_24000", {"text": text})
    assert response.headers["x-ignored-settings"] == "ssml.phoneme"
    found = response.json()
    assert "".join(found["alignment"]["characters"]).split() == ["One", "two"]
    assert len(base64.b64decode(found["audio_base64"])) == 48000 + 48000 * (4 + 3) // 20
    refused = server.post(SPEECH, {"text": '<break time="11s"/>'})
    assert (refused.status_code, "0-10 s" in refused.json()["detail"]["message"]) == (400, True)


def test_stability_lowers_the_temperature_of_an_engine_that_samples() -> None:
    engine = speaking_texts(capabilities=frozenset({Capability.GENERATION_PARAMETERS}))
    with running(engine) as live:
        for stability in (0.0, 0.5, 1.0):
            response = live.post(SPEECH, {"text": "a", "voice_settings": {"stability": stability}})
            assert "x-ignored-settings" not in response.headers
    cold, usual, hot = sorted(request.generation.temperature for request in engine.requests)
    assert cold < usual < hot
    assert usual == pytest.approx(1.2)


def test_times_of_characters(sdk: ElevenLabs) -> None:
    whole = sdk.text_to_speech.convert_with_timestamps("voice_01", text=TEXT, output_format="pcm_24000")
    assert whole.alignment is not None
    assert whole.alignment == whole.normalized_alignment
    assert "".join(whole.alignment.characters) == "One two. Three "
    starts, ends = whole.alignment.character_start_times_seconds, whole.alignment.character_end_times_seconds
    assert starts[0] == 0
    assert starts[1:] == sorted(starts[1:])
    assert ends[7] == pytest.approx(0.4)
    assert starts[9] == pytest.approx(0.78)  # behind the pause between the sentences
    seconds = len(base64.b64decode(whole.audio_base_64)) / 2 / 24000
    assert ends[-1] == pytest.approx(seconds, abs=0.001)
    lines = list(sdk.text_to_speech.stream_with_timestamps("voice_01", text=TEXT, output_format="pcm_24000"))
    timed = [line.alignment for line in lines if line.alignment]
    assert ["".join(alignment.characters) for alignment in timed] == ["One two. ", "Three "]
    assert [*timed[0].character_start_times_seconds, *timed[1].character_start_times_seconds] == starts
    assert b"".join(base64.b64decode(line.audio_base_64) for line in lines) == base64.b64decode(whole.audio_base_64)


def test_line_separators_in_a_text_lose_no_line(sdk: ElevenLabs) -> None:
    asked: Any = {"voice_id": "voice_01", "text": "One\u2028two. Three\u2029four.", "output_format": "pcm_24000"}
    lines = list(sdk.text_to_speech.stream_with_timestamps(**asked))
    whole = sdk.text_to_speech.convert_with_timestamps(**asked)
    assert b"".join(base64.b64decode(line.audio_base_64) for line in lines) == base64.b64decode(whole.audio_base_64)


def test_the_precision_is_stated() -> None:
    engines = {"segment": speaking_texts(), "engine": MeasuringEngine(lambda _: [tone(0.5)])}
    for precision, engine in engines.items():
        with running(engine) as live:
            body = live.post(f"{SPEECH}/with-timestamps", {"text": "One two"}).json()
        assert body["alignment_precision"] == precision
        begin = body["alignment"]["character_start_times_seconds"][4]
        assert begin == (0.3 if precision == "engine" else 0.2)


@pytest.mark.parametrize(
    ("arguments", "status", "word"),
    [
        ({"voice_id": "nobody", "text": "a"}, 404, "voice_not_found"),
        ({"text": " "}, 400, "text_empty"),
        ({"text": "x" * 20001}, 400, "text_too_long"),
        ({"text": "a", "output_format": "mp3_1"}, 400, "invalid_output_format"),
        ({"text": "a", "voice_settings": VoiceSettings(speed=9.0)}, 400, "invalid_voice_settings"),
    ],
)
def test_errors_are_in_the_dialects_shape(sdk: ElevenLabs, arguments: dict[str, Any], status: int, word: str) -> None:
    with pytest.raises(ApiError) as refused:
        b"".join(sdk.text_to_speech.convert(**{"voice_id": "voice_01"} | arguments))
    assert refused.value.status_code == status
    assert refused.value.body["detail"]["status"] == word
    assert refused.value.body["detail"]["message"].isascii()


def test_other_refusals(server: LiveServer) -> None:
    broken = server.post(SPEECH, {"text": 3})
    assert (broken.status_code, broken.json()["detail"][0]["loc"]) == (422, ["body", "text"])
    wrong = server.post(SPEECH, {"text": "a"}, headers={"xi-api-key": "wrong"})
    assert (wrong.status_code, wrong.json()["detail"]["status"]) == (401, "invalid_api_key")
    assert server.get("/v1/voices/nobody").json()["detail"]["status"] == "voice_not_found"
    dialogue = server.post("/v1/text-to-dialogue/stream", {"inputs": []})
    assert (dialogue.status_code, dialogue.json()["detail"]["status"]) == (404, "not_found")
    assert server.get("/v2/voices?page_size=101").status_code == 422


def test_the_realtime_sdk_over_tls(server: LiveServer, tmp_path: Path) -> None:
    path = certificate(tmp_path)
    program = (
        "import sys; from functools import partial; import elevenlabs.realtime_tts as realtime; "
        "from elevenlabs.client import ElevenLabs; "
        "realtime.connect = partial(realtime.connect, open_timeout=180, ping_interval=None); "
        "client = ElevenLabs(base_url=sys.argv[1], api_key='secret'); "
        "words = iter(['Every ', 'ship ', 'waved. ', 'Then ', 'it ', 'was ', 'quiet.']); "
        "audio = client.text_to_speech.convert_realtime('voice_01', text=words, output_format='pcm_24000'); "
        "print(sum(map(len, audio)) / 48000)"
    )
    with tls_in_front(server.port, path) as port:
        command = [sys.executable, "-c", program, f"https://localhost:{port}"]
        environment = os.environ | {"SSL_CERT_FILE": str(path)}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=600)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) == pytest.approx((len("Every ship waved.") + len("Then it was quiet.")) / 20 + 0.38)


def test_livekits_plugins(server: LiveServer) -> None:
    command = [sys.executable, str(ROOT / "tests/support/livekit_client.py"), str(server.port)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=600)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["voices"][0] == "voice_01"
    hello_s = len("Hello from LiveKit.") / 20
    assert found["whole_s"] == pytest.approx(hello_s, abs=0.15)
    assert found["tts-1"] == pytest.approx(hello_s, abs=0.15)
    assert found["gpt-4o-mini-tts"] == pytest.approx(hello_s, abs=0.15)
    sentences = ["The fog lifted over the bay.", "Every ship waved back,", "and then it was quiet."]
    assert found["stream_s"] == pytest.approx(sum(map(len, sentences)) / 20 + 0.38 + 0.12, abs=0.2)
    assert [word.strip() for word, _ in found["words"]] == " ".join(sentences).split()
    times = [time_s for _, time_s in found["words"]]
    assert times == sorted(times)
    assert found["next_s"] == pytest.approx(len("The next turn.") / 20, abs=0.15)


def test_pipecats_services(server: LiveServer) -> None:
    command = [sys.executable, str(ROOT / "tests/support/pipecat_client.py"), str(server.port)]
    environment = os.environ | {"PYTHONPATH": str(ROOT / ".venv/pipecat")}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=600)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    texts = ["Hello from pipecat.", "Every ship waved back."]
    words = " ".join(texts).split()
    both_s, last_s = len("".join(texts)) / 20, len(texts[1]) / 20
    for name in ("openai", "realtime", "http"):
        assert found[name]["seconds"] == pytest.approx(both_s, abs=0.1), name
    assert found["openai"]["words"] == texts
    for name in ("realtime", "http"):
        assert found[name]["words"] == words
        assert found[name]["times"] == sorted(found[name]["times"])
    # However much of the long turn was heard before the interruption, it ends there and the next turn is whole.
    assert found["interrupted"]["words"][-4:] == texts[1].split()
    assert last_s - 0.1 < found["interrupted"]["seconds"] < 100
