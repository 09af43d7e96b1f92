"""A prompt in a row of a decoder, and the copy of small results to the host."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from streaming_server.engines.torch.sampling import Sampling
from streaming_server.errors import EngineFailed

NOT_FINITE = "the model computed logits that are not finite for this text and voice"


@dataclass(slots=True, eq=False)
class Row:
    """A prompt in a row of a decoder."""

    index: int
    limit: int
    """Maximum number of codes."""
    sampling: Sampling
    generator: torch.Generator | None
    """Draws the noise; None is torch's global one."""
    finite: Readback
    """Whether the logits of the prompt are finite."""
    drawn: int = 0
    read: int = 0
    codes: deque[int] = field(default_factory=deque)
    """Codes that were read and not taken yet; STOP is the last one."""
    is_ended: bool = False
    """Whether no code follows those in ``codes``."""
    is_retired: bool = False
    """Whether no more codes are drawn."""

    def require_finite(self) -> None:
        """Wait until the prompt is processed.

        Raises:
            EngineFailed: the logits are not finite, so no code can be sampled.
        """
        if not self.finite.wait():
            raise EngineFailed(NOT_FINITE)


class Readback:
    """Copies a small tensor to the host: the constructor queues the copy, ``wait`` waits for it."""

    def __init__(self, tensor: Tensor) -> None:
        self._event: torch.cuda.Event | None = None
        if tensor.device.type == "cuda":
            self._host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
            self._host.copy_(tensor, non_blocking=True)
            self._event = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._event.record(torch.cuda.current_stream(tensor.device))
        else:
            self._host = tensor.cpu().clone()

    def wait(self) -> Any:
        """Return the values: a number for a 0-d tensor, else a list."""
        if self._event is not None:
            self._event.synchronize()
            self._event = None
        return self._host.tolist()
