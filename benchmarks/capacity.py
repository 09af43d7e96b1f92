"""Simulates a fleet of GPUs from measured step times: how many serve 10, 1 000 and 100 000 listeners at a time.

``python -m benchmarks.capacity [--steps FILE] [--listeners N …]`` reads the times of one decoding step, one prompt and
one window of the vocoder by the number of rows; ``benchmarks/step_times_h100_estimate.json`` shows the file's form.
Requests arrive at random (Poisson), wait in one queue and join the GPU with the fewest rows. A fleet is large enough
where 19 of 20 listeners hear their first audio within the limit and at least 99 of 100 hear no gap.
"""

from __future__ import annotations

import argparse
import heapq
import json
import math
import random
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain, pairwise, repeat
from pathlib import Path
from typing import Any

from benchmarks.common import percentile, table

STEPS = Path(__file__).parent / "step_times_h100_estimate.json"
LISTENERS = (10, 1_000, 100_000)
SIMULATED_GPUS = 6
"""A larger fleet is simulated as this many GPUs with their share of the listeners: size gains little beyond."""
MIN_REQUESTS, MIN_UTTERANCES = 1_000, 12
"""A simulation has at least so many requests, and lasts at least so many mean utterances; its first fifth is not
counted."""
FIRST_AUDIO_LIMIT_S = 0.3
GAP_FREE = 0.99
SINGLE = 0.01
"""Listeners at a time where hardly any two meet."""
MAX_BATCH = 8
"""Windows that the vocoder computes at once."""

OPUS_KBIT_S, PCM_KBIT_S = 33.3, 384.0
"""Of one listener: Opus at 32 kbit/s with its pages, and 16-bit PCM at 24 kHz."""
ENCODED_S = 113.0
"""Seconds of audio that one core encodes in a second, Opus at complexity 10."""
GATEWAY_CORE_S, GATEWAY_BYTES = 0.001, 2 * 16 * 1024
"""HAProxy: processor time of one answer, and the buffers of one connection."""


@dataclass(frozen=True, slots=True)
class StepTimes:
    """What one GPU takes for its steps, in seconds, and how an utterance is cut."""

    name: str
    code_s: float
    """Audio of one code."""
    chunks: tuple[int, ...]
    """Codes of the first chunks; later chunks have the last size."""
    look_ahead: int
    prompt_s: float
    step_s: Mapping[int, float]
    """One decoding step, by the number of rows."""
    window_s: Mapping[int, float]
    """Windows of the vocoder, by their number."""
    weights_mb: float
    row_mb: float
    memory_mb: float

    @classmethod
    def read(cls, file: Path) -> StepTimes:
        content: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        by_rows = {
            name: {int(rows): ms / 1e3 for rows, ms in content[name].items()} for name in ("step_ms", "window_ms")
        }
        return cls(
            name=content["name"],
            code_s=content["samples_per_code"] / content["sample_rate_hz"],
            chunks=tuple(content["chunks"]),
            look_ahead=content["look_ahead"],
            prompt_s=content["prompt_ms"] / 1e3,
            step_s=by_rows["step_ms"],
            window_s=by_rows["window_ms"],
            weights_mb=content["weights_mb"],
            row_mb=content["row_mb"],
            memory_mb=content["memory_mb"],
        )

    @property
    def max_rows(self) -> int:
        """Rows that are measured and fit into the memory."""
        return min(max(self.step_s), int((self.memory_mb - self.weights_mb) / self.row_mb))


def interpolated(times_s: Mapping[int, float], count: int) -> float:
    """The time for a number of rows between two measured ones."""
    if count in times_s:
        return times_s[count]
    for (fewer, less_s), (more, more_s) in pairwise(sorted(times_s.items())):
        if fewer < count < more:
            return less_s + (more_s - less_s) * (count - fewer) / (more - fewer)
    raise ValueError(f"{count} rows; measured: {sorted(times_s)}")


@dataclass(slots=True)
class Listener:
    """One request, and what its player gets."""

    arrival_s: float
    codes: int
    """Of the whole utterance."""
    chunks: list[int] = field(default_factory=list)
    """Codes of the chunks to come, the next one last."""
    begun_codes: int = 0
    """Codes whose audio is complete."""
    first_s: float = 0.0
    """When the first audio was complete."""
    has_gap: bool = False


