"""Stack dumps of a running server on a signal."""

from __future__ import annotations

import faulthandler
import signal


def dump_stacks_on_signal() -> None:
    """Write the stacks of all threads to stderr at each SIGUSR1, even if the event loop is blocked."""
    if hasattr(signal, "SIGUSR1"):
        faulthandler.register(signal.SIGUSR1, all_threads=True)
