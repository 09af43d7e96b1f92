"""8-bit convolutions as products: small graphs in ONNX Runtime, before and after."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnxruntime import InferenceSession

from streaming_server.engines.onnx import convolutions
from streaming_server.engines.onnx.convolutions import as_products, is_exact

STEPS = 37
BYTES = np.random.default_rng(7)


@pytest.fixture(autouse=True)
def _exact(monkeypatch: pytest.MonkeyPatch) -> None:
    """The weights of these tests are small enough for every CPU."""
    monkeypatch.setattr(convolutions, "is_exact", lambda: True)


def weight(taps: int, dtype: Any = np.uint8, outputs: int = 5, channels: int = 8) -> npt.NDArray[Any]:
    low = 108 if dtype == np.uint8 else -20
    return BYTES.integers(low, low + 40, (outputs, channels, taps)).astype(dtype)


def convolving(
    weights: npt.NDArray[Any],
    zeros: tuple[int | None, npt.NDArray[Any] | None] = (3, None),
    opset: int = 13,
    dims: int = 3,
    twice: bool = False,
    **attributes: Any,
) -> bytes:
    """A model of one convolution, or of two on the same input."""
    zero, weight_zero = zeros
    constants = {"weight": weights}
    constants |= {} if zero is None else {"zero": np.array(zero, np.uint8)}
    constants |= {} if weight_zero is None else {"weight_zero": weight_zero}
    inputs = ["x", "weight", *(name if name in constants else "" for name in ("zero", "weight_zero"))]
    names = ["out", "again"][: 1 + twice]
    shape = (2, weights.shape[1] * attributes.get("group", 1), *(STEPS for _ in range(dims - 2)))
    graph = helper.make_graph(
        [helper.make_node("ConvInteger", inputs, [name], **attributes) for name in names],
        "convolutions",
        [helper.make_tensor_value_info("x", TensorProto.UINT8, shape)],
        [helper.make_tensor_value_info(name, TensorProto.INT32, None) for name in names],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    return bytes(model.SerializeToString())


def results(model: bytes, shape: tuple[int, ...] = (2, 8, STEPS)) -> list[npt.NDArray[np.int32]]:
    session = InferenceSession(model, providers=["CPUExecutionProvider"])
    x = np.random.default_rng(1).integers(0, 256, shape).astype(np.uint8)
    return [np.asarray(found) for found in session.run(None, {"x": x})]


def operators(model: bytes) -> list[str]:
    return [node.op_type for node in onnx.load_from_string(model).graph.node]


@pytest.mark.parametrize(
    ("model", "products"),
    [
        (convolving(weight(3), pads=[1, 1]), 1),
        (convolving(weight(3), pads=[2, 2], dilations=[2]), 1),
        (convolving(weight(11), (200, np.array(120, np.uint8)), pads=[25, 25], dilations=[5]), 1),
        (convolving(weight(7), (0, np.array(119, np.uint8)), pads=[0, 4]), 1),
        (convolving(weight(4), (None, None)), 1),
        (convolving(weight(1), strides=[1], group=1), 1),
        (convolving(weight(1, outputs=1), pads=[2, 0]), 1),
        (convolving(weight(3, np.int8), (9, np.array(-5, np.int8)), pads=[1, 1]), 1),
        (convolving(weight(3, np.int8), (9, None), pads=[1, 1]), 1),
        (convolving(weight(5), pads=[2, 2], twice=True), 2),
    ],
    ids=[
        "pads",
        "dilation",
        "zeros",
        "one-sided",
        "bare",
        "one-tap",
        "one-output",
        "signed",
        "no-zero",
        "two",
    ],
)
def test_the_products_give_the_same_integers(model: bytes, products: int) -> None:
    made = as_products(model)
    assert (operators(made).count("MatMulInteger"), operators(made).count("ConvInteger")) == (products, 0)
    assert operators(made).count("Pad") <= 1  # two convolutions of one input share the unfolded input
    assert "weight" not in [tensor.name for tensor in onnx.load_from_string(made).graph.initializer]
    for found, expected in zip(results(made), results(model), strict=True):
        np.testing.assert_array_equal(found, expected)


def test_a_weight_that_is_an_input_too_need_not_be_fed() -> None:
    parsed = onnx.load_from_string(convolving(weight(3), pads=[1, 1]))
    parsed.ir_version = 3
    for tensor in parsed.graph.initializer:
        parsed.graph.input.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))
    model = parsed.SerializeToString()
    np.testing.assert_array_equal(results(as_products(model))[0], results(model)[0])


def test_a_weight_that_is_an_output_too_is_kept() -> None:
    parsed = onnx.load_from_string(convolving(weight(3), pads=[1, 1]))
    parsed.graph.output.append(helper.make_tensor_value_info("weight", TensorProto.UINT8, [5, 8, 3]))
    model = parsed.SerializeToString()
    for found, expected in zip(results(as_products(model)), results(model), strict=True):
        np.testing.assert_array_equal(found, expected)


def test_a_model_with_graphs_in_its_nodes_stays() -> None:
    parsed = onnx.load_from_string(convolving(weight(3), pads=[1, 1]))
    inner = helper.make_graph(
        [helper.make_node("Identity", ["weight"], ["inner"])],
        "inner",
        [],
        [helper.make_tensor_value_info("inner", TensorProto.UINT8, [5, 8, 3])],
    )
    parsed.graph.initializer.append(numpy_helper.from_array(np.array(True), "condition"))
    parsed.graph.node.append(helper.make_node("If", ["condition"], ["same"], then_branch=inner, else_branch=inner))
    parsed.graph.output.append(helper.make_tensor_value_info("same", TensorProto.UINT8, [5, 8, 3]))
    model = parsed.SerializeToString()
    assert as_products(model) == model
    assert len(results(model)) == 2


@pytest.mark.parametrize(
    ("model", "shape"),
    [
        (convolving(weight(3), strides=[2]), (2, 8, STEPS)),
        (convolving(weight(3, outputs=6, channels=4), group=2), (2, 8, STEPS)),
        (convolving(weight(3), auto_pad="SAME_UPPER"), (2, 8, STEPS)),
        (convolving(weight(3)[..., None], dims=4), (2, 8, STEPS, STEPS)),
        (convolving(weight(3), opset=12), (2, 8, STEPS)),
    ],
    ids=["stride", "groups", "auto-pad", "2-D", "old-opset"],
)
def test_other_convolutions_stay(model: bytes, shape: tuple[int, ...]) -> None:
    made = as_products(model)
    assert operators(made) == operators(model)
    np.testing.assert_array_equal(results(made, shape), results(model, shape))


def test_a_cpu_whose_products_saturate_keeps_the_convolutions(monkeypatch: pytest.MonkeyPatch) -> None:
    is_exact.cache_clear()
    monkeypatch.undo()
    model = convolving(weight(3))
    session = SimpleSession()
    monkeypatch.setattr(convolutions, "InferenceSession", lambda *_, **__: session)
    assert as_products(model) == model
    is_exact.cache_clear()


class SimpleSession:
    """A kernel that adds pairs of products in 16 bits."""

    def run(self, _: None, inputs: dict[str, npt.NDArray[np.uint8]]) -> list[npt.NDArray[np.int32]]:
        rows, taps = inputs["left"].shape
        return [np.full((rows, 16), taps // 2 * min(2 * 255 * 127, 32767), np.int32)]