class Gpu:
    """One GPU with its rows. Decoding steps and windows run one after the other; a due window runs before a step."""

    def __init__(self, times: StepTimes, max_rows: int) -> None:
        self._times = times
        self._max_rows = max_rows
        self._steps = [0.0, *(interpolated(times.step_s, rows) for rows in range(1, max_rows + 1))]
        self.clock_s = 0.0
        self.busy_s = 0.0
        self.row_s = 0.0
        """Working time of all rows together."""
        self.rows = 0
        self._step = 0
        self._due: list[tuple[int, int, Listener]] = []
        """The rows by the step at which their next chunk has its codes."""
        self._number = 0

    @property
    def is_full(self) -> bool:
        return self.rows == self._max_rows

    @property
    def next_s(self) -> float:
        """When the next chunk has its codes; infinite without rows."""
        if not self._due:
            return math.inf
        return self.clock_s + (self._due[0][0] - self._step) * self._steps[self.rows]

    def join(self, listener: Listener, now_s: float) -> None:
        """Process the prompt of a request between two steps."""
        self._advance(now_s)
        self._spend(self._times.prompt_s)
        sizes = chain(self._times.chunks, repeat(self._times.chunks[-1]))
        left, chunks = listener.codes, []
        while left > 0:
            chunks.append(min(left, next(sizes)))
            left -= chunks[-1]
        listener.chunks = chunks[::-1]
        self.rows += 1
        self._await_chunk(listener, decoded=0)

    def vocode(self) -> list[Listener]:
        """Run to the next due chunk and vocode what is due, at most `MAX_BATCH`; return those who have all audio."""
        self._run(max(0, self._due[0][0] - self._step))
        due: list[Listener] = []
        while self._due and self._due[0][0] <= self._step and len(due) < MAX_BATCH:
            due.append(heapq.heappop(self._due)[2])
        self._spend(interpolated(self._times.window_s, len(due)))
        ended = []
        for listener in due:
            self._play(listener)
            if listener.chunks:
                decoded = min(listener.codes, listener.begun_codes + self._times.look_ahead)
                self._await_chunk(listener, decoded)
            else:
                self.rows -= 1
                ended.append(listener)
        return ended

    def _await_chunk(self, listener: Listener, decoded: int) -> None:
        """Queue the next chunk, given the codes that the row has decoded."""
        needed = min(listener.codes, listener.begun_codes + listener.chunks[-1] + self._times.look_ahead)
        self._number += 1
        heapq.heappush(self._due, (self._step + max(0, needed - decoded), self._number, listener))

    def _play(self, listener: Listener) -> None:
        if not listener.begun_codes:
            listener.first_s = self.clock_s
        elif self.clock_s > listener.first_s + listener.begun_codes * self._times.code_s:
            listener.has_gap = True
        listener.begun_codes += listener.chunks.pop()

    def _advance(self, until_s: float) -> None:
        """Run steps until a moment; one that has begun is completed."""
        if not self.rows:
            self.clock_s = max(self.clock_s, until_s)
            return
        self._run(max(0, math.ceil((until_s - self.clock_s) / self._steps[self.rows])))

    def _run(self, steps: int) -> None:
        self._step += steps
        self._spend(steps * self._steps[self.rows])

    def _spend(self, seconds: float) -> None:
        self.clock_s += seconds
        self.busy_s += seconds
        self.row_s += seconds * self.rows


@dataclass(frozen=True, slots=True)
class Outcome:
    """What the listeners of a fleet hear."""

    first_p50_s: float
    first_p95_s: float
    gap_free: float
    rows: float
    """Requests that a GPU decodes at a time, on average over its working time."""

    @property
    def is_enough(self) -> bool:
        return self.first_p95_s <= FIRST_AUDIO_LIMIT_S and self.gap_free >= GAP_FREE


