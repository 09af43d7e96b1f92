"""Speed of IndexTTS 1.5 on this machine, below HTTP, relative to its memory bandwidth.

``python -m benchmarks.indextts`` uses the sizes of 1.5 with random weights, which do not affect the speed, so no
checkpoint is needed; ``--tiny`` uses small sizes.
"""

from __future__ import annotations

import argparse
import resource
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from torch import Tensor, nn

from benchmarks.common import percentile
from streaming_server.domain import Generation
from streaming_server.engines.indextts.checkpoint import assemble, build
from streaming_server.engines.indextts.features import SAMPLE_RATE_HZ
from streaming_server.engines.indextts.runtime import LookAhead, Runtime
from streaming_server.engines.indextts.stream import Synthesiser, window_sizes
from streaming_server.engines.indextts.voices import AnalysedVoice
from streaming_server.engines.torch.decoding import Decoder
from streaming_server.engines.torch.gpt import Projection
from streaming_server.engines.torch.model_engine import DTYPES, choose_device
from streaming_server.engines.torch.sampling import Sampling
from tests.engines.indextts.tiny import SIZES

REAL_SIZES = Path(__file__).parents[1] / "tests" / "data" / "indextts15" / "config_1.5.yaml"
TEXT_TOKENS = 40
LOOK_AHEADS: tuple[LookAhead, ...] = ("exact", 16, 8, 4)
PROBE_BYTES = 1 << 30
ROUNDS = 3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tiny", action="store_true", help="small sizes, to test the benchmark itself")
    parser.add_argument("--device", choices=["auto", "cuda", "mps", "cpu"], default="auto")
    parser.add_argument("--precision", choices=list(DTYPES), default=None)
    parser.add_argument("--codes", type=int, default=128, help="number of codes of each measured sentence")
    arguments = parser.parse_args()
    device = choose_device(arguments.device)
    dtype = DTYPES[arguments.precision or ("fp16" if device.type == "cuda" else "fp32")]
    config = SIZES if arguments.tiny else yaml.safe_load(REAL_SIZES.read_text(encoding="utf-8"))
    runtime = random_runtime(config, device, dtype)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    print(f"{'tiny' if arguments.tiny else '1.5'} sizes, {str(dtype).removeprefix('torch.')}, {name}\n")
    read, rate = step_bytes(runtime), bandwidth(device)
    floor_s = read / rate
    print("| decoding | ms a code | codes/s | times the floor |\n| --- | ---: | ---: | ---: |")
    floor = f"floor: {read / 1e6:.0f} MB of weights at {rate / 1e9:.0f} GB/s"
    print(f"| {floor} | {floor_s * 1e3:.2f} | {1 / floor_s:.0f} | 1.0 |")
    stream_tables = []
    for mode in ("eager", "graphs") if device.type == "cuda" else ("eager",):
        reset_peak_memory(device)
        if mode == "graphs":
            reach = runtime.vocoder.shape.reach
            runtime.record(
                sorted({n for ahead in LOOK_AHEADS for n in window_sizes(reach, runtime.look_ahead_codes(ahead))})
            )
        seconds = decoding(runtime, arguments.codes)
        print(f"| {mode} | {seconds * 1e3:.2f} | {1 / seconds:.0f} | {seconds / floor_s:.1f} |")
        for look_ahead in LOOK_AHEADS:
            first, total, audio = streaming(runtime, look_ahead, arguments.codes)
            row = f"| {mode} | {look_ahead} | {first * 1e3:.0f} | {total / audio:.3f} | {memory_mb(device):.0f} |"
            stream_tables.append(row)
    print("\n| stream | look-ahead | first audio, ms | real-time factor | peak memory, MB |")
    print("| --- | --- | ---: | ---: | ---: |")
    print("\n".join(stream_tables))


def random_runtime(config: Mapping[str, Any], device: torch.device, dtype: torch.dtype) -> Runtime:
    """Create a runtime with random weights that never samples STOP."""
    states = [{k: random_like(v) for k, v in module.state_dict().items()} for module in assemble(config, {}, {})]
    states[0]["mel_head.bias"][config["gpt"]["stop_mel_token"]] = -1e4
    return build(config, states[0], states[1], device, dtype)


