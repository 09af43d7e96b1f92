"""The HiggsAudio contract over real sockets: files, events, uploads, dialogues, errors."""

from __future__ import annotations

import base64
import io
import json
import socket
import threading
import wave
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from streaming_server.audio.decode import decode_native
from streaming_server.audio.pcm import to_float32, to_int16
from streaming_server.audio.pitch import median_pitch_hz
from streaming_server.cli import main
from streaming_server.domain import FloatSamples, SpeechRequest
from streaming_server.text import pause_s
from tests.support.digits import DIGITS, STRINGS, agreement, recognise_digits
from tests.support.fakes import FOREVER, Gate, Step, tone
from tests.support.server import RECORDINGS, LiveServer, RawClient, eventually, running, speaking

EXAMPLES = Path(__file__).parents[2] / "examples"
GENERATE, STREAM, UPLOAD = "/generate", "/generate-stream", "/generate-upload"


def start(folder: Path, **settings: Any) -> dict[str, Any]:
    return {
        "data_dir": folder,
        "voice_prompts_dir": EXAMPLES / "voice_prompts",
        "scene_prompts_dir": EXAMPLES / "scene_prompts",
        **settings,
    }


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("data")


@pytest.fixture(scope="module")
def speaker(data: Path) -> Iterator[LiveServer]:
    """A server with a real engine."""
    with running(**start(data)) as live:
        yield live


@pytest.fixture(scope="module")
def server(data: Path) -> Iterator[LiveServer]:
    """A server that returns one second of a tone."""
    with running(speaking(*[tone(0.25)] * 4), **start(data)) as live:
        yield live


def wav_of(answer: dict[str, Any]) -> tuple[FloatSamples, int]:
    with wave.open(io.BytesIO(base64.b64decode(answer["audio_base64"], validate=True))) as file:
        assert (file.getnchannels(), file.getsampwidth(), file.getframerate()) == (1, 2, answer["sampling_rate"])
        samples = np.frombuffer(file.readframes(file.getnframes()), "<i2").astype(np.int16)
        assert file.getnframes() == samples.size
        return to_float32(samples), file.getframerate()


def pitch_of(name: str) -> float:
    """Median pitch of a reference recording, in Hz."""
    return median_pitch_hz(*decode_native(RECORDINGS / f"{name}.wav")) or 0.0


def events_of(text: str) -> list[dict[str, Any]]:
    lines = [line for line in text.split("\n") if line]
    assert all(line.startswith("data: ") for line in lines)
    return [json.loads(line[6:]) for line in lines]


def pcm_of(events: list[dict[str, Any]]) -> bytes:
    return b"".join(base64.b64decode(event["audio_base64"]) for event in events if event["type"] == "audio")


def test_info_claims_what_the_engine_has_and_no_more(speaker: LiveServer) -> None:
    assert speaker.get("/info").json() == {
        "model_name": "hibari",
        "device": "cpu",
        "is_loaded": True,
        "max_new_tokens": 2048,
        "supported_features": ["单说话人音频生成", "多说话人音频生成", "流式生成"],
    }


def test_voices_and_scenes(server: LiveServer) -> None:
    voices = server.get("/voices").json()
    assert voices["voices"][0] == {
        "name": "belinda",
        "file": (EXAMPLES / "voice_prompts" / "belinda.wav").as_posix(),
        "type": "wav",
    }
    assert [voice["name"] for voice in voices["voices"][1:]] == [f"voice_{number:02}" for number in range(1, 12)]
    assert voices["count"] == 12
    scenes = server.get("/scenes").json()
    file = EXAMPLES / "scene_prompts" / "quiet_indoor.txt"
    assert scenes == {
        "scenes": [{"name": "quiet_indoor", "content": file.read_text().strip(), "file": file.as_posix()}],
        "count": 1,
    }


def test_the_native_list_does_not_know_the_prompts(server: LiveServer) -> None:
    assert server.get("/reference_audios").json()["total_count"] == 11


