"""Speed of IndexTTS 2.0 and 2.5 on this machine by stage, below HTTP, relative to the machine's limits.

``python -m benchmarks.indextts2`` uses the real sizes with random weights, which do not affect the speed, so no
checkpoint is needed; ``--tiny`` uses small sizes. Stages run one after the other.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from benchmarks.indextts import bandwidth, memory_mb, reset_peak_memory, seconds_of
from streaming_server.engines.indextts2.acoustics import SAMPLE_RATE_HZ, Acoustics
from streaming_server.engines.indextts2.calibration import cost
from streaming_server.engines.indextts2.checkpoint import build
from streaming_server.engines.indextts2.chunks import CHUNK, SEGMENT, MelStream, Pace
from streaming_server.engines.indextts2.flow import Reference, Slots
from streaming_server.engines.indextts2.gpt import Gpt20
from streaming_server.engines.indextts2.runtime import Runtime
from streaming_server.engines.indextts2.synthesis import record
from streaming_server.engines.indextts2.voices import AnalysedVoice
from streaming_server.engines.torch.calibration import Utterance, decoded
from streaming_server.engines.torch.gpt import Projection
from streaming_server.engines.torch.model_engine import DTYPES, choose_device
from streaming_server.engines.torch.sampling import Sampling
from tests.engines.indextts2 import published, tiny

TEXT_TOKENS = 40
REFERENCE_S = 5
REFERENCE_FRAMES = round(REFERENCE_S * SAMPLE_RATE_HZ / 256)
STEPS = (25, 12, 8)
PROBE = 4096
"""Size of the square matrices whose product measures the arithmetic rate."""
PACES: Mapping[str, Pace] = {"chunk": CHUNK, "segment": SEGMENT}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tiny", action="store_true", help="small sizes, to test the benchmark itself")
    parser.add_argument("--version", choices=published.VERSIONS, action="append", help="default: both")
    parser.add_argument("--device", choices=["auto", "cuda", "mps", "cpu"], default="auto")
    parser.add_argument("--precision", choices=list(DTYPES), default=None)
    parser.add_argument("--steps", type=int, action="append", help="default: 25, 12 and 8")
    parser.add_argument("--seconds", type=float, default=5.0, help="seconds of speech in the measured sentence")
    arguments = parser.parse_args()
    device = choose_device(arguments.device)
    dtype = DTYPES[arguments.precision or ("bf16" if device.type == "cuda" else "fp32")]
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    arithmetic, memory = flops(device, dtype), bandwidth(device)
    print(f"{name}, {str(dtype).removeprefix('torch.')}: {arithmetic / 1e12:.2f} TFLOP/s, {memory / 1e9:.0f} GB/s")
    for version in arguments.version or published.VERSIONS:
        runtime = random_runtime(version, device, dtype, arguments.tiny)
        print(f"\n{'tiny' if arguments.tiny else version} sizes of {version}\n")
        measure(runtime, arguments.seconds, arguments.steps or STEPS, arithmetic, memory)


def measure(runtime: Runtime, seconds: float, all_steps: Sequence[int], arithmetic: float, memory: float) -> None:
    acoustics, device = runtime.acoustics, runtime.device
    if device.type == "cuda":
        runtime.record()
        for pace in PACES.values():
            record(acoustics, pace, REFERENCE_FRAMES, longest=round(seconds * SAMPLE_RATE_HZ / 256))
    reference = random_reference(acoustics, REFERENCE_FRAMES)
    utterance = spoken_codes(runtime, codes_of(acoustics, seconds))
    stages(acoustics, reference, utterance, arithmetic, memory, step_bytes(runtime))
    print("\n| mode | steps | first audio, ms | of it codes | real-time factor | peak memory, MB |")
    print("| --- | ---: | ---: | ---: | ---: | ---: |")
    for name, pace in PACES.items():
        for steps in all_steps:
            reset_peak_memory(device)
            for _ in range(2 if device.type == "cuda" else 1):
                spoken = cost(acoustics, MelStream(acoustics, reference, pace, steps, seed=1), pace, utterance)
            first, codes = spoken.first_audio_s * 1e3, spoken.codes_s * 1e3
            times = f"{first:.0f} | {codes:.0f} | {spoken.real_time_factor:.3f}"
            print(f"| {name} | {steps} | {times} | {memory_mb(device):.0f} |", flush=True)


def stages(
    acoustics: Acoustics, reference: Reference, utterance: Utterance, arithmetic: float, memory: float, read: int
) -> None:
    """Print one row per stage. The floor is its arithmetic, or for the GPT its weights, at the rate of this machine."""
    print("| stage | ms | floor, ms | times the floor |\n| --- | ---: | ---: | ---: |")
    first, *later = utterance.times_s
    row("text and first code", first, 0.0)
    row("a code", (later[-1] - first) / len(later), read / memory)
    codes, latents = utterance.codes[:30], utterance.latents[:30]
    timed("conditions of 30 codes", acoustics.device, partial(acoustics.mu, codes, latents), arithmetic)
    chunks = CHUNK.lengths(CHUNK.past)
    for frames in (chunks[0], chunks[-1]):
        slots = Slots(acoustics.s2mel.estimator, REFERENCE_FRAMES, frames)
        content = acoustics.s2mel.estimator.shape.content_width
        mu, noise = torch.randn(frames, content), torch.randn(frames, acoustics.bands)
        solve = slots.begin(reference, mu.to(acoustics.device), noise, 1)
        solve.scale_shift = solve.scale_shift.clone()  # the buffer itself cannot be written to its own place
        slots.hold([solve])
        rows = REFERENCE_FRAMES + frames
        timed(f"a step over {rows} frames, not recorded", acoustics.device, slots.step, arithmetic)
    for frames in (chunks[0], CHUNK.lengths(acoustics.vocoder.shape.reach)[-1]):
        mel = torch.randn(frames, acoustics.bands, device=acoustics.device)
        timed(f"vocoder, {frames} frames", acoustics.device, partial(acoustics.vocode, mel.mT), arithmetic)


def timed(name: str, device: torch.device, action: Callable[[], object], arithmetic: float) -> None:
    with FlopCounterMode(display=False, custom_mapping=UNCOUNTED) as counter:
        action()
    row(name, min(seconds_of(device, action) for _ in range(3)), counter.get_total_flops() / arithmetic)


def attention_flops(query: torch.Size, key: torch.Size, value: torch.Size, *_: object, **__: object) -> int:
    return int(sdpa_flop_count(query, key, value))  # type: ignore[no-untyped-call]


UNCOUNTED = {torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: attention_flops}
"""Return the operations of attention, which torch's counter omits."""


