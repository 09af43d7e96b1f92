from __future__ import annotations

import pytest

from tests.services import database_url as database_url
from tests.services import postgresql as postgresql


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"
