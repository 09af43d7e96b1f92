"""The import of torchaudio, and with it of transformers, which takes some care.

Knows why it fails; not what is done with either.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

_EXTENSION = "torchaudio._extension"


def import_torchaudio() -> None:
    """Make ``import torchaudio`` work, with or without its compiled extension.

    HiggsAudio's codec refuses to be constructed without it, for a resampler that is plain torch, and where it is
    installed transformers imports it for other models too. The published wheels are compiled against CUDA, and for one
    release of torch each: beside another torch, one for the CPU among them, their extension does not load, and
    torchaudio takes that for a reason not to be imported at all. Nothing that is needed here is in the extension, so
    that something empty stands for it.

    Raises:
        ModuleNotFoundError: torchaudio is not installed.
    """
    try:
        import torchaudio  # type: ignore[import-untyped]
    except ModuleNotFoundError:
        raise
    except (ImportError, OSError, RuntimeError, AttributeError):
        for name in [name for name in sys.modules if name == "torchaudio" or name.startswith("torchaudio.")]:
            del sys.modules[name]
        sys.modules[_EXTENSION] = _without_extension()
        import torchaudio  # noqa: F401


def _without_extension() -> ModuleType:
    def unchanged(function: Callable[..., Any]) -> Callable[..., Any]:
        return function

    stub = ModuleType(_EXTENSION)
    stub.__dict__.update(
        _IS_TORCHAUDIO_EXT_AVAILABLE=False,
        _check_cuda_version=lambda: None,
        fail_if_no_align=unchanged,
    )
    return stub