def simulate(times: StepTimes, gpus: int, listeners: float, mean_s: float, max_rows: int) -> Outcome:
    """Serve requests whose listeners are so many at a time on average.

    Args:
        times: Of one GPU.
        gpus: Size of the fleet.
        listeners: Mean number of players that are playing.
        mean_s: Mean length of an utterance; lengths are from half of it to one and a half times it.
        max_rows: Requests that a GPU admits at a time.
    """
    requests = max(MIN_REQUESTS, math.ceil(MIN_UTTERANCES * listeners))
    rng = random.Random(1)
    fleet = [Gpu(times, max_rows) for _ in range(gpus)]
    waiting: deque[Listener] = deque()
    served: list[Listener] = []
    arrival_s = 0.0
    arrivals: deque[Listener] = deque()
    for _ in range(requests):
        arrival_s += rng.expovariate(listeners / mean_s)
        arrivals.append(Listener(arrival_s, max(1, round(mean_s * rng.uniform(0.5, 1.5) / times.code_s))))
    while len(served) < requests:
        gpu = min(fleet, key=lambda gpu: gpu.next_s)
        if arrivals and arrivals[0].arrival_s <= gpu.next_s:
            waiting.append(arrivals.popleft())
            now_s = waiting[-1].arrival_s
        else:
            served += gpu.vocode()
            now_s = gpu.clock_s
        while waiting and not (freest := min(fleet, key=lambda gpu: gpu.rows)).is_full:
            freest.join(waiting.popleft(), now_s)
    counted = sorted(served, key=lambda listener: listener.arrival_s)[requests // 5 :]
    firsts = [listener.first_s - listener.arrival_s for listener in counted]
    return Outcome(
        percentile(firsts, 50),
        percentile(firsts, 95),
        sum(not listener.has_gap for listener in counted) / len(counted),
        sum(gpu.row_s for gpu in fleet) / sum(gpu.busy_s for gpu in fleet),
    )


def most_listeners(times: StepTimes, mean_s: float, max_rows: int) -> float:
    """Listeners of one GPU of a large fleet, to one part in fifty."""
    enough, too_many = SINGLE, seconds_a_second(times, max_rows)
    while too_many - enough > too_many / 50:
        middle = (enough + too_many) / 2
        if simulate(times, SIMULATED_GPUS, middle * SIMULATED_GPUS, mean_s, max_rows).is_enough:
            enough = middle
        else:
            too_many = middle
    return enough


def seconds_a_second(times: StepTimes, max_rows: int) -> float:
    """Seconds of audio that one GPU makes in a second if all rows and windows are always in use."""
    step_s = interpolated(times.step_s, max_rows)
    return times.code_s / (step_s / max_rows + min(s / n for n, s in times.window_s.items()) / times.chunks[-1])


def smallest_fleet(times: StepTimes, listeners: int, mean_s: float, max_rows: int) -> tuple[int, Outcome]:
    """The number of GPUs that is enough, and what they give.

    Raises:
        SystemExit: no number is: a GPU is too slow for a single listener.
    """
    if not simulate(times, 1, SINGLE, mean_s, max_rows).is_enough:
        raise SystemExit(f"{times.name}: one GPU is too slow for one listener")
    for gpus in range(math.ceil(listeners / seconds_a_second(times, max_rows)), SIMULATED_GPUS + 1):
        if (outcome := simulate(times, gpus, listeners, mean_s, max_rows)).is_enough:
            return gpus, outcome
    each = most_listeners(times, mean_s, max_rows)
    return math.ceil(listeners / each), simulate(times, SIMULATED_GPUS, each * SIMULATED_GPUS, mean_s, max_rows)


def row(times: StepTimes, listeners: int, mean_s: float, max_rows: int) -> list[str]:
    """One row of the table."""
    gpus, found = smallest_fleet(times, listeners, mean_s, max_rows)
    answers_a_second = listeners / mean_s
    return [
        f"{listeners:,}".replace(",", " "),
        str(gpus),
        f"{listeners / gpus:.0f}",
        f"{found.rows:.1f}",
        f"{found.first_p50_s * 1e3:.0f}",
        f"{found.first_p95_s * 1e3:.0f}",
        f"{100 * found.gap_free:.1f} %",
        f"{(times.weights_mb + max_rows * times.row_mb) / 1e3:.1f}",
        f"{listeners / ENCODED_S:.1f}",
        f"{listeners * OPUS_KBIT_S / 1e3:.1f}",
        f"{listeners * PCM_KBIT_S / 1e3:.0f}",
        f"{answers_a_second * GATEWAY_CORE_S:.2f}",
        f"{listeners * GATEWAY_BYTES / 1e6:.0f}",
    ]


HEAD = (
    "listeners", "GPUs", "listeners a GPU", "rows in use", "first audio p50, ms", "p95, ms", "gap-free", "GB a GPU",
    "cores for Opus", "Mbit/s Opus", "Mbit/s PCM", "gateway cores", "gateway MB",
)  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=Path, default=STEPS, help="JSON file with the times of one GPU")
    parser.add_argument("--listeners", type=int, nargs="+", default=LISTENERS, metavar="N")
    parser.add_argument("--seconds", type=float, default=10.0, help="mean length of an utterance")
    parser.add_argument("--rows", type=int, help="MAX_CONCURRENT; the default is what is measured and fits")
    options = parser.parse_args(arguments)
    times = StepTimes.read(options.steps)
    max_rows = min(options.rows or times.max_rows, times.max_rows)
    print(f"{times.name}; at most {max_rows} rows a GPU, utterances of {options.seconds:g} s\n")
    table(HEAD, [row(times, listeners, options.seconds, max_rows) for listeners in options.listeners])


if __name__ == "__main__":
    main()
