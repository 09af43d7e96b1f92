"""The files of a Kokoro model: the hub's ONNX folder, or the two files published by kokoro-onnx.

The first has ``onnx/model*.onnx`` and ``voices/*.bin``, the second ``kokoro-v1.0*.onnx`` and ``voices-v1.0.bin``.
"""

from __future__ import annotations

import zipfile
from pathlib import Path

_PRECISIONS = {
    "model": "fp32",
    "model_fp16": "fp16",
    "model_quantized": "int8",
    "kokoro-v1.0": "fp32",
    "kokoro-v1.0.fp16": "fp16",
    "kokoro-v1.0.fp16-gpu": "fp16",
    "kokoro-v1.0.int8": "int8",
}


def find_models(folder: Path) -> dict[str, Path]:
    """Return the model files by precision: ``fp32``, ``fp16`` or ``int8``."""
    found: dict[str, Path] = {}
    for path in (*sorted(folder.glob("onnx/*.onnx")), *sorted(folder.glob("*.onnx"))):
        if precision := _PRECISIONS.get(path.stem):
            found.setdefault(precision, path)
    return found


def find_voices(folder: Path) -> dict[str, Path]:
    """Return the file of each voice by name."""
    voices = {path.stem: path for path in sorted(folder.glob("voices/*.bin"))}
    for archive in sorted(folder.glob("voices*.bin")):
        if zipfile.is_zipfile(archive):
            with zipfile.ZipFile(archive) as content:
                names = [name.removesuffix(".npy") for name in content.namelist() if name.endswith(".npy")]
            voices |= {name: archive for name in sorted(names) if name not in voices}
    return voices


def problem(folder: Path) -> str:
    """Return what is missing and the command that downloads it; empty if nothing is missing."""
    if not find_models(folder):
        missing = "onnx/model*.onnx or kokoro-v1.0*.onnx"
    elif not find_voices(folder):
        missing = "voices/*.bin or voices-v1.0.bin"
    else:
        return ""
    return f'MODEL_DIR "{folder}" has no {missing}; run: .venv/bin/streaming-server download kokoro --dir {folder}'
