from __future__ import annotations

import pytest

pytest_plugins = ("tests.services", "tests.scale.services")


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"
