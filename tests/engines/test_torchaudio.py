"""transformers is imported whatever torchaudio lies beside it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

# What needs no torchaudio is imported once, and transformers in a fork for each folder.
USE = """
import os, sys, torch, torch._dynamo, torch.distributed.tensor
for folder in sys.argv[1:]:
    if not os.fork():
        sys.path.insert(0, folder)
        from streaming_server.engines.torch.torchaudio import settle_torchaudio as settle; settle(); settle()
        from transformers import Wav2Vec2BertModel
        print(getattr(sys.modules.get("torchaudio"), "whose", "none of ours"), flush=True)
        os._exit(0)
    assert os.wait()[1] == 0, folder
"""
EXTENSIONS = (
    "raise OSError('libc10_cuda.so: cannot open shared object file')",
    "raise RuntimeError('compiled for another torch')",
    "",
)


def test_an_extension_that_does_not_load_is_done_without(tmp_path: Path) -> None:
    for number, extension in enumerate(EXTENSIONS):
        package = tmp_path / str(number) / "torchaudio"
        (package / "_extension").mkdir(parents=True)
        (package / "__init__.py").write_text("from . import _extension\nwhose = 'ours'\n")
        (package / "_extension" / "__init__.py").write_text(extension)
    folders = [str(tmp_path / str(number)) for number in range(len(EXTENSIONS))]
    path = os.pathsep.join(sys.path)
    done = subprocess.run(
        [sys.executable, "-c", USE, *folders],
        env=os.environ | {"PYTHONPATH": path},
        check=True,
        capture_output=True,
        text=True,
    )
    assert done.stdout.split() == ["ours"] * len(EXTENSIONS)
