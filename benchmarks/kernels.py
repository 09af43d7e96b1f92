"""Counts what one recorded step launches, reads and computes, at real sizes and without a GPU, and estimates its time.

``python -m benchmarks.kernels [--compile]`` runs the steps over tensors without memory. A kernel is an operator that is
no view. The estimate takes for each kernel the largest of the time to launch it inside a graph, to move its bytes and
to do its arithmetic on an H100; it is no measurement. ``--compile`` also compiles what lies between two attentions, for
the CPU, and counts its kernels before and after.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

import torch
import yaml
from torch import Tensor
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from benchmarks import indextts, indextts2
from benchmarks.common import table
from streaming_server.engines.indextts import checkpoint
from streaming_server.engines.indextts.engine import WHOLE_CODES
from streaming_server.engines.indextts.runtime import Runtime
from streaming_server.engines.indextts.stream import CHUNKS, window_sizes
from streaming_server.engines.indextts2 import checkpoint as checkpoint2
from streaming_server.engines.indextts2 import flow
from streaming_server.engines.indextts2.chunks import CHUNK
from streaming_server.engines.indextts2.runtime import Runtime as Runtime2
from streaming_server.engines.torch import activation, attention, decoding, windows
from streaming_server.engines.torch.compiled import difference
from streaming_server.engines.torch.gpt import CodeGpt, between
from streaming_server.engines.torch.graphs import WARM_UPS, Graphs
from streaming_server.engines.torch.sampling import RANKED
from streaming_server.engines.torch.snake_kernel import alias_free_snake
from streaming_server.engines.torch.vocoder import Generator
from tests.engines.indextts2 import published

LAUNCH_S = 1.8e-6
"""Shortest time of a kernel in a graph, with the gap to the next one."""
BYTES_S = 2.7e12
"""80 % of the bandwidth of an H100 SXM."""
FLOPS = 250e12
"""A quarter of its dense half-precision peak, as convolutions of these sizes reach it."""
INSTRUCTIONS_S = 2e13
"""Two thirds of its peak, counted for each thread."""
SNAKE_INSTRUCTIONS = 110
"""Of the activation's kernel for one sample, by the machine code that Triton generates for compute capability 9.0."""

OPERATOR_S = 15e-6
"""Time in which Python and torch launch an operator outside a graph."""

LOOK_UPS = ("embedding", "index", "index_select", "gather", "scatter", "scatter_", "index_copy_", "index_put_")
"""Operators that read and write as much as they move, not their whole input."""


@dataclass(frozen=True, slots=True)
class Kernel:
    """One operator that is no view."""

    name: str
    read_and_written: int
    operations: int
    instructions: int = 0
    """Those that are no part of a product of matrices, where they count."""

    @property
    def seconds(self) -> float:
        computed_s = self.operations / FLOPS + self.instructions / INSTRUCTIONS_S
        return max(LAUNCH_S, self.read_and_written / BYTES_S, computed_s)


