"""What ``streaming-server calibrate`` measures and recommends for 1.5."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from streaming_server import cli
from streaming_server.engines.indextts import calibration
from streaming_server.engines.indextts.calibration import Mode, calibrate, recommended
from streaming_server.engines.indextts.checkpoint import Checkpoint
from streaming_server.engines.indextts.stream import CHUNKS, chunks_from
from streaming_server.engines.indextts.voices import AnalysedVoice
from streaming_server.engines.torch.calibration import Cost
from streaming_server.errors import InvalidRequest
from tests.support.graphs import EmulatedGraphs, substitute

SENTENCE = "The first train leaves at six, and the sea is far."


def mode(error_db: float, first_audio_s: float, factor: float) -> Mode:
    return Mode(4, 4, Cost(first_audio_s, 0.0, factor), error_db)


@pytest.mark.parametrize(
    ("modes", "best"),
    [
        ([mode(-120, 0.05, 0.3), mode(-60, 0.03, 0.3), mode(-30, 0.02, 0.3)], 1),  # the last is too far off
        ([mode(-120, 0.05, 0.3), mode(-60, 0.03, 0.9)], 0),  # the second would stall
        ([mode(-120, 5, 3), mode(-60, 4, 2), mode(-20, 1, 0.5)], 1),  # none that is near is fast
    ],
)
def test_the_earliest_audio_of_the_near_and_fast_is_recommended(modes: Sequence[Mode], best: int) -> None:
    assert recommended(modes) is modes[best]


def test_chunks_double_up_to_the_largest() -> None:
    assert tuple(chunks_from(4)) == CHUNKS
    assert chunks_from(32) == [32]
    assert chunks_from(1) == [1, 2, 4, 8, 16, 32]


def test_every_look_ahead_is_a_row_and_the_last_line_has_settings(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(calibration, "LOOK_AHEADS", ("exact", 1))
    monkeypatch.setattr(calibration, "FIRST_CHUNKS", (8,))
    assert cli.main(["calibrate", "--model_dir", str(checkpoint), "--device", "cpu", "--text", SENTENCE]) == 0
    heading, *lines = capsys.readouterr().out.splitlines()
    assert heading.split()[:5] == ["look-ahead", "first", "chunk", "error*,", "dB"]
    rows = [line.split() for line in lines[:3]]
    assert [row[:2] for row in rows] == [["exact", "4"], ["1", "4"], ["exact", "8"]]
    exact, near, coarse = (float(row[2]) for row in rows)
    assert exact < -90
    assert coarse < -90
    assert -80 < near < -10
    assert all(float(number) > 0 for row in rows for number in row[3:])
    assert lines[-1].startswith("LOOK_AHEAD=")
    assert " FIRST_CHUNK=" in lines[-1]


@pytest.mark.parametrize("text", [SENTENCE, " "])
def test_a_text_without_a_cut_is_refused(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], text: str
) -> None:
    monkeypatch.setattr(calibration, "MAX_CODES", 20)
    assert cli.main(["calibrate", "--model_dir", str(checkpoint), "--device", "cpu", "--text", text]) == 2
    assert "too short to be split" in capsys.readouterr().err


@pytest.mark.parametrize(("value", "is_valid"), [("16", True), ("5", False), ("x", False)])
def test_the_first_chunk_is_a_setting(
    value: str, is_valid: bool, checkpoint: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FIRST_CHUNK", value)
    assert cli.main(["extras", "--model_dir", str(checkpoint)]) == (0 if is_valid else 2)
    assert ("FIRST_CHUNK" in capsys.readouterr().err) is not is_valid


def test_the_sentence_is_decoded_by_recorded_steps(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    substitute(monkeypatch, EmulatedGraphs)
    monkeypatch.setattr(calibration, "MAX_CODES", 5)
    runtime = Checkpoint.open(checkpoint).load(torch.device("cpu"), torch.float32)
    latents = runtime.gpt.perceiver_encoder.latents
    voice = AnalysedVoice(torch.randn_like(latents), torch.randn(runtime.vocoder.speaker_width))
    runtime.writer.open(1)
    assert runtime.writer._shared is not None
    runtime.writer._shared.record()
    replays = EmulatedGraphs.replays
    with pytest.raises(InvalidRequest, match="too short"):
        calibrate(runtime, voice, [5, 9, 30], lambda _: None)
    assert EmulatedGraphs.replays - replays >= 5