def test_generate_answers_with_a_wav_in_json(server: LiveServer) -> None:
    response = server.post(GENERATE, {"text": "你好"})
    assert response.headers["content-type"] == "application/json"
    answer = response.json()
    samples, rate_hz = wav_of(answer)
    assert (rate_hz, samples.size) == (24000, 24000)
    assert to_int16(samples).tobytes() == to_int16(tone(0.25)).tobytes() * 4
    del answer["audio_base64"]
    assert answer == {
        "success": True,
        "message": "音频生成成功",
        "sampling_rate": 24000,
        "duration": 1.0,
        "generated_text": "你好",
    }


def test_a_seed_that_the_engine_ignores_is_named(server: LiveServer) -> None:
    answer = server.post(GENERATE, {"text": "a", "seed": 1}).json()
    *_, done = events_of(server.post(STREAM, {"text": "a", "seed": 1}).text)
    assert answer["seed_ignored"] is done["seed_ignored"] is True
    with running() as live:
        answers = [live.post(GENERATE, {"text": "Hello.", "seed": seed}).json() for seed in (1, 1)]
    assert "seed_ignored" not in answers[0]
    assert answers[0]["audio_base64"] == answers[1]["audio_base64"]


@pytest.mark.parametrize("samples", [0, 1, 2, 3, 100_003])
def test_any_length_is_valid_base64(samples: int) -> None:
    audio = tone(samples / 24000)
    with running(speaking(audio)) as live:
        assert wav_of(live.post(GENERATE, {"text": "a"}).json())[0].size == samples


def test_the_fields_reach_the_engine(server: LiveServer) -> None:
    body = {
        "text": "a",
        "ref_audio": "voice_03",
        "temperature": 0,
        "top_k": 7,
        "top_p": 0.5,
        "max_new_tokens": 99,
        "seed": 5,
        "ras_win_len": 3,
        "ras_win_max_num_repeat": 4,
        "generation_chunk_buffer_size": 1,
    }
    server.post(GENERATE, body)
    request = server.engine.requests[-1]
    generation = request.generation
    assert request.voice.name == "voice_03"
    assert not request.own_voices
    assert (generation.do_sample, generation.top_k, generation.top_p) == (False, 7, 0.5)
    assert (generation.max_mel_tokens, generation.seed) == (99, 5)
    assert (generation.ras_window, generation.ras_repeats, generation.context_pieces) == (3, 4, 1)
    assert "quiet indoor" in request.scene
    server.post(GENERATE, {"text": "a", "scene_prompt": None, "ras_win_len": -1})
    request = server.engine.requests[-1]
    assert (request.voice.name, request.own_voices, request.scene) == ("belinda", True, "")
    assert (request.generation.do_sample, request.generation.temperature, request.generation.top_k) == (True, 0.7, 50)
    assert (request.generation.max_mel_tokens, request.generation.ras_window) == (800, 0)  # 2048, but for the engine