def random_like(meta: Tensor) -> Tensor:
    if meta.ndim < 2:
        return torch.ones(meta.shape)
    return torch.randn(meta.shape).mul_(meta[0].numel() ** -0.5)


def step_bytes(runtime: Runtime) -> int:
    """Return the bytes that a decoding step reads: the projections of all layers and the head."""
    read: Iterable[nn.Module] = [m for m in runtime.gpt.gpt.modules() if isinstance(m, Projection)]
    return sum(p.numel() * p.element_size() for m in [*read, runtime.gpt.mel_head] for p in m.parameters())


def bandwidth(device: torch.device) -> float:
    """Return the memory bandwidth in bytes per second: the best of a few passes over a large tensor."""
    probe = torch.ones(PROBE_BYTES // 4, device=device)
    return PROBE_BYTES / min(seconds_of(device, probe.sum) for _ in range(5))


def seconds_of(device: torch.device, action: Any) -> float:
    synchronise(device)
    begun = time.perf_counter()
    action()
    synchronise(device)
    return time.perf_counter() - begun


def synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def decoding(runtime: Runtime, codes: int) -> float:
    """Return the seconds per code, without the prompt."""
    conditioning = torch.randn(runtime.gpt.perceiver_encoder.latents.shape)

    def run() -> Iterator[float]:
        for _ in runtime.decode(conditioning, range(2, 2 + TEXT_TOKENS), codes):
            yield time.perf_counter()

    times = [list(run()) for _ in range(2)][-1]
    return (times[-1] - times[0]) / (len(times) - 1)


def by_rows(
    runtime: Runtime, rows: Sequence[int], codes: int, inputs: int = 11, used: int | None = None
) -> dict[int, float]:
    """Median seconds of a step by number of rows, after a prompt of ``inputs``.

    The numbers of rows take turns, so that other load hits all of them. Only ``used`` rows decode, by default all.
    """
    prompt = torch.randn_like(runtime.gpt.perceiver_encoder.latents[:1].expand(inputs, -1))
    decoders = {count: Decoder(runtime.gpt, count, len(prompt) + codes + 1, codes + 1) for count in rows}
    if runtime.device.type == "cuda":
        for decoder in decoders.values():
            decoder.record()
    times: dict[int, list[float]] = {count: [] for count in rows}
    for count, decoder in chain.from_iterable(decoders.items() for _ in range(ROUNDS)):
        generators = [torch.Generator(runtime.device).manual_seed(row) for row in range(used or count)]
        joined = [decoder.join(prompt, codes + 1, Sampling(), generator) for generator in generators]
        decoder.step()
        for _ in range(codes):
            times[count].append(seconds_of(runtime.device, decoder.step))
            for row in joined:
                row.codes.clear()
        for row in joined:
            decoder.leave(row)
    return {count: percentile(spent, 50) for count, spent in times.items()}


def streaming(runtime: Runtime, look_ahead: LookAhead, codes: int) -> tuple[float, float, float]:
    """Return the seconds to the first and to the last audio, and the seconds of audio, of the second of two runs."""
    shape = runtime.gpt.shape
    speaker_width = runtime.vocoder.speaker_width
    voice = AnalysedVoice(torch.randn(runtime.gpt.perceiver_encoder.latents.shape), torch.randn(speaker_width))
    synthesiser = Synthesiser(runtime, look_ahead)
    generation = Generation(seed=1, max_mel_tokens=min(codes, shape.max_mel))
    for _ in range(2):
        begun = time.perf_counter()
        first, samples = 0.0, 0
        for chunk in synthesiser.synthesise_by_token(voice, [list(range(2, 2 + TEXT_TOKENS))], generation):
            if isinstance(chunk, np.ndarray):
                first = first or time.perf_counter() - begun
                samples += len(chunk)
        total = time.perf_counter() - begun
    synthesiser.close()
    return first, total, samples / SAMPLE_RATE_HZ


def reset_peak_memory(device: torch.device) -> None:
    """Let `memory_mb` count from now on; that of the process cannot be reset."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def memory_mb(device: torch.device) -> float:
    """Return the peak memory of the GPU since `reset_peak_memory`, otherwise of the process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e6
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3


if __name__ == "__main__":
    main()
