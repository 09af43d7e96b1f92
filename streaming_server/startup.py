"""What is checked before the server starts, and the line that its start ends with."""

from __future__ import annotations

import errno
import os
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

from streaming_server import __version__
from streaming_server.engines.base import EngineInfo
from streaming_server.environment import InvalidSetting
from streaming_server.ops.gpu import gpus


def version() -> str:
    """The version of the server, with the commit where it runs from a Git working tree, as ``1.0.0+g1a2b3c4``."""
    root = Path(__file__).parents[1]
    if not (root / ".git").exists():
        return __version__
    try:
        commit = subprocess.run(
            ["git", "-C", root, "describe", "--always", "--dirty=.modified", "--exclude=*"],
            capture_output=True,
            text=True,
            check=True,
            timeout=10,
        ).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return __version__
    return f"{__version__}+g{commit}"


def check_address(host: str, port: int) -> None:
    """
    Raises:
        InvalidSetting: nothing can listen there; the sentence names the setting.
    """
    try:
        family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
    except OSError:
        raise InvalidSetting(f"HOST={host}: not an address of this machine") from None
    try:
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
            probe.listen()
    except PermissionError:
        raise InvalidSetting(f"PORT={port}: this user may not listen on it; take one of 1024 to 65535") from None
    except OSError as error:
        if error.errno != errno.EADDRINUSE:
            raise InvalidSetting(f"HOST={host}: not an address of this machine") from None
        raise InvalidSetting(f"PORT={port}: another process listens on it; take another port, or 0") from None


def check_writable(folder: Path) -> None:
    """Make the data directory.

    Raises:
        InvalidSetting: it cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise InvalidSetting(f"DATA_DIR={folder}: the folder cannot be written: {error.strerror}") from None


def check_recordings(folder: Path) -> None:
    """
    Raises:
        InvalidSetting: there is no such folder of reference recordings, or it cannot be read.
    """
    try:
        next(folder.iterdir(), None)
    except OSError as error:
        raise InvalidSetting(f"REFERENCE_AUDIO_DIR={folder}: the folder cannot be read: {error.strerror}") from None


def summary(info: EngineInfo, voices: int, host: str, port: int) -> str:
    """What runs, in one line."""
    shown = {"0.0.0.0": "localhost", "::": "localhost"}.get(host, f"[{host}]" if ":" in host else host)
    facts = {
        "engine": info.name,
        "model": " ".join(filter(None, [info.model_dir, info.model_version])),
        "device": info.device,
        "precision": info.precision or "none",
        "voices": voices,
        "player": f"http://{shown}:{port}/player",
    }
    return "server ready: " + ", ".join(f"{name} {value}" for name, value in facts.items())


def open_access(host: str, has_keys: bool) -> str:
    """A warning that every machine of the network may use the server; empty where that is not so."""
    if has_keys or host not in {"0.0.0.0", "::"}:
        return ""
    return f"no API_KEYS set and HOST={host}: every machine that reaches this one can use the server"


def unused_gpu(info: EngineInfo) -> str:
    """Why a GPU that the driver shows is not used, as a sentence; empty where there is none or it is used.

    Asks the driver, which blocks the thread for some milliseconds.
    """
    found = gpus()
    if not found or not info.device.startswith("cpu"):
        return ""
    torch = sys.modules.get("torch")  # imported by the engine, or not needed by it
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if torch is None:
        reason = f"the {info.name} engine runs on the CPU"
    elif torch.version.cuda is None:
        reason = f"torch {torch.__version__} is built without CUDA"
    elif torch.cuda.is_available():
        reason = "DEVICE=cpu"
    elif visible is not None:
        reason = f"CUDA_VISIBLE_DEVICES={visible} hides it"
    else:
        reason = f"torch {torch.__version__} needs a driver for CUDA {torch.version.cuda}"
    return f"GPU not used: {found[0].name}: {reason}"