class Counter(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notes the kernels of what runs inside."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.operators = 0
        self.runs = 0
        """How often the step runs at the start, once of these while it is captured."""
        self.kernels: list[Kernel] = []

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        self.operators += 1
        packet = func.overloadpacket
        name = packet.__name__
        if not func.is_view and name not in {"_unsafe_view", "empty", "new_empty", "empty_strided", "lift_fresh"}:
            given, made = tensors((args, kwargs)), tensors(result)
            sizes = [bytes_of(tensor) for tensor in [*given, *made]]
            moved = 2 * min(sizes) if name in LOOK_UPS else sum(sizes)
            count = flop_registry.get(packet)
            operations = int(count(*args, **(kwargs or {}), out_val=result)) if count else 0
            instructions = SNAKE_INSTRUCTIONS * result.numel() if name == "alias_free_snake" else 0
            self.kernels.append(Kernel(name, moved, operations, instructions))
        return result


def tensors(values: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(values) if isinstance(leaf, Tensor)]


def bytes_of(tensor: Tensor) -> int:
    """Memory that a tensor spans, or its elements where these leave gaps."""
    span = 1 + sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return min(tensor.numel(), span) * tensor.element_size()


class CountedGraphs(Graphs):
    """Runs each step once when it is recorded, and counts."""

    counted: dict[Hashable, Counter] = {}  # noqa: RUF012

    def record(self, key: Hashable, function: Callable[[], None], *, searches: bool = True) -> None:
        with Counter() as counter:
            super().record(key, function, searches=searches)
        counter.runs = 1 + (WARM_UPS if searches else 1)
        self.counted[key] = counter


@contextmanager
def counting(kernel: activation.Kernel | None = None) -> Iterator[Mapping[Hashable, Counter]]:
    """The steps that are recorded inside, by key; ``kernel`` computes the vocoder's activations."""
    CountedGraphs.counted = {}
    with ExitStack() as patches:
        for module in (decoding, flow, windows):
            patches.enter_context(patch.object(module, "Graphs", CountedGraphs))
        patches.enter_context(patch.object(functional, "scaled_dot_product_attention", attention_on_cuda))
        patches.enter_context(patch.object(activation, "kernel_for", lambda _: kernel))
        yield CountedGraphs.counted


def attention_on_cuda(
    queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None = None, *, is_causal: bool = False
) -> Tensor:
    """The operators that torch chooses on CUDA; for tensors without memory it chooses others."""
    aten = torch.ops.aten
    out: Tensor
    if mask is None:
        out, *_ = aten._scaled_dot_product_flash_attention(queries, keys, values, 0.0, is_causal)
    else:
        if mask.dtype == torch.bool:
            mask = torch.where(mask, 0.0, -torch.inf).to(queries.dtype)
        mask = mask.expand(*queries.shape[:-1], keys.shape[-2])
        out, *_ = aten._scaled_dot_product_efficient_attention(queries, keys, values, mask, compute_log_sumexp=False)
    return out


def row(name: str, *counters: Counter) -> list[str]:
    kernels = [kernel for counter in counters for kernel in counter.kernels]
    return [
        name,
        str(sum(counter.operators for counter in counters)),
        str(len(kernels)),
        f"{sum(kernel.operations for kernel in kernels) / 1e9:.1f}",
        f"{sum(kernel.read_and_written for kernel in kernels) / 1e6:.0f}",
        f"{sum(kernel.seconds for kernel in kernels) * 1e3:.2f}",
    ]


HEAD = ("one step, fp16", "operators", "kernels", "GFLOP", "MB", "estimate on an H100, ms")


def decoding_rows(name: str, gpt: CodeGpt, rows: Sequence[int]) -> Iterator[list[str]]:
    """A decoding step with 512 slots in use, by both kinds of attention, and a prompt."""
    slots, prompt = 2 * attention.SPAN, 2 * decoding.BUCKET
    for count in rows:
        for gpt.gpt.reads_lengths in (True, False):
            with counting() as counted:
                decoding.Decoder(gpt, count, slots, 8).record(prompt if count == 1 else 0)
            step = [counted["draw", count, RANKED], counted["advance", count, slots]]
            kind = "by length" if gpt.gpt.reads_lengths else "by span"
            yield row(f"{name} decoding, {count} rows, {slots} slots {kind}", *step)
        if count == 1:
            yield row(f"{name} prompt of {prompt} inputs", counted["prompt", prompt])


def without_memory() -> tuple[Runtime, Runtime2]:
    """1.5 and 2.0 at real sizes on the meta device."""
    config = yaml.safe_load(indextts.REAL_SIZES.read_text(encoding="utf-8"))
    states = [
        {key: torch.empty(value.shape, device="meta") for key, value in module.state_dict().items()}
        for module in checkpoint.assemble(config, {}, {})
    ]
    runtime = checkpoint.build(config, states[0], states[1], "meta", torch.float16)
    config2 = published.config("2.0")
    shapes = published.shapes("2.0")
    states2: dict[str, Any] = {
        name: {key: torch.empty(shape, device="meta") for key, shape in of.items()} for name, of in shapes.items()
    }
    count = sum(config2["emo_num"])
    states2["feat1"], states2["feat2"] = torch.empty(count, 192), torch.empty(count, 1280)
    return runtime, checkpoint2.build(config2, states2, "meta", torch.float16)


def window_rows(
    name: str, vocoder: Generator, length: int, *voice_widths: int, requests: int = 1
) -> Iterator[list[str]]:
    """The windows of as many requests in one batch, with each activation as one kernel and as separate operators."""
    for kernel, kind in ((alias_free_snake, ""), (None, ", separate operators")):
        with counting(kernel) as counted:
            windows.Windows(vocoder, *voice_widths).record(length, requests)
        yield row(name + kind, counted[length, requests])


def measured(rows: Sequence[int]) -> Iterator[list[str]]:
    """The rows of the table."""
    runtime, runtime2 = without_memory()
    yield from decoding_rows("1.5", runtime.gpt, rows)
    reach = runtime.vocoder.shape.reach
    speaker_width = runtime.vocoder.speaker_width
    first, *_, last = CHUNKS
    yield from window_rows(
        f"1.5 vocoder, the first {first + reach} codes", runtime.vocoder, first + reach, speaker_width
    )
    for look_ahead in (reach, 4):
        length = reach + last + look_ahead
        yield from window_rows(f"1.5 vocoder, {length} codes for {last}", runtime.vocoder, length, speaker_width)
    length, count = 2 * reach + last, windows.MAX_BATCH
    yield from window_rows(
        f"1.5 vocoder, {count} windows of {length} codes", runtime.vocoder, length, speaker_width, requests=count
    )
    yield from decoding_rows("2.0", runtime2.gpt, rows[:1])
    acoustics = runtime2.acoustics
    for target in (CHUNK.lengths(CHUNK.past)[0], CHUNK.lengths(CHUNK.past)[-1]):
        with counting() as counted:
            flow.Flow(acoustics.s2mel.estimator).record(indextts2.REFERENCE_FRAMES, target)
        yield row(f"2.0 flow, a step of {indextts2.REFERENCE_FRAMES} + {target} frames", *counted.values())
    first, *_, last = CHUNK.lengths(acoustics.vocoder.shape.reach)
    yield from window_rows(f"2.0 vocoder, the first {first} frames", acoustics.vocoder, first)
    yield from window_rows(f"2.0 vocoder, {last} frames for {CHUNK.chunks[-1]}", acoustics.vocoder, last)


def start_rows(rows: Sequence[int]) -> Iterator[list[str]]:
    """What the start of 1.5 with the exact look-ahead records, by the requests decoded at a time."""
    for count in rows:
        with counting(alias_free_snake) as counted:
            runtime, _ = without_memory()
            runtime.gpt.gpt.reads_lengths = True
            runtime.writer.open(count)
            reach = runtime.vocoder.shape.reach
            runtime.record(window_sizes(reach, reach), WHOLE_CODES, count)
        steps = counted.values()
        run = sum(step.operators * step.runs for step in steps)
        values = (len(steps), sum(step.operators for step in steps), run, f"{run * OPERATOR_S:.1f}")
        yield [f"1.5, {count} rows", *map(str, values)]


def compiled_rows(layers: int) -> Iterator[list[str]]:
    """Kernels between two attentions, and of all blocks of a step, before and after compiling for the CPU."""
    from torch._inductor import metrics

    config = yaml.safe_load(indextts.REAL_SIZES.read_text(encoding="utf-8"))
    config["gpt"]["layers"] = 2
    gpt = indextts.random_runtime(config, torch.device("cpu"), torch.float32).gpt
    block, following, *_ = gpt.gpt.blocks
    inputs = (*torch.randn(2, 1, 1, gpt.shape.width), *block.weights_after, *following.weights_before)
    with Counter() as counter:
        between(*inputs)
    products = sum(kernel.operations > 0 for kernel in counter.kernels)
    metrics.reset()
    problem = difference(torch.compile(between, fullgraph=True), gpt.gpt)
    fused = metrics.generated_kernel_count
    yield ["between two attentions", str(len(counter.kernels)), f"{products} products + {fused} fused"]
    saved = (layers - 1) * (len(counter.kernels) - products - fused)
    yield [f"all {layers} blocks of a step", "", f"{saved} fewer"]
    yield ["difference of the results", "", problem or "within the tolerance"]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 8, 32], help="requests decoded at a time")
    parser.add_argument("--compile", action="store_true", help="also compile, which takes about a minute")
    options = parser.parse_args(arguments)
    table(HEAD, list(measured(options.rows)))
    print()
    head = ("recorded at the start", "graphs", "operators", "of all runs", "launches, s")
    table(head, list(start_rows((min(options.rows), max(options.rows)))))
    if options.compile:
        print()
        table(["compiled by torch.compile", "kernels before", "after"], list(compiled_rows(layers=24)))


if __name__ == "__main__":
    main()
