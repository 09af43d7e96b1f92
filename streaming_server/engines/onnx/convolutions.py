"""8-bit convolutions as products of matrices, which ONNX Runtime computes faster on a CPU, with the same result."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cache
from itertools import count
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import AttributeProto, GraphProto, NodeProto, TensorProto, helper, numpy_helper
from onnxruntime import InferenceSession

_REQUIRED = {"strides": [1], "group": 1, "auto_pad": b"NOTSET"}
"""The attributes, where given, of the convolutions that are replaced."""
_OPSET = 13
"""The version of ONNX's operators that is needed: the first whose ``Pad`` takes bytes."""
_GRAPHS = {AttributeProto.GRAPH, AttributeProto.GRAPHS}
_BEYOND = 2**31 - 1
"""End of a slice up to the last step."""


def as_products(model: bytes) -> bytes:
    """Return a model with ``MatMulInteger`` in place of each 1-D ``ConvInteger`` of stride 1; it computes the same.

    In a convolution ONNX Runtime arranges the unfolded input for its kernel in every call; in a product it arranges the
    constant matrix, once. The model stays as it is where products of unsigned and signed bytes are not exact.

    Raises:
        google.protobuf.message.DecodeError: it is not a model.
    """
    if not is_exact():
        return model
    parsed = onnx.load_from_string(model)
    if any(opset.domain in {"", "ai.onnx"} and opset.version < _OPSET for opset in parsed.opset_import):
        return model
    if any(attribute.type in _GRAPHS for node in parsed.graph.node for attribute in node.attribute):
        return model  # the graph within a node may use any weight
    graph = _Graph(parsed.graph)
    nodes = [made for node in parsed.graph.node for made in graph.replaced(node)]
    del parsed.graph.node[:]
    parsed.graph.node.extend(nodes)
    # Before version 4 of the format, initializers are inputs, too, and a removed one would have to be fed.
    used = {name for node in nodes for name in node.input}
    used |= {value.name for value in (*parsed.graph.input, *parsed.graph.output)}
    unused = graph.replaced_weights - used
    kept = [tensor for name, tensor in graph.constants.items() if name not in unused]
    del parsed.graph.initializer[:]
    parsed.graph.initializer.extend(kept)
    return parsed.SerializeToString()


@cache
def is_exact() -> bool:
    """Whether products of unsigned and signed bytes are exact on this CPU.

    Without instructions for dot products of bytes (VNNI on x86) the kernel adds pairs in 16 bits, which saturate.
    """
    left, right = np.full((4, 64), 255, np.uint8), np.full((64, 16), 127, np.int8)
    product = helper.make_graph(
        [helper.make_node("MatMulInteger", ["left", "right"], ["out"])],
        "product",
        [helper.make_tensor_value_info("left", TensorProto.UINT8, left.shape)],
        [helper.make_tensor_value_info("out", TensorProto.INT32, (4, 16))],
        [numpy_helper.from_array(right, "right")],
    )
    model = helper.make_model(product, opset_imports=[helper.make_opsetid("", _OPSET)], ir_version=8)
    session = InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {"left": left})
    return bool(np.array_equal(found, left.astype(np.int32) @ right.astype(np.int32)))


class _Graph:
    def __init__(self, graph: GraphProto) -> None:
        self.constants: dict[str, TensorProto] = {tensor.name: tensor for tensor in graph.initializer}
        self.replaced_weights = set[str]()
        self._names = (f"as_products/{number}" for number in count())
        self._rows: dict[tuple[Any, ...], str] = {}
        """The unfolded inputs, by the arguments of `_unfold`."""

    def replaced(self, node: NodeProto) -> Iterator[NodeProto]:
        """The nodes in place of a node."""
        source, weight, zero, weight_zero, *_ = [*node.input, "", "", "", ""]
        given = {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
        if (
            node.op_type != "ConvInteger"
            or weight not in self.constants
            or weight_zero not in {"", *self.constants}
            or len(self.constants[weight].dims) != 3
            or any(given.get(name, value) != value for name, value in _REQUIRED.items())
        ):
            yield node
            return
        values = numpy_helper.to_array(self.constants[weight])
        outputs, channels, taps = values.shape
        key = (source, zero, tuple(given.get("pads", (0, 0))), taps, *given.get("dilations", [1]))
        if key not in self._rows:
            made = self._unfold(*key)
            self._rows[key] = made[-1].output[0]
            yield from made
        matrix = values.transpose(2, 1, 0).reshape(taps * channels, outputs)
        offset = numpy_helper.to_array(self.constants[weight_zero]) if weight_zero else values.dtype.type(0)
        product = next(self._names)
        inputs = [self._rows[key], self._constant(_signed(matrix)), zero, self._constant(_signed(offset))]
        yield helper.make_node("MatMulInteger", inputs, [product])
        yield helper.make_node("Transpose", [product], [*node.output], perm=[0, 2, 1])
        self.replaced_weights.add(weight)

    def _unfold(self, source: str, zero: str, pads: Sequence[int], taps: int, dilation: int) -> list[NodeProto]:
        """Nodes that turn ``(batch, channels, steps)`` into rows ``(batch, steps, taps * channels)``."""
        made: list[NodeProto] = []

        def add(operator: str, *inputs: str, **attributes: Any) -> str:
            made.append(helper.make_node(operator, [*inputs], [next(self._names)], **attributes))
            return str(made[-1].output[0])

        rows = add("Transpose", source, perm=[0, 2, 1])
        if any(pads):
            before, after = pads
            rows = add("Pad", rows, self._integers(0, before, 0, 0, after, 0), zero)
        if taps > 1:
            reach, axis = (taps - 1) * dilation, self._integers(1)
            bounds = [(begin, begin - reach or _BEYOND) for begin in range(0, reach + 1, dilation)]
            slices = [add("Slice", rows, self._integers(begin), self._integers(end), axis) for begin, end in bounds]
            add("Concat", *slices, axis=2)
        return made

    def _integers(self, *values: int) -> str:
        return self._constant(np.array(values, np.int64))

    def _constant(self, value: npt.NDArray[Any]) -> str:
        name = next(self._names)
        self.constants[name] = numpy_helper.from_array(np.ascontiguousarray(value), name)
        return name


def _signed(values: Any) -> npt.NDArray[np.int8]:
    """Unsigned bytes, or their zero point, minus 128; signed ones as they are."""
    found = np.asarray(values)
    return (found.astype(np.int16) - 128).astype(np.int8) if found.dtype == np.uint8 else found
