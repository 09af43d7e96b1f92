"""Write the settings table into docs/settings.md and docs/settings.zh.md, between its two markers."""

from __future__ import annotations

import re
from pathlib import Path

from streaming_server.environment import markdown_table
from streaming_server.settings import Settings

ROOT = Path(__file__).parent.parent
BETWEEN = re.compile("(<!-- settings -->\n).*?(\n<!-- /settings -->)", re.DOTALL)

if __name__ == "__main__":
    for name, language in (("docs/settings.md", "en"), ("docs/settings.zh.md", "zh")):
        path = ROOT / name
        table = markdown_table(Settings, language)
        path.write_text(BETWEEN.sub(lambda found, table=table: found[1] + table + found[2], path.read_text()))  # type: ignore[misc]
