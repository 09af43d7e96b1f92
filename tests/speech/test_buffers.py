from __future__ import annotations

import random

import pytest

from streaming_server.errors import ReaderTooSlow
from streaming_server.speech.buffers import ByteBudget, ByteLimits, StreamBuffer

pytestmark = pytest.mark.anyio


async def test_the_totals_are_the_sums_over_the_streams() -> None:
    rng = random.Random(3)
    budget = ByteBudget(ByteLimits(unsent_stream=5000, unsent_total=8000, kept=6000))
    buffers: list[StreamBuffer] = []
    positions: dict[StreamBuffer, int] = {}
    for _ in range(3000):
        if len(buffers) < 4:
            buffers.append(budget.open())
            positions[buffers[-1]] = 0
        buffer = rng.choice(buffers)
        positions[buffer] = max(positions[buffer], buffer.first)
        try:
            match rng.choice(["push", "push", "read", "read", "again", "discard"]):
                case "push":
                    buffer.push(bytes(rng.randrange(1500)))
                case "read" if positions[buffer] < buffer.size:
                    positions[buffer] += len(await buffer.read(positions[buffer]))
                case "again" if buffer.first < buffer.size:
                    await buffer.read(buffer.first)
                case "discard" if rng.random() < 0.05:
                    buffers.remove(buffer)
                    budget.discard(buffer)
                    buffer.abort("a discarded stream counts no more")
        except ReaderTooSlow:
            buffers.remove(buffer)
            budget.discard(buffer)
        assert budget.unsent_bytes == sum(buffer.unsent_bytes for buffer in buffers)
        assert budget.kept_bytes == sum(buffer.kept_bytes for buffer in buffers)
        assert budget.unsent_bytes <= 8000
