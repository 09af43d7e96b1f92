"""Write the settings table into docs/settings.md and docs/settings.zh.md, between its two markers.

With ``--check`` it writes nothing and fails where a table is not up to date. The Chinese texts are in settings_zh.toml.
"""

from __future__ import annotations

import re
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

from streaming_server.engines import registry
from streaming_server.environment import meaning
from streaming_server.settings import GROUPS

ROOT = Path(__file__).parent.parent
BETWEEN = re.compile("(?<=<!-- settings -->\n).*?(?=\n<!-- /settings -->)", re.DOTALL)
HEADS = {"en": "| variable | default | meaning |", "zh": "| 变量 | 默认值 | 含义 |"}


def rows() -> Iterator[tuple[str, object, str]]:
    """Name, default and English meaning of each setting; those of the engines behind ``ENGINE``."""
    for group in GROUPS:
        for name, item in group.variables().items():
            yield name, item.default, meaning(item)
            if name == "ENGINE":
                for option, field in registry.variables().items():
                    yield option, field.default, meaning(field)


def shown(default: object) -> str:
    if isinstance(default, tuple):
        default = ",".join(default)
    if isinstance(default, bool):
        default = str(default).lower()
    return "" if default in {"", None} else f"`{default}`"


def table(language: str) -> str:
    chinese = tomllib.loads((ROOT / "scripts/settings_zh.toml").read_text(encoding="utf-8"))
    engines = ", ".join(f"`{name}`" for name in registry.names() if name != registry.AUTO)
    lines = []
    for name, default, english in rows():
        meaning = {"en": english, "zh": chinese[name]}[language].replace("{engines}", engines)
        lines.append(f"| `{name}` | {shown(default)} | {meaning} |")
    return "\n".join([HEADS[language], "| --- | --- | --- |", *lines])


def main() -> int:
    stale = []
    for file, language in (("docs/settings.md", "en"), ("docs/settings.zh.md", "zh")):
        text = (ROOT / file).read_text(encoding="utf-8")
        new = BETWEEN.sub(lambda _, language=language: table(language), text)  # type: ignore[misc]
        if new != text:
            stale.append(file)
            if "--check" not in sys.argv:
                (ROOT / file).write_text(new, encoding="utf-8")
    if stale and "--check" in sys.argv:
        print(f"not up to date: {', '.join(stale)}; run: python scripts/settings_table.py", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
