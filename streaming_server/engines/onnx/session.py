"""Sessions of ONNX Runtime."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from onnxruntime import InferenceSession, SessionOptions
from onnxruntime.capi.onnxruntime_pybind11_state import Fail, InvalidGraph

_ERRORS_ONLY = 3
# Field number and wire type: ValueInfoProto.name, GraphProto.output, ModelProto.graph.
_NAME, _GRAPH_OUTPUT, _MODEL_GRAPH = b"\x0a", b"\x62", b"\x3a"


def open_session(model: Path, inner: str = "") -> InferenceSession:
    """Create a session on the CPU with one thread, since streams run in parallel.

    Args:
        model: an ONNX file.
        inner: a value inside the graph that becomes an additional output, if the graph has it.
    """
    options = SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = _ERRORS_ONLY
    providers = ["CPUExecutionProvider"]
    if inner:
        with suppress(Fail, InvalidGraph):
            return InferenceSession(model.read_bytes() + additional_output(inner), options, providers=providers)
    return InferenceSession(model, options, providers=providers)


def additional_output(name: str) -> bytes:
    """Return a ``ModelProto`` with one graph output; appended to another one, protobuf merges them."""
    encoded = name.encode()
    for tag in (_NAME, _GRAPH_OUTPUT, _MODEL_GRAPH):
        encoded = tag + bytes([len(encoded)]) + encoded
    return encoded
