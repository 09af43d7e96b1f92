"""Lets transformers import a torchaudio that does not match the installed torch.

transformers imports torchaudio if it is installed. Each published wheel is compiled for one torch version; with another
version its extension module does not load. This project does not use the extension.
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
    """Import torchaudio if it is installed, so that later imports succeed.

    If its extension module does not load, an empty one replaces it.
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