def row(name: str, seconds: float, floor: float) -> None:
    times = f"{floor * 1e3:.1f} | {seconds / floor:.1f}" if floor else "|"
    print(f"| {name} | {seconds * 1e3:.1f} | {times} |", flush=True)


def codes_of(acoustics: Acoustics, seconds: float) -> int:
    """Number of codes of this much audio."""
    return next(n for n in range(1, 100_000) if acoustics.frames(n) * 256 >= seconds * SAMPLE_RATE_HZ)


def random_reference(acoustics: Acoustics, frames: int) -> Reference:
    shape = acoustics.s2mel.estimator.shape
    normal = partial(torch.randn, device=acoustics.device)
    return Reference(normal(frames, shape.bands), normal(frames, shape.content_width), normal(shape.style_width))


def random_voice(runtime: Runtime, frames: int) -> AnalysedVoice:
    """A voice whose references have this number of frames."""
    gpt, reference = runtime.gpt, random_reference(runtime.acoustics, frames)
    tokens = gpt.perceiver_encoder.latents.shape[0] if isinstance(gpt, Gpt20) else 1
    width = gpt.mel_head.weight.shape[1]
    normal = partial(torch.randn, device=runtime.device)
    return AnalysedVoice(normal(tokens, width), reference.style, normal(width), reference, reference)


def spoken_codes(runtime: Runtime, count: int) -> Utterance:
    """Return this number of codes; on a GPU from the second of two runs."""
    voice = random_voice(runtime, 1)
    for _ in range(2 if runtime.device.type == "cuda" else 1):
        prefix = runtime.prefix(voice.conditioning, voice.emotion, range(2, 2 + TEXT_TOKENS))
        utterance = decoded(runtime.join(prefix, count, Sampling(temperature=0.8)), runtime.writer.step)
    return utterance


def random_runtime(version: str, device: torch.device, dtype: torch.dtype, small: bool) -> Runtime:
    """Create a runtime with random weights that never samples STOP."""
    if small:
        config = tiny.config_of(version) | {"bigvgan": tiny.BIGVGAN, "w2vbert": tiny.W2VBERT}
        states: dict[str, Any] = tiny.random_states(config, version)
    else:
        config = published.config(version)
        states = {
            name: {key: random_like(shape) for key, shape in shapes.items()}
            for name, shapes in published.shapes(version).items()
        }
    states["gpt"]["mel_head.bias"][config["gpt"]["stop_mel_token"]] = -1e4
    rows = sum(config["emo_num"])
    states["feat1"] = random_like([rows, config["s2mel"]["style_encoder"]["dim"]])
    states["feat2"] = random_like([rows, config["gpt"]["model_dim"]])
    return build(config, states, device, dtype)


def random_like(shape: Sequence[int]) -> Tensor:
    if len(shape) < 2:
        return torch.ones(*shape) if shape else torch.tensor(0)
    return torch.empty(*shape).normal_(std=torch.Size(shape[1:]).numel() ** -0.5)


def step_bytes(runtime: Runtime) -> int:
    """Return the bytes that a decoding step reads: the projections of all layers and the head."""
    read = [module for module in runtime.gpt.gpt.modules() if isinstance(module, Projection)]
    return sum(p.numel() * p.element_size() for module in [*read, runtime.gpt.mel_head] for p in module.parameters())


def flops(device: torch.device, dtype: torch.dtype) -> float:
    """Return the operations per second in a product of large matrices, the best of a few."""
    a = torch.randn(PROBE, PROBE, device=device).to(dtype)
    return float(2 * PROBE**3 / min(seconds_of(device, lambda: a @ a) for _ in range(3)))


if __name__ == "__main__":
    main()
