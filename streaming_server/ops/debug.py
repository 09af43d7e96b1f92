"""Means to look into a running server: the stacks of its threads, on a signal."""

from __future__ import annotations

import faulthandler
import signal


def dump_stacks_on_signal() -> None:
    """Write the stacks of all threads to stderr at each SIGUSR1, also while the event loop is blocked."""
    if hasattr(signal, "SIGUSR1"):
        faulthandler.register(signal.SIGUSR1, all_threads=True)
