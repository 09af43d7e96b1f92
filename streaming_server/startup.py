"""Checks before the start of the server, and the messages at its end."""

from __future__ import annotations

import errno
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping
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


def check_addresses(host: str, ports: Mapping[str, int]) -> None:
    """Check that the server can listen on its ports.

    Args:
        host: the address.
        ports: the ports by their settings.

    Raises:
        InvalidSetting: it cannot; the message names the setting.
    """
    settings: dict[int, str] = {}
    for setting, port in ports.items():
        if port and settings.setdefault(port, setting) != setting:
            raise InvalidSetting(f"{setting}={port}: the same port as {settings[port]}")
        _check_address(host, port, setting)


def _check_address(host: str, port: int, setting: str) -> None:
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
        raise InvalidSetting(f"{setting}={port}: permission denied; use a port from 1024 to 65535") from None
    except OSError as error:
        if error.errno != errno.EADDRINUSE:
            raise InvalidSetting(f"HOST={host}: not an address of this machine") from None
        raise InvalidSetting(f"{setting}={port}: the port is in use; choose another port, or 0") from None


def check_writable(folder: Path) -> None:
    """Create the data directory.

    Raises:
        InvalidSetting: it is not writable.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise InvalidSetting(f"DATA_DIR={folder}: the folder cannot be written: {error.strerror}") from None


def check_recordings(folder: Path) -> None:
    """Check the folder of reference recordings.

    Raises:
        InvalidSetting: it does not exist or cannot be read.
    """
    try:
        next(folder.iterdir(), None)
    except OSError as error:
        raise InvalidSetting(f"REFERENCE_AUDIO_DIR={folder}: the folder cannot be read: {error.strerror}") from None


def summary(info: EngineInfo, voices: int, host: str, port: int) -> str:
    """Return the line that reports the running configuration."""
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
    """Return a warning if every machine of the network may use the server, otherwise an empty string."""
    if has_keys or host not in {"0.0.0.0", "::"}:
        return ""
    return f"no API_KEYS set and HOST={host}: every machine that reaches this one can use the server"


def unused_gpu(info: EngineInfo) -> str:
    """Return a warning that a GPU is not used by choice; empty if there is none, or it is used.

    If torch cannot use the GPU, the engine logs the reason. The call blocks for some milliseconds.
    """
    found = gpus()
    if not found or not info.device.startswith("cpu"):
        return ""
    torch = sys.modules.get("torch")
    if torch is None:
        reason = f"the {info.name} engine runs on the CPU"
    elif torch.cuda.is_available():
        reason = "DEVICE=cpu"
    else:
        return ""
    return f"GPU not used: {found[0].name}: {reason}"
