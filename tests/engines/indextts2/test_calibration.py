"""What ``streaming-server calibrate`` measures and recommends."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from streaming_server import cli
from streaming_server.audio.decode import decode_native
from streaming_server.engines.content_cache import FileDigests
from streaming_server.engines.indextts2 import calibration
from streaming_server.engines.indextts2.calibration import Mode, calibrate, recommended
from streaming_server.engines.indextts2.chunks import SEGMENT, chunk_pace
from streaming_server.engines.indextts2.features import SAMPLE_RATE_HZ
from streaming_server.engines.indextts2.folder import Checkpoint
from streaming_server.engines.indextts2.reading import Segment
from streaming_server.engines.indextts2.voices import VoiceCache
from streaming_server.engines.torch.calibration import Cost
from streaming_server.errors import InvalidRequest
from tests.support.graphs import EmulatedGraphs, substitute

CHUNK_MODES = ("0, first chunk 34", "16, first chunk 34", "16, first chunk 17")
SENTENCE = "The first train leaves at six, and the sea is far."


def way(stream: str, distance: float, first_audio_s: float, factor: float, steps: int = 25) -> Mode:
    look_ahead = int(stream) if stream.isdigit() else 0
    pace = chunk_pace(look_ahead=look_ahead) if stream.isdigit() else SEGMENT
    return Mode(pace, steps, Cost(first_audio_s, 0.0, factor), distance)


@pytest.mark.parametrize(
    ("ways", "best"),
    [
        ([way("segment", 0, 0.2, 0.1), way("8", 0.3, 0.05, 0.3), way("16", 0.2, 0.06, 0.3)], 2),  # 8 is too far
        ([way("segment", 0, 0.2, 0.1), way("16", 0.2, 0.06, 0.9)], 0),  # 16 would falter
        ([way("segment", 0, 0.2, 0.1), way("segment", 0.1, 0.1, 0.05, steps=8)], 1),
        ([way("segment", 0, 9, 3), way("segment", 0.1, 5, 2, steps=8), way("16", 0.1, 1, 4)], 1),  # none is fast
        ([way("segment", 0, 9, 3), way("16", 0.9, 1, 0.5)], 0),  # near enough goes before fast
    ],
)
def test_the_first_heard_of_the_near_and_fast_is_recommended(ways: Sequence[Mode], best: int) -> None:
    assert recommended(ways) is ways[best]


@pytest.mark.parametrize("version", ["2.0", "2.5"])
def test_both_ways_are_measured_and_settings_named(
    folders: dict[str, Path], version: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(calibration, "STEPS", (6, 2))
    monkeypatch.setattr(calibration, "LOOK_AHEADS", (0, 16))
    monkeypatch.setattr(calibration, "FIRST_CHUNKS", (17,))
    assert cli.main(["calibrate", "--model_dir", str(folders[version]), "--device", "cpu", "--text", SENTENCE]) == 0
    heading, *lines = capsys.readouterr().out.splitlines()
    assert heading.split() == ["mode", "steps", "distance*", "first", "audio,", "ms", "real-time", "factor"]
    rows = [line.rsplit(maxsplit=4) for line in lines[:8]]
    names = ["segment", *(f"chunk, look-ahead {mode}" for mode in CHUNK_MODES)]
    assert [(row[0], row[1]) for row in rows] == [(name, steps) for steps in ("6", "2") for name in names]
    distances = [float(row[2]) for row in rows]
    assert distances[0] == 0
    assert all(0 < distance < 1 for distance in distances[4:])
    assert all(float(number) > 0 for row in rows for number in row[3:])
    assert lines[-1].startswith("INDEXTTS2_STREAM=")
    assert " INDEXTTS2_STEPS=" in lines[-1]


def test_a_text_without_a_cut_is_refused(
    folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(calibration, "MAX_CODES", 5)
    assert cli.main(["calibrate", "--model_dir", str(folders["2.5"]), "--device", "cpu", "--text", SENTENCE]) == 2
    assert "too short to be split" in capsys.readouterr().err


def test_another_engine_has_nothing_to_calibrate(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["calibrate", "--engine", "espeak"]) == 2
    assert "calibrate requires an IndexTTS model" in capsys.readouterr().err


def test_the_sentence_is_decoded_by_recorded_steps(folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    substitute(monkeypatch, EmulatedGraphs)
    monkeypatch.setattr(calibration, "MAX_CODES", 5)
    runtime = Checkpoint.open(folders["2.0"]).load(torch.device("cpu"), torch.float32)
    samples = torch.randn(SAMPLE_RATE_HZ, generator=torch.Generator().manual_seed(0)).numpy()
    voice = VoiceCache(runtime, 1, decode_native, FileDigests(), None).analyse(samples, SAMPLE_RATE_HZ)
    runtime.writer.open(1)
    assert runtime.writer._shared is not None
    runtime.writer._shared.record()
    replays = EmulatedGraphs.replays
    with pytest.raises(InvalidRequest, match="too short"):
        calibrate(runtime, voice, Segment([5, 9, 30]), lambda _: None)
    assert EmulatedGraphs.replays - replays >= 5
