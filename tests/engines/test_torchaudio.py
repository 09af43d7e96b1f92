"""transformers is imported whatever torchaudio lies beside it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

USE = (
    "from streaming_server.engines.torch.torchaudio import settle_torchaudio as settle; settle(); settle(); "
    "from transformers import Wav2Vec2BertModel; import sys; "
    "print(getattr(sys.modules.get('torchaudio'), 'whose', 'none of ours'))"
)


@pytest.mark.parametrize(
    ("extension", "result"),
    [
        ("raise OSError('libc10_cuda.so: cannot open shared object file')", "ours"),
        ("raise RuntimeError('compiled for another torch')", "ours"),
        ("", "ours"),
    ],
)
def test_an_extension_that_does_not_load_is_done_without(tmp_path: Path, extension: str, result: str) -> None:
    package = tmp_path / "torchaudio"
    (package / "_extension").mkdir(parents=True)
    (package / "__init__.py").write_text("from . import _extension\nwhose = 'ours'\n")
    (package / "_extension" / "__init__.py").write_text(extension)
    path = os.pathsep.join([str(tmp_path), *sys.path])
    done = subprocess.run(
        [sys.executable, "-c", USE], env=os.environ | {"PYTHONPATH": path}, check=True, capture_output=True, text=True
    )
    assert done.stdout.strip() == result
