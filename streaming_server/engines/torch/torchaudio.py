"""Keeps a torchaudio that does not fit the installed torch from getting in the way of transformers.

transformers imports torchaudio wherever it is installed. Its published wheels are compiled for one torch each: beside
another their extension does not load. Nothing of it is needed here. This module does not know transformers or models.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from contextlib import suppress
from types import ModuleType
from typing import Any

NAME = "torchaudio"
EXTENSION = f"{NAME}._extension"


def settle_torchaudio() -> None:
    """Import torchaudio, where it is installed, so that nobody's later import of it fails.

    Where its extension does not load, an empty one stands for it.
    """
    if NAME in sys.modules:
        return
    try:
        importlib.import_module(NAME)
    except ModuleNotFoundError:
        return
    except (ImportError, OSError, RuntimeError):
        for name in [name for name in sys.modules if name == NAME or name.startswith(f"{NAME}.")]:
            del sys.modules[name]
        sys.modules[EXTENSION] = _empty_extension()
        with suppress(ImportError, OSError, RuntimeError):
            importlib.import_module(NAME)


def _empty_extension() -> ModuleType:
    def as_it_is(function: Callable[..., Any]) -> Callable[..., Any]:
        return function

    extension = ModuleType(EXTENSION)
    extension._IS_TORCHAUDIO_EXT_AVAILABLE = False  # type: ignore[attr-defined]
    extension._check_cuda_version = lambda: None  # type: ignore[attr-defined]
    extension.fail_if_no_align = as_it_is  # type: ignore[attr-defined]
    return extension
