"""The examples of docs/extending.md."""

from __future__ import annotations

import re
from pathlib import Path

PAGE = Path(__file__).parents[2] / "docs" / "extending.md"


def example(name: str) -> str:
    """The Python module that begins with a comment of its file name."""
    blocks: list[str] = re.findall("```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    return next(block for block in blocks if block.startswith(f"# {name}\n"))
