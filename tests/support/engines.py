"""Engines that the tests of a module share, because loading one takes seconds."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Hashable
from typing import Any, Generic, TypeVar

from streaming_server.engines.torch.model_engine import ModelEngine

E = TypeVar("E", bound=ModelEngine)


class SharedEngines(Generic[E]):
    """Creates and warms each engine when it is first used; all run on one event loop.

    Args:
        create: Creates an engine from the arguments that name it.
    """

    def __init__(self, create: Callable[..., E]) -> None:
        self._create = create
        self._runner = asyncio.Runner()
        self._engines: dict[tuple[Hashable, ...], E] = {}

    def use(self, what: Callable[[E], Awaitable[Any]], *arguments: Hashable) -> Any:
        """Return what a coroutine function returns for the engine of these arguments."""

        async def main() -> Any:
            if arguments not in self._engines:
                engine = self._create(*arguments)
                await engine.warm()
                self._engines[arguments] = engine
            return await what(self._engines[arguments])

        return self._runner.run(main())

    def close(self) -> None:
        async def main() -> None:
            for engine in self._engines.values():
                await engine.aclose()

        self._runner.run(main())
        self._runner.close()
