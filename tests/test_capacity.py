"""The simulation of a fleet: what it must say of cases that can be worked out by hand, and that it runs."""

from __future__ import annotations

from dataclasses import replace

import pytest

from benchmarks.capacity import STEPS, Gpu, Listener, StepTimes, main, simulate, smallest_fleet

TIMES = StepTimes(
    name="by hand", code_s=0.04, chunks=(4, 8), look_ahead=2, prompt_s=0.01, step_s={1: 0.001, 2: 0.0015},
    window_s={1: 0.005, 2: 0.007, 8: 0.02}, weights_mb=0, row_mb=1, memory_mb=2,
)  # fmt: skip


def run(gpu: Gpu) -> list[Listener]:
    ended = []
    while gpu.rows:
        ended += gpu.vocode()
    return ended


def test_one_listener_alone() -> None:
    gpu = Gpu(TIMES, 2)
    listener = Listener(0.0, 16)
    gpu.join(listener, 0.0)
    assert run(gpu) == [listener]
    # A prompt, the 4 + 2 codes that the first chunk needs, a window.
    assert listener.first_s == pytest.approx(0.01 + 6 * 0.001 + 0.005)
    # 16 codes, and windows of 4, 8 and the 4 that are left.
    assert gpu.clock_s == pytest.approx(0.01 + 16 * 0.001 + 3 * 0.005)
    assert not listener.has_gap


def test_two_listeners_share_steps_and_windows() -> None:
    gpu = Gpu(replace(TIMES, prompt_s=0.0), 2)
    both = [Listener(0.0, 12), Listener(0.0, 12)]
    for listener in both:
        gpu.join(listener, 0.0)
    assert run(gpu) == both
    assert both[1].first_s == pytest.approx(6 * 0.0015 + 0.007)
    assert gpu.clock_s == pytest.approx(12 * 0.0015 + 2 * 0.007)


def test_a_gpu_that_is_slower_than_speech_leaves_gaps() -> None:
    slow = replace(TIMES, step_s={1: 0.05, 2: 0.05})
    assert simulate(TIMES, 1, 0.5, 2.0, 2).gap_free == 1.0
    assert simulate(slow, 1, 0.1, 2.0, 2).gap_free < 0.5
    with pytest.raises(SystemExit, match="too slow for one listener"):
        smallest_fleet(slow, 1, 2.0, 2)


def test_a_larger_fleet_serves_more() -> None:
    fleets = [smallest_fleet(TIMES, listeners, 2.0, 2)[0] for listeners in (1, 100, 1000)]
    assert fleets == sorted(fleets)
    assert fleets[-1] > 8 * fleets[1] > 0


def test_the_shipped_times_give_the_table(capsys: pytest.CaptureFixture[str]) -> None:
    assert StepTimes.read(STEPS).max_rows == 32
    main(["--listeners", "2", "10"])
    *_, two, ten = capsys.readouterr().out.splitlines()
    assert two.split()[:2] == ["2", "1"]
    assert ten.split()[:2] == ["10", "1"]
