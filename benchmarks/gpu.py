"""Acceptance of the model runtimes on a GPU, in one command: what holds, how fast it is, and the targets.

``python -m benchmarks.gpu [--json FILE]`` takes at most nine minutes: parity of the fixtures in fp32, recorded steps
against eager ones, decoding against the memory's floor, first audio over HTTP, IndexTTS 2 by mode and steps, concurrent
streams, memory. Sizes are the real ones with random weights; ``--tiny`` takes small ones, also without a GPU.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import tempfile
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import aclosing, closing, suppress
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
import yaml
from torch import Tensor

from benchmarks import indextts, indextts2
from benchmarks.common import SENTENCE, percentile, request, running_server
from streaming_server.domain import Generation
from streaming_server.engines.indextts.runtime import LookAhead, Runtime
from streaming_server.engines.indextts.stream import CHUNKS, Audio, window_sizes
from streaming_server.engines.indextts2.acoustics import SAMPLE_RATE_HZ
from streaming_server.engines.indextts2.calibration import cost
from streaming_server.engines.indextts2.chunks import MelStream
from streaming_server.engines.indextts2.reading import Segment
from streaming_server.engines.indextts2.stream import Delivery, Synthesiser
from streaming_server.engines.indextts2.synthesis import record
from streaming_server.engines.threads import Check, OwnerThread
from streaming_server.engines.torch import activation
from streaming_server.engines.torch.activation import fuse_activations
from streaming_server.engines.torch.compiled import compile_steps
from streaming_server.engines.torch.graphs import Graphs
from streaming_server.engines.torch.model_engine import DTYPES, allow_tf32, choose_device
from streaming_server.engines.torch.options import Precision
from streaming_server.engines.torch.windows import MAX_BATCH, Windows
from tests.engines.indextts import parity
from tests.engines.indextts.tiny import SIZES, make_checkpoint
from tests.engines.indextts2 import parity as parity2

LIMIT_S = 500.0
"""After it each section ends with its first row, so that the whole takes at most nine minutes."""
STREAMS = (1, 2, 4, 8, 16, 32)
TARGETS = {
    "1.5 start to ready, exact, s": "<= 60",
    "1.5 decoding, recorded, codes/s": ">= 1200",
    "1.5 first audio over HTTP, exact, p50 ms": "<= 45",
    "1.5 first audio over HTTP, look-ahead 4, p50 ms": "<= 20",
    "2.0 first audio, chunk, 25 steps, ms": "<= 80",
    "2.0 first audio, chunk, 12 steps, ms": "<= 60",
    "1.5, 32 streams, audio s/s": ">= 300",
    "1.5, 32 streams, first audio p95 ms": "<= 300",
    "1.5, 32 streams, gap-free share": ">= 0.99",
    "2.0, segment, 12 steps, 16 streams, audio s/s": ">= 100",
}
"""For an H100 or H200 in fp16."""


@dataclass(frozen=True, slots=True)
class Setup:
    """What is measured."""

    device: torch.device
    dtype: torch.dtype
    is_tiny: bool

    @property
    def sizes(self) -> dict[str, Any]:
        if self.is_tiny:
            return dict(SIZES)
        content: dict[str, Any] = yaml.safe_load(indextts.REAL_SIZES.read_text(encoding="utf-8"))
        return content

    @property
    def look_aheads(self) -> tuple[LookAhead, ...]:
        return (4,) if self.is_tiny else ("exact", 4)

    @property
    def codes(self) -> int:
        return 24 if self.is_tiny else 256


@dataclass(frozen=True, slots=True)
class Result:
    """One row of the table."""

    name: str
    value: float | str
    target: str = ""


Results = Generator[tuple[str, float | str], None, None]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tiny", action="store_true", help="small sizes and few streams, to try the benchmark itself")
    parser.add_argument("--device", choices=["auto", "cuda", "mps", "cpu"], default="auto")
    parser.add_argument("--precision", choices=list(DTYPES), default=None, help="fp16 on CUDA, else fp32")
    parser.add_argument("--json", type=Path, help="file for the same rows")
    arguments = parser.parse_args()
    device = choose_device(arguments.device)
    precision: Precision = arguments.precision or ("fp16" if device.type == "cuda" else "fp32")
    setup = Setup(device, DTYPES[precision], arguments.tiny)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else str(device)
    print(f"{name}, {precision}, torch {torch.__version__}\n", flush=True)
    about = {"device": name, "precision": precision, "torch": torch.__version__, "tiny": setup.is_tiny}
    results = []
    for result in measured(setup):  # what is measured is kept if the command is stopped
        print(f"{result.name:<58}  {shown(result.value):<14}  {result.target}".rstrip(), flush=True)
        results.append(asdict(result))
        if arguments.json is not None:
            arguments.json.write_text(json.dumps(about | {"results": results}, indent=1) + "\n")


def measured(setup: Setup) -> Iterator[Result]:
    """The rows of all sections; one that fails or comes too late is a row that says so."""
    begun_s = time.perf_counter()
    for section in SECTIONS:
        try:
            indextts.reset_peak_memory(setup.device)
            with closing(section(setup)) as rows:
                for name, value in rows:
                    yield Result(name, value, "" if setup.is_tiny else TARGETS.get(name, ""))
                    if time.perf_counter() - begun_s > LIMIT_S:
                        raise TimeoutError("out of time")
        except Exception as error:  # the other sections are worth their time all the same
            yield Result(section.__name__, f"failed: {type(error).__name__}: {error}"[:200])
        if setup.device.type == "cuda":
            with suppress(RuntimeError):  # a sticky error; the section over HTTP has its own process
                torch.cuda.empty_cache()
    yield Result("whole acceptance, s", time.perf_counter() - begun_s, "<= 540")


def shown(value: float | str) -> str:
    return value if isinstance(value, str) else f"{value:.4g}"


def parity_in_fp32(setup: Setup) -> Results:
    """The stages of the fixtures; the sampled ones draw other numbers on another device."""
    allow_tf32(False)
    versions = ("2.0",) if setup.is_tiny else ("2.0", "2.5")
    runtimes: list[tuple[str, Any, Sequence[Callable[[Any], None]]]] = [
        ("1.5", parity.build_runtime(device=setup.device), parity.CHECKS),
        *((version, parity2.build_runtime(version, device=setup.device), parity2.CHECKS) for version in versions),
    ]
    for version, runtime, checks in runtimes:
        fuse_activations(runtime.vocoder if version == "1.5" else runtime.acoustics.vocoder)
        failed = []
        chosen = [check for check in checks if setup.device.type == "cpu" or check.__name__ != "check_sampled"]
        for check in chosen:
            try:
                check(runtime)
            except (AssertionError, RuntimeError, TypeError):
                failed.append(check.__name__)
        yield (
            f"{version} parity in fp32",
            f"{len(chosen) - len(failed)} of {len(chosen)}" + "".join(f", off: {name}" for name in failed),
        )
    allow_tf32(setup.dtype != torch.float32)


def decoding(setup: Setup) -> Results:
    """1.5: the same codes recorded as eager, the speed of both, and the floor."""
    runtime = indextts.random_runtime(setup.sizes, setup.device, setup.dtype)
    floor_s = indextts.step_bytes(runtime) / indextts.bandwidth(setup.device)
    conditioning = torch.randn(runtime.gpt.perceiver_encoder.latents.shape)

    def decoded() -> tuple[list[int], Tensor]:
        rng = torch.Generator(setup.device).manual_seed(1)
        pairs = list(runtime.decode(conditioning, range(2, 42), setup.codes, generator=rng))
        return [code for code, _ in pairs], torch.stack([latent for _, latent in pairs])

    eager = decoded()
    yield "1.5 decoding, eager, codes/s", 1 / indextts.decoding(runtime, setup.codes)
    reach = runtime.vocoder.shape.reach
    aheads = [runtime.look_ahead_codes(look_ahead) for look_ahead in setup.look_aheads]
    if setup.device.type == "cuda":
        begun_s = time.perf_counter()
        compile_steps(runtime.gpt.gpt)
        yield "1.5 compiling, s", time.perf_counter() - begun_s
    begun_s = time.perf_counter()
    runtime.record(sorted({size for ahead in aheads for size in window_sizes(reach, ahead)}))
    yield "1.5 recording, s", time.perf_counter() - begun_s
    recorded = decoded()
    with patch.object(Graphs, "run", lambda _, __, function: function()):
        unrecorded = decoded()
    is_equal = recorded[0] == unrecorded[0] and bool((recorded[1] == unrecorded[1]).all())
    yield "1.5 recorded codes equal unrecorded ones", "yes" if is_equal else "no"
    # Compiled code and padded prompts round differently, and one different code changes all codes after it.
    pairs = enumerate(zip(recorded[0], eager[0], strict=False))
    same = next((index for index, (left, right) in pairs if left != right), min(len(recorded[0]), len(eager[0])))
    yield "1.5 recorded codes before one differs from eager ones", float(same)
    difference = recorded[1][: same + 1] - eager[1][: same + 1]
    yield "1.5 largest difference of a latent until then", float(difference.abs().max())
    seconds = indextts.decoding(runtime, setup.codes)
    yield "1.5 decoding, recorded, codes/s", 1 / seconds
    yield "1.5 decoding, recorded, ms a step", seconds * 1e3
    yield "1.5 floor of a step (bytes over bandwidth), ms", floor_s * 1e3
    yield "1.5 peak memory, MB", indextts.memory_mb(setup.device)
    for rows, spent_s in indextts.by_rows(runtime, (2,) if setup.is_tiny else STREAMS, min(setup.codes, 64)).items():
        yield f"1.5 decoding, {rows} rows, codes/s", rows / spent_s
    yield from attention(setup, runtime)
    yield from vocoder(setup, runtime)
    for look_ahead in setup.look_aheads:
        first_s, total_s, audio_s = indextts.streaming(runtime, look_ahead, setup.codes)
        yield f"1.5 first audio below HTTP, look-ahead {look_ahead}, ms", first_s * 1e3
        yield f"1.5 real-time factor, look-ahead {look_ahead}", total_s / audio_s


def attention(setup: Setup, runtime: Runtime) -> Results:
    """1.5 far into an utterance: steps that read the lengths of rows on the device, and steps recorded by span."""
    yield "1.5 attention reads lengths on the device", "yes" if runtime.gpt.gpt.reads_lengths else "no"
    inputs, codes, rows = (20, 8, (2,)) if setup.is_tiny else (800, 32, (1, 8, 32))
    for reads_lengths in sorted({False, runtime.gpt.gpt.reads_lengths}):
        with patch.object(runtime.gpt.gpt, "reads_lengths", reads_lengths):
            name = f"1.5 decoding after {inputs} inputs, {'by length' if reads_lengths else 'by span'}"
            for count, spent_s in indextts.by_rows(runtime, rows, codes, inputs).items():
                yield f"{name}, {count} rows, codes/s", count / spent_s
            [spent_s] = indextts.by_rows(runtime, rows[-1:], codes, inputs, used=1).values()
            yield f"{name}, 1 of {rows[-1]} rows, codes/s", 1 / spent_s


def vocoder(setup: Setup, runtime: Runtime) -> Results:
    """1.5: a window, and a batch of them, with its activations as separate operators and as one kernel each."""
    model, codes = runtime.vocoder, CHUNKS[-1]
    length = codes + 2 * model.shape.reach
    kernel = activation.kernel_for(model.activation_post.filter)
    yield "1.5 each activation of the vocoder is one kernel", "yes" if kernel else "no"
    weight = model.conv_post.weight
    frames, speaker = weight.new_zeros(length, model.shape.frame_width), weight.new_zeros(model.speaker_width)
    for each in dict.fromkeys((None, kernel)):
        windows = Windows(model, model.speaker_width)
        with patch.object(activation, "kernel_for", return_value=each):
            windows.record(length, MAX_BATCH)
        for count in (1,) if setup.is_tiny else (1, MAX_BATCH):
            times = []
            for _ in range(1 if setup.is_tiny else 9):
                pieces = [next(windows.vocode(frames, speaker)) for _ in range(count)]
                run = partial(pieces[0].run, [piece.item for piece in pieces])
                times.append(indextts.seconds_of(setup.device, run))
            name = (
                f"1.5 vocoder, {count} x {length} codes for {codes}, {'one kernel' if each else 'separate operators'}"
            )
            yield f"{name}, ms", percentile(times, 50) * 1e3
            yield f"{name}, audio s/s", count * codes * runtime.samples_per_code / 24_000 / percentile(times, 50)


def flow_and_vocoder(setup: Setup) -> Results:
    """2.0 by mode and steps: one sentence of some seconds."""
    runtime = indextts2.random_runtime("2.0", setup.device, setup.dtype, setup.is_tiny)
    acoustics, seconds = runtime.acoustics, 1.5 if setup.is_tiny else 5.0
    frames = 40 if setup.is_tiny else indextts2.REFERENCE_FRAMES
    if setup.device.type == "cuda":
        begun_s = time.perf_counter()
        runtime.record()
        for pace in indextts2.PACES.values():
            record(acoustics, pace, frames, longest=round(seconds * SAMPLE_RATE_HZ / 256))
        yield "2.0 recording, s", time.perf_counter() - begun_s
    reference = indextts2.random_reference(acoustics, frames)
    utterance = indextts2.spoken_codes(runtime, indextts2.codes_of(acoustics, seconds))
    for mode, pace in indextts2.PACES.items():
        for steps in (2,) if setup.is_tiny else (25, 12):
            for _ in range(2 if setup.device.type == "cuda" else 1):
                spent = cost(acoustics, MelStream(acoustics, reference, pace, steps, seed=1), pace, utterance)
            yield f"2.0 first audio, {mode}, {steps} steps, ms", spent.first_audio_s * 1e3
            yield f"2.0 real-time factor, {mode}, {steps} steps", spent.real_time_factor
    yield "2.0 peak memory, MB", indextts.memory_mb(setup.device)


def streams_of_2(setup: Setup) -> Results:
    """2.0 below HTTP, by mode: one request, then many at once, in one batch of codes, of solves and of windows."""
    count, steps, seconds, frames = (2, 2, 1.0, 40) if setup.is_tiny else (16, 12, 5.0, indextts2.REFERENCE_FRAMES)
    runtime = indextts2.random_runtime("2.0", setup.device, setup.dtype, setup.is_tiny)
    voice, codes = indextts2.random_voice(runtime, frames), indextts2.codes_of(runtime.acoustics, seconds)
    generation = Generation(max_mel_tokens=codes, num_beams=1, seed=1)
    owner = OwnerThread("streams", runtime.writer.step)
    synthesiser = Synthesiser(runtime, steps, wake=owner.wake)
    segment = Segment(list(range(2, 2 + indextts2.TEXT_TOKENS)))

    def prepare() -> None:
        runtime.writer.open(count)
        if setup.device.type == "cuda":
            runtime.record()
            for pace in indextts2.PACES.values():
                record(runtime.acoustics, pace, frames, round(seconds * SAMPLE_RATE_HZ / 256), count)

    async def listened(mode: str, seed: int) -> Heard:
        delivery = Delivery(voice, voice.emotion, replace(generation, seed=seed))
        player = Player()

        def audio(_: Check) -> Audio:
            if mode == "chunk":
                return synthesiser.synthesise_by_chunk(delivery, [segment])
            return synthesiser.synthesise_by_segment(delivery, [segment], 1)

        async with aclosing(owner.interleave(audio)) as chunks:
            async for samples in chunks:
                player.take(len(samples) / SAMPLE_RATE_HZ)
        return player.heard

    async def all_of_them(mode: str, streams: int) -> list[Heard]:
        return await asyncio.gather(*(listened(mode, seed) for seed in range(streams)))

    with asyncio.Runner() as runner:
        try:
            runner.run(owner.call(prepare))
            for mode in indextts2.PACES:
                for streams in (1, count):
                    begun_s = time.perf_counter()
                    heard = runner.run(all_of_them(mode, streams))
                    name = f"2.0, {mode}, {steps} steps, {streams} streams"
                    yield from summary(name, heard, time.perf_counter() - begun_s)
        finally:
            synthesiser.close()
            runner.run(owner.aclose())


def streams_over_http(setup: Setup) -> Results:
    """1.5 behind the server: first audio of one client, then of many at once."""
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = str(make_checkpoint(Path(folder), setup.sizes))
        precision = next(name for name, dtype in DTYPES.items() if dtype == setup.dtype)
        for look_ahead in setup.look_aheads:
            environment = {
                "ENGINE": "indextts", "MODEL_DIR": checkpoint, "DEVICE": setup.device.type, "PRECISION": precision,
                "LOOK_AHEAD": str(look_ahead), "MAX_CONCURRENT": str(2 if setup.is_tiny else max(STREAMS)),
            }  # fmt: skip
            begun_s = time.perf_counter()
            with running_server(**environment) as server:
                name = "exact" if look_ahead == "exact" else f"look-ahead {look_ahead}"
                yield f"1.5 start to ready, {name}, s", time.perf_counter() - begun_s
                loaded = server.logged("model loaded")
                for phase in ("load", "record", "synthesis"):  # nothing is recorded on the CPU
                    yield f"1.5 of it {phase}, {name}, s", float(str(loaded.get(f"{phase}_s", 0.0)))
                firsts = [asyncio.run(listened(server.port)).first_ms for _ in range(3 if setup.is_tiny else 20)]
                yield f"1.5 first audio over HTTP, {name}, p50 ms", percentile(firsts[1:], 50)
                if look_ahead == 4:
                    for count in (2,) if setup.is_tiny else STREAMS:
                        yield from together(server.port, count)


def together(port: int, count: int) -> Results:
    """As many clients at once."""

    async def all_of_them() -> list[Heard]:
        return await asyncio.gather(*(listened(port) for _ in range(count)))

    begun_s = time.perf_counter()
    heard = asyncio.run(all_of_them())
    yield from summary(f"1.5, {count} streams", heard, time.perf_counter() - begun_s)


def summary(name: str, heard: Sequence[Heard], took_s: float) -> Results:
    for percent in (50, 95):
        yield f"{name}, first audio p{percent} ms", percentile([each.first_ms for each in heard], percent)
    yield f"{name}, audio s/s", sum(each.audio_s for each in heard) / took_s
    yield f"{name}, gap-free share", sum(each.has_no_gap for each in heard) / len(heard)


@dataclass(frozen=True, slots=True)
class Heard:
    """What one client of a PCM stream got."""

    first_ms: float
    audio_s: float
    has_no_gap: bool
    """Whether a player that starts with the first samples never runs dry."""


class Player:
    """Plays a stream that was requested now, from its first samples on."""

    def __init__(self) -> None:
        self._begun_s = time.perf_counter()
        self._first_s = self._audio_s = 0.0
        self._has_no_gap = True

    def take(self, audio_s: float) -> None:
        now_s = time.perf_counter()
        self._first_s = self._first_s or now_s
        self._has_no_gap &= now_s - self._first_s <= self._audio_s
        self._audio_s += audio_s

    @property
    def heard(self) -> Heard:
        return Heard((self._first_s - self._begun_s) * 1e3, self._audio_s, self._has_no_gap)


async def listened(port: int, rate_hz: int = 24_000) -> Heard:
    """Ask for one sentence and take the stream as it comes."""
    player = Player()
    async with request(port, "/synthesize_stream", {"text": SENTENCE, "seed": 1}) as reader:
        head = await reader.readuntil(b"\r\n\r\n")
        if b" 200 " not in head.split(b"\r\n", 1)[0]:
            raise RuntimeError(head.decode(errors="replace").splitlines()[0])
        while piece := await reader.read(65536):
            player.take(len(piece) / 2 / rate_hz)  # the marks between chunks are some bytes in thousands
    return player.heard


SECTIONS: tuple[Callable[[Setup], Results], ...] = (
    parity_in_fp32, decoding, flow_and_vocoder, streams_of_2, streams_over_http,
)  # fmt: skip


if __name__ == "__main__":
    main()
