"""The activation as one kernel: Triton's interpreter computes what the operators do, and its compiler accepts it."""

from __future__ import annotations

import importlib
import logging
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from streaming_server.engines.torch import activation
from streaming_server.engines.torch.activation import AliasFreeSnake, Kernel, difference, kernel_for
from streaming_server.engines.torch.pieces import result_of
from streaming_server.engines.torch.vocoder import Generator, GeneratorShape
from streaming_server.engines.torch.windows import Windows
from tests.engines.indextts.weights import state

triton = pytest.importorskip("triton", reason="Triton has packages for Linux on x86-64 only")

KERNEL = "streaming_server.engines.torch.snake_kernel"


@pytest.fixture
def interpreted(monkeypatch: pytest.MonkeyPatch) -> Iterator[Kernel]:
    """The kernel on the CPU."""
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    module = importlib.reload(importlib.import_module(KERNEL))
    yield module.alias_free_snake
    monkeypatch.delenv("TRITON_INTERPRET")
    importlib.reload(module)


def activations(channels: int, dtype: torch.dtype) -> AliasFreeSnake:
    rng = torch.Generator().manual_seed(1)
    module = AliasFreeSnake(channels).requires_grad_(requires_grad=False)
    module.act.alpha.copy_(3 * torch.rand(channels, generator=rng) + 0.1)
    module.act.beta.copy_(2 * torch.rand(channels, generator=rng))
    return module.to(dtype)


def computed(kernel: Kernel, x: Tensor, module: AliasFreeSnake) -> Tensor:
    return kernel(x, module.act.alpha, module.act.beta, module.filter)


# One program computes 512 samples; those within six of an end take another way.
@pytest.mark.parametrize("length", [1, 2, 3, 5, 512, 513, 1542])
def test_the_kernel_computes_what_the_operators_do(length: int, interpreted: Kernel) -> None:
    module = activations(3, torch.float32)
    x = 2 * torch.randn(1, 3, length, generator=torch.Generator().manual_seed(length))
    torch.testing.assert_close(computed(interpreted, x, module), module(x), atol=3e-6, rtol=0)


def test_rows_of_a_batch_may_lie_in_any_order(interpreted: Kernel) -> None:
    module = activations(3, torch.float32)
    x = torch.randn(2, 20, 3, generator=torch.Generator().manual_seed(1)).mT
    torch.testing.assert_close(computed(interpreted, x, module), module(x), atol=3e-6, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_in_half_precision_it_rounds_once(dtype: torch.dtype, interpreted: Kernel) -> None:
    module = activations(2, dtype)
    x = (2 * torch.randn(1, 2, 700, generator=torch.Generator().manual_seed(1))).to(dtype)
    exact = module.float()(x.float())
    found = computed(interpreted, x, module.to(dtype))
    assert found.dtype == dtype
    assert bool(((found.float() - exact).abs() <= torch.finfo(dtype).eps * exact.abs() + 1e-4).all())


@pytest.mark.parametrize(("dtype", "capability"), [("fp16", 80), ("fp16", 90), ("bf16", 90), ("fp32", 90)])
def test_it_compiles_for_a_gpu_without_spilling_registers(
    dtype: str, capability: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from triton.backends.compiler import GPUTarget

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    module = importlib.import_module(KERNEL)
    pointers = ("x", "alpha", "beta", "taps", "out")
    signature = dict.fromkeys(pointers, f"*{dtype}") | {"channels": "i32", "length": "i32", "THREADS": "constexpr"}
    aligned = {(index,): [["tt.divisibility", 16]] for index in range(len(pointers))}
    source = triton.compiler.ASTSource(module.activate, signature, {"THREADS": module.THREADS}, aligned)
    compiled = triton.compile(source, target=GPUTarget("cuda", capability, 32), options={"num_warps": 4})
    assert compiled.asm["cubin"]
    assert ".local" not in compiled.asm["ptx"]


HALF = torch.zeros((), dtype=torch.float16)
CUDA = SimpleNamespace(device=torch.device("cuda"), dtype=torch.float16)


@pytest.fixture
def _cuda_is_the_cpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(activation, "difference", lambda kernel, _: difference(kernel, HALF))


@pytest.mark.usefixtures("_cuda_is_the_cpu")
def test_the_kernel_is_used_where_it_computes_the_same(interpreted: Kernel, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "streaming_server"):
        assert kernel_for(CUDA) is interpreted  # type: ignore[arg-type]
        assert kernel_for(HALF) is None
    assert not caplog.records


def without_triton(*_: Tensor) -> Tensor:
    raise ModuleNotFoundError("No module named 'triton'")


def too_loud(x: Tensor, *_: Tensor) -> Tensor:
    return 1.01 * x


@pytest.mark.usefixtures("_cuda_is_the_cpu")
@pytest.mark.parametrize(
    ("broken", "reason"),
    [
        (without_triton, "ModuleNotFoundError: No module named 'triton'"),
        (too_loud, "its result is off by "),
        (lambda x, *_: x / 0 * 0, "its result is off by nan"),
    ],
)
def test_a_kernel_that_fails_or_computes_something_else_is_one_warning(
    broken: Kernel, reason: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(f"{KERNEL}.alias_free_snake", broken)
    with caplog.at_level(logging.WARNING, "streaming_server"):
        assert kernel_for(CUDA) is None  # type: ignore[arg-type]
    [record] = caplog.records
    assert record.getMessage().startswith(f"Triton not used: {reason}")
    assert record.getMessage().endswith("; the vocoder's activations run as separate operators")


def test_a_recorded_window_sounds_the_same(interpreted: Kernel, monkeypatch: pytest.MonkeyPatch) -> None:
    generator = Generator(GeneratorShape(8, 8, (4, 2), (8, 4), (3,), ((1,),)))
    generator.load_state_dict(state({key: list(value.shape) for key, value in generator.state_dict().items()}))
    frames = torch.randn(5, 8, generator=torch.Generator().manual_seed(1))
    kernels: list[Kernel | None] = [None, interpreted]
    found = []
    for kernel in kernels:
        monkeypatch.setattr(activation, "kernel_for", lambda _, kernel=kernel: kernel)
        windows = Windows(generator.requires_grad_(requires_grad=False))
        windows.record(5)
        assert generator.activation_post.kernel is kernel
        found.append(result_of(windows.vocode(frames)))
    torch.testing.assert_close(found[1], found[0], atol=1e-5, rtol=0)
