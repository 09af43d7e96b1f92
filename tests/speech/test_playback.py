"""Underruns of a client that plays while it receives."""

from __future__ import annotations

import pytest

from streaming_server.speech.playback import PREBUFFER_S, PlaybackClock


def gaps(*sent: tuple[float, float]) -> list[float]:
    """Of audio that is sent at a moment, with the duration of all so far."""
    clock = PlaybackClock()
    return [round(clock.sent(now_s, audio_s, is_behind=False), 3) for now_s, audio_s in sent]


def test_audio_that_comes_before_it_is_needed_is_no_underrun() -> None:
    assert gaps((5.0, 0.02), (5.11, 0.5), (5.59, 1.0), (6.0, 9.0), (14.0, 9.1)) == [0.0] * 5


def test_an_underrun_lasts_from_the_last_sample_to_the_next() -> None:
    assert gaps((5.0, 1.0), (6.4, 2.0), (7.4, 3.0)) == [0.0, pytest.approx(0.4 - PREBUFFER_S), 0.0]
    # After it the client collects audio once more before it plays.
    assert gaps((0.0, 0.1), (1.0, 0.2), (1.19, 0.3), (1.5, 0.4)) == [0.0, 0.8, 0.0, 0.2]


def test_a_gap_of_a_reader_that_has_not_taken_earlier_audio_is_its_own() -> None:
    clock = PlaybackClock()
    clock.sent(0.0, 1.0, is_behind=False)
    assert clock.sent(60.0, 2.0, is_behind=True) == 0.0
    assert clock.sent(60.9, 3.0, is_behind=False) == 0.0
    assert clock.sent(63.0, 3.5, is_behind=False) == pytest.approx(1.0)


def test_running_dry_while_the_text_is_missing_is_no_underrun() -> None:
    clock = PlaybackClock()
    clock.sent(0.0, 0.9, is_behind=False)
    clock.awaited_text(0.5, 3.0)
    assert clock.sent(4.0, 2.0, is_behind=False) == 0.0
    clock.awaited_text(4.5, 4.6)  # the client still has audio
    assert clock.sent(6.0, 3.0, is_behind=False) == pytest.approx(0.8)


def test_running_dry_before_the_text_was_missing_is_one() -> None:
    clock = PlaybackClock()
    clock.sent(0.0, 0.9, is_behind=False)
    clock.awaited_text(1.5, 3.0)
    assert clock.sent(4.0, 2.0, is_behind=False) == pytest.approx(3.0)