def test_what_an_engine_cannot_do_is_logged(speaker: LiveServer, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    speaker.post(GENERATE, {"text": "a"})
    messages = [record.message for record in caplog.records]
    assert "capability missing: the hibari engine has no scene; the option is ignored" in messages
    assert "capability missing: the hibari engine has no smart_voice; the option is ignored" in messages


def test_events(server: LiveServer) -> None:
    response = server.post(STREAM, {"text": "hello"})
    assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
    events = events_of(response.text)
    audio = [event for event in events if event["type"] == "audio"]
    assert [event["index"] for event in audio] == list(range(len(audio)))
    assert {event["sampling_rate"] for event in audio} == {24000}
    assert pcm_of(events) == to_int16(tone(0.25)).tobytes() * 4
    progress = [event["progress"] for event in events if event["type"] == "progress"]
    assert progress == sorted(progress)
    assert (progress[0], progress[-1]) == (0.0, 1.0)
    assert all(set(event) == {"type", "progress", "message"} for event in events if event["type"] == "progress")
    assert events[-1] == {
        "type": "done",
        "success": True,
        "duration": 1.0,
        "sampling_rate": 24000,
        "generated_text": "hello",
    }


def test_the_first_event_comes_long_before_the_last() -> None:
    rest = Gate()
    with (
        running(speaking(tone(0.5), rest, tone(0.5))) as live,
        live.client.stream("POST", STREAM, json={"text": "a"}) as response,
    ):
        pieces = response.iter_text()
        received = ""
        while '"type": "audio"' not in received:
            received += next(pieces)
        assert '"type": "done"' not in received
        rest.open()
        assert '"type": "done"' in "".join(pieces)


def test_a_failure_in_the_middle_is_an_event_behind_the_audio_before_it() -> None:
    with running(speaking(tone(0.5), ValueError("/secret/path"))) as live:
        events = events_of(live.post(STREAM, {"text": "a"}).text)
        assert len(pcm_of(events)) == 24000
        assert events[-1]["type"] == "error"
        assert events[-1]["success"] is False
        assert "secret" not in events[-1]["message"]
        assert set(events[-1]) == {"type", "success", "message"}
        eventually(lambda: not live.queue()["is_processing"])


@pytest.mark.parametrize("path", [GENERATE, STREAM])
def test_a_failure_before_the_first_audio_is_a_status(path: str) -> None:
    with running(speaking(ValueError("/secret/path"))) as live:
        refused = live.post(path, {"text": "a"})
        assert refused.status_code == 500
        assert set(refused.json()) == {"success", "message"}
        assert "secret" not in refused.text


@pytest.mark.parametrize("path", [GENERATE, STREAM])
def test_a_client_that_goes_away_frees_the_slot(path: str) -> None:
    with running(speaking(tone(0.5), FOREVER)) as live:
        client = RawClient(live.port, path, {"text": "a"})
        eventually(lambda: live.queue()["is_processing"])
        if path == STREAM:
            client.read()
        client.close()
        eventually(lambda: not live.queue()["is_processing"])


def test_a_full_queue_says_when_to_come_back() -> None:
    with running(speaking(tone(0.1), FOREVER), max_queue=0) as live:
        holding = RawClient(live.port, STREAM, {"text": "a"})
        holding.read()
        refused = live.post(GENERATE, {"text": "a"})
        assert refused.status_code == 503
        assert set(refused.json()) == {"success", "message"}
        assert int(refused.headers["retry-after"]) >= 1
        holding.close()


# Dialogues.


def test_the_slot_is_held_once_for_a_whole_dialogue() -> None:
    # Somebody else who waits would come between two turns if it were given back there.
    gate = Gate()
    with running(speaking(tone(0.05), gate)) as live:
        answers: list[httpx.Response] = []
        text = "[SPEAKER0] one [SPEAKER1] two [SPEAKER0] three"
        first = threading.Thread(target=lambda: answers.append(live.post(GENERATE, {"text": text})))
        first.start()
        eventually(lambda: live.queue()["is_processing"])
        second = threading.Thread(target=lambda: answers.append(live.post("/synthesize", {"text": "between"})))
        second.start()
        eventually(lambda: len(live.service.slot.status().waiting) == 1)
        gate.open()
        for thread in (first, second):
            thread.join()
        assert [request.text for request in live.engine.requests] == ["one", "two", "three", "between"]
        assert [answer.status_code for answer in answers] == [200, 200]


def test_a_dialogue_of_two_voices_is_understood_turn_by_turn(speaker: LiveServer) -> None:
    voices = {name: pitch_of(name) for name in ("voice_03", "voice_05")}
    right, wrong = [], []
    for first, second in pairwise(STRINGS):
        turns = [". ".join(DIGITS[int(digit)] for digit in digits) + "." for digits in (first, second)]
        alone = [
            wav_of(speaker.post(GENERATE, {"text": text, "ref_audio": name}).json())[0]
            for text, name in zip(turns, voices, strict=True)
        ]
        text = f"[SPEAKER0] {turns[0]}\n[SPEAKER1] {turns[1]}"
        events = events_of(speaker.post(STREAM, {"text": text, "ref_audio": ",".join(voices)}).text)
        whole = to_float32(np.frombuffer(pcm_of(events), "<i2").astype(np.int16))
        pause = round(0.38 * 24000)
        assert whole.size == pytest.approx(sum(part.size for part in alone) + pause, abs=10)
        heard = whole[: alone[0].size], whole[alone[0].size + pause :]
        for part, digits, other, pitch_hz in zip(heard, (first, second), (second, first), voices.values(), strict=True):
            assert median_pitch_hz(part, 24000) == pytest.approx(pitch_hz, rel=0.2)
            understood = recognise_digits(part, 24000, len(digits))
            right.append(agreement(understood, digits))
            wrong.append(agreement(understood, other))
    assert np.mean(right) >= 0.8
    assert np.mean(wrong) <= 0.2


def test_voices_are_assigned_in_a_fixed_order(server: LiveServer) -> None:
    for _ in range(2):
        server.post(GENERATE, {"text": "[SPEAKER2] c [SPEAKER0] a [SPEAKER1] b"})
        assert [asked.voice.name for asked in server.engine.requests[-3:]] == ["voice_02", "belinda", "voice_01"]


def test_cutting_is_as_the_fields_say(server: LiveServer) -> None:
    body = {"text": "[SPEAKER0] one two three [SPEAKER1] four", "chunk_method": "word", "chunk_max_word_num": 2}
    before = len(server.engine.requests)
    server.post(GENERATE, body)
    asked = [(request.text, request.voice.name) for request in server.engine.requests[before:]]
    assert asked == [("one two", "belinda"), ("three", "belinda"), ("four", "voice_01")]


def test_a_thousand_turns_are_one_stream() -> None:
    text = "".join(f"[SPEAKER{number % 2}] {number}\n" for number in range(1000))
    with running(speaking(tone(0.05))) as live:
        answer = live.post(GENERATE, {"text": text}).json()
        assert answer["generated_text"] == text
        assert answer["duration"] == pytest.approx(1000 * 0.05 + 999 * pause_s("."), abs=0.01)


@pytest.mark.parametrize("dialect", ["native", "openai", "tts"])
def test_other_dialects_understand_tags_where_a_setting_says_so(dialect: str) -> None:
    text = "[SPEAKER0] a [SPEAKER1] b"
    calls: dict[str, tuple[str, dict[str, Any]]] = {
        "native": ("/synthesize", {"text": text, "reference_audio_index": 4}),
        "openai": ("/v1/audio/speech", {"model": "m", "input": text, "voice": "nova", "response_format": "pcm"}),
        "tts": ("/tts", {"text": text, "character": "nova"}),
    }
    path, body = calls[dialect]
    for setting, asked in (
        (True, [("a", "voice_05"), ("b", "voice_01")]),
        (False, [(text, "voice_05")]),
    ):
        with running(speaking(tone(0.1)), dialogue=setting) as live:
            assert live.post(path, body).status_code == 200
            assert [(request.text, request.voice.name) for request in live.engine.requests] == asked


def test_openai_clients_can_name_a_voice_for_each_speaker() -> None:
    body = {"model": "m", "input": "[SPEAKER0] a [SPEAKER1] b", "voice": "nova, sage"}
    with running(speaking(tone(0.1)), dialogue=True) as live:
        assert live.post("/v1/audio/speech", body).status_code == 200
        assert [request.voice.name for request in live.engine.requests] == ["voice_05", "voice_10"]
        refused = live.post("/v1/audio/speech", body | {"input": "[SPEAKER2] a"})
        assert (refused.status_code, refused.json()["error"]["param"]) == (400, "input")
        assert live.post("/synthesize", {"text": "[SPEAKER99] a"}).status_code == 422


# Uploads.


def upload(live: LiveServer, content: bytes | None, **fields: Any) -> httpx.Response:
    files = {"ref_audio_file": ("../../etc/passwd", content)} if content is not None else {"other": ("", b"")}
    return live.client.post(UPLOAD, data={"text": "Hello there.", **fields}, files=files)


def test_no_limit_of_candidates(server: LiveServer) -> None:
    server.post(GENERATE, {"text": "a", "top_k": None}).raise_for_status()
    assert server.engine.requests[-1].generation.top_k == 0
    upload(server, (RECORDINGS / "voice_01.wav").read_bytes(), top_k="null", seed="null").raise_for_status()
    assert (server.engine.requests[-1].generation.top_k, server.engine.requests[-1].generation.seed) == (0, None)


def test_the_test_client_runs_all_unless_told_which(server: LiveServer, capsys: pytest.CaptureFixture[str]) -> None:
    url = f"http://127.0.0.1:{server.port}"
    assert main(["test", "--url", url]) == 0
    shown = capsys.readouterr().out
    for expected in ("model fake", "voice belinda", "first audio after"):
        assert expected in shown
    assert main(["test", "--url", url, "--test", "voice-clone"]) == 0
    shown = capsys.readouterr().out
    assert "voice belinda" in shown
    assert "model fake" not in shown


def test_the_test_client_sends_its_key(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    with running(speaking(tone(0.1)), api_keys=("secret",)) as live:
        basic = ["test", "--url", f"http://127.0.0.1:{live.port}", "--test", "basic"]
        assert main(basic) == 1
        assert "/info: 401" in capsys.readouterr().err
        assert main([*basic, "--api-key", "secret"]) == 0
        monkeypatch.setenv("API_KEYS", "secret, another")
        assert main(basic) == 0


def test_an_uploaded_recording_is_the_voice_and_is_gone_afterwards(speaker: LiveServer, data: Path) -> None:
    pitches = {}
    for name in ("voice_03", "voice_05"):
        response = upload(speaker, (RECORDINGS / f"{name}.wav").read_bytes(), seed="3", temperature="0.5")
        assert response.status_code == 200, response.text
        pitches[name] = median_pitch_hz(*wav_of(response.json()))
    assert pitches["voice_03"] == pytest.approx(pitch_of("voice_03"), rel=0.2)
    assert pitches["voice_05"] == pytest.approx(pitch_of("voice_05"), rel=0.2)
    eventually(lambda: temporary(data) == [])


def test_fields_of_a_form(server: LiveServer, data: Path) -> None:
    recording = (RECORDINGS / "voice_01.wav").read_bytes()
    upload(server, recording, temperature="0.25", top_k="3", top_p="0.5", max_new_tokens="44", seed="-7")
    request = server.engine.requests[-1]
    generation = request.generation
    assert (generation.temperature, generation.top_k, generation.top_p) == (0.25, 3, 0.5)
    assert (generation.max_mel_tokens, generation.seed) == (44, -7)
    assert request.voice.path.is_relative_to(data / "scratch")
    assert server.post(GENERATE, {"text": "a"}).status_code == 200
    assert upload(server, None).status_code == 200
    assert server.engine.requests[-1].voice.name == "belinda"


def test_an_empty_name_is_no_preset(speaker: LiveServer) -> None:
    """A preset has no file, whose name would be empty."""
    refused = speaker.post(GENERATE, {"text": "[SPEAKER0] a [SPEAKER1] b", "ref_audio": "belinda,"})
    assert refused.status_code == 404, refused.text[:200]
    assert "unknown ref_audio ''" in refused.json()["message"]


def test_a_form_with_blank_inputs(server: LiveServer) -> None:
    """As a browser and FastAPI have it: a blank field is one that was not sent."""
    assert upload(server, None, seed="", top_k="", temperature="", max_new_tokens="").status_code == 200
    generation = server.engine.requests[-1].generation
    assert (generation.seed, generation.top_k, generation.temperature) == (None, 50, 0.7)


def test_of_a_repeated_part_the_last_one_counts(server: LiveServer, monkeypatch: pytest.MonkeyPatch) -> None:
    heard = []

    def listen(request: SpeechRequest) -> list[Step]:
        heard.append(request.voice.path.read_bytes())
        return [tone(0.1)]

    monkeypatch.setattr(server.engine, "script", listen)
    parts: list[tuple[str, tuple[str | None, bytes]]] = [
        ("text", (None, b"Hello.")),
        ("ref_audio_file", ("a.wav", (RECORDINGS / "voice_01.wav").read_bytes())),
        ("text", (None, b"World.")),
        ("ref_audio_file", ("b.wav", (RECORDINGS / "voice_02.wav").read_bytes())),
    ]
    assert server.client.post(UPLOAD, files=parts).status_code == 200
    assert server.engine.requests[-1].text == "World."
    assert heard == [(RECORDINGS / "voice_02.wav").read_bytes()]


def test_a_form_without_a_file_may_be_url_encoded(server: LiveServer) -> None:
    answer = server.client.post(UPLOAD, data={"text": "你好 & 再见", "seed": "7", "top_k": ""})
    assert answer.status_code == 200, answer.text
    request = server.engine.requests[-1]
    assert (request.text, request.generation.seed, request.generation.top_k) == ("你好 & 再见", 7, 50)
    for content, sentence in ((b"text=%FF", "UTF-8"), (b"a&" * 99, "max number"), (b"", "text"), (b"text=", "blank")):
        kind = {"Content-Type": "application/x-www-form-urlencoded"}
        refused = server.client.post(UPLOAD, content=content, headers=kind)
        assert refused.status_code in {400, 422}
        assert sentence.lower() in refused.json()["message"].lower(), refused.text


@pytest.mark.parametrize(
    ("content", "fields", "status", "sentence"),
    [
        (b"", {}, 422, "ref_audio_file"),
        (b"no audio" * 100, {}, 422, "ref_audio_file: the file is not a recording"),
        ((RECORDINGS / "voice_01.wav").read_bytes()[:60], {}, 422, "ref_audio_file"),
        (b"x" * (1024 * 1024 + 1), {}, 413, "the file is larger than 1 MiB"),
        (None, {"text": " "}, 400, "text must not be blank"),
        (None, {"temperature": "3"}, 422, "temperature"),
        (None, {"seed": "one"}, 422, "seed"),
        (None, {"text": b"\xff"}, 422, "UTF-8"),
        (None, {"text": "x" * (3 * 1024 * 1024)}, 413, "fields are larger"),
        (None, {f"field_{number}": "x" for number in range(70)}, 422, "64 parts"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_a_bad_upload_is_a_sentence_and_leaves_nothing(
    content: bytes | None, fields: dict[str, Any], status: int, sentence: str, tmp_path: Path
) -> None:
    with running(speaking(tone(0.1)), **start(tmp_path, upload_max_mb=1)) as live:
        refused = upload(live, content, **fields)
        assert refused.status_code == status, refused.text
        assert refused.json()["success"] is False
        assert sentence in refused.json()["message"]
        assert live.engine.requests == []
        eventually(lambda: not temporary(tmp_path))


def test_an_upload_is_at_most_as_long_as_the_setting_says(tmp_path: Path) -> None:
    recording = (RECORDINGS / "voice_01.wav").read_bytes()
    with running(speaking(tone(0.1)), **start(tmp_path, upload_max_s=1.5)) as live:
        refused = upload(live, recording)
        assert refused.status_code == 422
        assert "ref_audio_file: the recording is longer than 1.5 s" in refused.json()["message"]
        assert live.engine.requests == []
    with running(speaking(tone(0.1)), **start(tmp_path, upload_max_s=600.0)) as live:
        assert upload(live, recording).status_code == 200


@pytest.mark.parametrize(
    ("kind", "content"),
    [
        ("application/json", b"{}"),
        ("multipart/form-data", b""),
        ("multipart/form-data; boundary=b", b""),
        ("multipart/form-data; boundary=b", b"nothing like it"),
        ("multipart/form-data; boundary=b", b'--b\r\nContent-Disposition: form-data; name="text"\r\n\r\nHel'),
        ("multipart/form-data; boundary=" + "b" * 5000, b"--b"),
    ],
)
def test_a_form_that_is_none_is_refused(server: LiveServer, kind: str, content: bytes) -> None:
    refused = server.client.post(UPLOAD, content=content, headers={"Content-Type": kind})
    assert refused.status_code == 422
    assert set(refused.json()) == {"success", "message"}


def test_a_client_that_leaves_in_the_middle_of_an_upload_leaves_no_file(server: LiveServer, data: Path) -> None:
    with socket.create_connection(("127.0.0.1", server.port), timeout=120) as connection:
        head = "POST /generate-upload HTTP/1.1\r\nHost: x\r\nContent-Type: multipart/form-data; boundary=b\r\n"
        part = '--b\r\nContent-Disposition: form-data; name="ref_audio_file"; filename="a"\r\n\r\nhalf'
        connection.sendall(f"{head}Content-Length: 100000\r\n\r\n{part}".encode())
        eventually(lambda: temporary(data))
    eventually(lambda: not temporary(data))


def temporary(data: Path) -> list[Path]:
    """Files of requests that are not over."""
    return [path for path in (data / "scratch").rglob("*") if path.is_file() and path.name != ".lock"]


# Refusals.


@pytest.mark.parametrize(
    ("change", "status", "sentence"),
    [
        ({"text": None}, 422, "text"),
        ({"text": ""}, 400, "text must not be blank"),
        ({"text": " \n"}, 400, "text must not be blank"),
        ({"text": "a" * 20001}, 422, "at most 20000"),
        ({"text": "a\0"}, 422, "U+0000"),
        ({"text": "[SPEAKER0]"}, 422, "no text after [SPEAKER0]"),
        ({"text": "[SPEAKER0] a [SPEAKER1] "}, 422, "turn 2"),
        ({"text": "a [SPEAKER0] b"}, 422, "text before its first"),
        ({"text": "[SPEAKER12] b"}, 422, "valid range: 0-11"),
        ({"text": "[SPEAKER0] a [SPEAKER1] b", "ref_audio": "belinda"}, 422, "[SPEAKER1], which has no voice"),
        ({"ref_audio": "belinda,voice_01"}, 422, "ref_audio names 2 voices"),
        ({"ref_audio": "nobody"}, 404, "unknown ref_audio 'nobody'; the voices are: belinda, voice_01"),
        ({"ref_audio": "../belinda"}, 404, "unknown ref_audio"),
        ({"ref_audio": "/etc/passwd"}, 404, "unknown ref_audio"),
        ({"ref_audio": "belinda,"}, 404, "unknown ref_audio ''"),
        ({"ref_audio": 5}, 422, "ref_audio"),
        ({"scene_prompt": "moon"}, 404, "unknown scene_prompt 'moon'; the scenes are: quiet_indoor"),
        ({"scene_prompt": "../../pyproject"}, 404, "unknown scene_prompt"),
        ({"temperature": -0.1}, 422, "greater than or equal to 0"),
        ({"temperature": 2.1}, 422, "less than or equal to 2"),
        ({"temperature": "NaN"}, 422, "temperature"),
        ({"top_k": 0}, 422, "top_k"),
        ({"top_k": 101}, 422, "top_k"),
        ({"top_p": 1.1}, 422, "top_p"),
        ({"max_new_tokens": 0}, 422, "max_new_tokens"),
        ({"max_new_tokens": 4097}, 422, "max_new_tokens"),
        ({"seed": 2**63}, 422, "seed"),
        ({"ras_win_max_num_repeat": 0}, 422, "ras_win_max_num_repeat"),
        ({"chunk_method": "sentence"}, 422, "chunk_method"),
        ({"chunk_max_word_num": 0}, 422, "chunk_max_word_num"),
        ({"chunk_max_num_turns": 0}, 422, "chunk_max_num_turns"),
        ({"generation_chunk_buffer_size": -1}, 422, "generation_chunk_buffer_size"),
    ],
    ids=lambda value: str(value)[:40],
)
@pytest.mark.parametrize("path", [GENERATE, STREAM])
def test_bad_requests(server: LiveServer, path: str, change: dict[str, Any], status: int, sentence: str) -> None:
    made = len(server.engine.requests)
    refused = server.post(path, {"text": "a"} | change)
    assert refused.status_code == status
    assert set(refused.json()) == {"success", "message"}
    assert refused.json()["success"] is False
    assert sentence in refused.json()["message"]
    assert len(server.engine.requests) == made


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/generate", 405),
        ("PUT", "/generate-stream", 405),
        ("GET", "/generate-upload", 405),
        ("POST", "/info", 405),
        ("POST", "/voices", 405),
        ("GET", "/voices/belinda", 404),
        ("GET", "/scenes/x", 404),
        ("GET", "/info/x", 404),
        ("POST", "/generate/x", 404),
        ("POST", "/generate-more", 404),
        ("POST", "/generated", 404),
    ],
)
def test_paths_and_methods_that_there_are_not(server: LiveServer, method: str, path: str, status: int) -> None:
    refused = server.client.request(method, path)
    assert (refused.status_code, set(refused.json())) == (status, {"success", "message"})
    assert set(server.get("/information").json()) == {"detail"}


@pytest.mark.parametrize("path", ["/info", "/voices", "/scenes"])
def test_head(server: LiveServer, path: str) -> None:
    response = server.client.head(path)
    assert (response.status_code, response.content) == (200, b"")


def test_a_key_is_asked_for_in_this_dialects_shape(data: Path) -> None:
    with running(speaking(tone(0.1)), api_keys=("k",), **start(data)) as live:
        for path in (GENERATE, "/voices", "/generate-upload"):
            refused = live.client.request("POST", path)
            assert (refused.status_code, set(refused.json())) == (401, {"success", "message"})
        assert live.post(GENERATE, {"text": "a"}, headers={"X-API-Key": "k"}).status_code == 200


def test_without_any_voice_or_scene_the_server_says_so(tmp_path: Path) -> None:
    folders: dict[str, Any] = {
        "reference_audio_dir": tmp_path,
        "voice_prompts_dir": tmp_path,
        "scene_prompts_dir": tmp_path / "none",
    }
    with running(speaking(tone(0.1)), **folders) as live:
        assert live.get("/voices").json() == {"voices": [], "count": 0}
        assert live.get("/scenes").json() == {"scenes": [], "count": 0}
        refused = live.post(GENERATE, {"text": "a"})
        assert (refused.status_code, refused.json()["success"]) == (404, False)
        (tmp_path / "mine.wav").write_bytes((RECORDINGS / "voice_01.wav").read_bytes())
        assert live.post(GENERATE, {"text": "a"}).status_code == 200
        assert live.engine.requests[-1].scene == ""


def test_of_two_recordings_with_one_stem_each_is_used_by_its_file_name(tmp_path: Path) -> None:
    for name in ("a/b.flac", "a/b.wav", "c/d.flac", "c/d.wav"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes((RECORDINGS / "voice_01.wav").read_bytes())
    with running(speaking(tone(0.1)), reference_audio_dir=tmp_path / "a", voice_prompts_dir=tmp_path / "c") as live:
        for name in ("b.flac", "b.wav", "d.flac", "d.wav"):
            assert live.post(GENERATE, {"text": "a", "ref_audio": name}).status_code == 200
            assert live.engine.requests[-1].voice.path.name == name
        listed = [live.get(f"/v1/voices/{name}").json() for name in ("b.flac", "b.wav")]
        assert [voice["voice_id"] for voice in listed] == ["b", "b.wav"]
        assert [voice["preview_url"][-2:] for voice in listed] == ["/0", "/1"]


def test_the_same_request_gives_the_same_samples_in_every_form(server: LiveServer) -> None:
    body = {"text": "Hello there.", "ref_audio": "voice_01"}
    answer = server.post(GENERATE, body).json()
    events = events_of(server.post(STREAM, body).text)
    other = {"model": "m", "input": "Hello there.", "voice": "alloy", "response_format": "pcm"}
    assert base64.b64decode(answer["audio_base64"])[44:] == pcm_of(events)
    assert server.post("/v1/audio/speech", other).content == pcm_of(events)
