"""Sessions of ONNX Runtime."""

from __future__ import annotations

from pathlib import Path

from onnxruntime import InferenceSession, SessionOptions

_ERRORS_ONLY = 3


def open_session(model: Path) -> InferenceSession:
    """A session on the CPU. One thread each: streams, not one call, are what runs in parallel."""
    options = SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = _ERRORS_ONLY
    return InferenceSession(model, options, providers=["CPUExecutionProvider"])
