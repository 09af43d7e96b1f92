"""Tells an error that ends one request from an error after which the device computes nothing any more."""

from __future__ import annotations

import gc
import logging
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import torch

from streaming_server.engines.threads import Cancelled
from streaming_server.errors import DeviceFailed, InsufficientMemory, SpeechServerError

log = logging.getLogger(__name__)

_ALLOCATION_FAILED = ("CUDA error: out of memory", "CUBLAS_STATUS_ALLOC_FAILED", "CUDNN_STATUS_ALLOC_FAILED")
"""How the CUDA runtime and libraries that allocate their own memory report that there is none."""


@contextmanager
def device_errors(device: torch.device, release: Callable[[], None]) -> Iterator[None]:
    """Translate the errors of a request's computation.

    Args:
        device: Where it computes.
        release: Gives back memory that the next request can do without.

    Raises:
        InsufficientMemory: The device has no memory left for this request; ``release`` was called.
        DeviceFailed: The device fails at every further computation.
    """
    try:
        yield
    except (Cancelled, SpeechServerError):
        raise
    except Exception as error:
        if is_out_of_memory(error):
            traceback.clear_frames(error.__traceback__)  # their tensors hold the memory
            release()
            free_unused(device)
            log.warning("out of memory: device=%s reason=%r; its request ended, caches are cleared", device, str(error))
            raise InsufficientMemory from error
        if reason := problem_of(device):
            log.exception("device failed: device=%s reason=%r", device, reason)
            raise DeviceFailed from error
        raise


def is_out_of_memory(error: Exception) -> bool:
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or any(
        status in str(error) for status in _ALLOCATION_FAILED
    )


def problem_of(device: torch.device) -> str:
    """Why the device cannot compute; empty where it can.

    After an error that breaks its context, CUDA raises the same error from every call until the process ends.
    """
    try:
        torch.ones(1, device=device).add(1).item()  # waits for the result
    except RuntimeError as error:
        return "" if is_out_of_memory(error) else str(error).partition("\n")[0]
    return ""


def free_unused(device: torch.device) -> None:
    """Return memory that no tensor uses to the driver."""
    gc.collect()
    if device.type == "cuda":
        with suppress(RuntimeError):  # the device has failed
            torch.cuda.empty_cache()
