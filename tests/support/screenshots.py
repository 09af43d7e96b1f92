"""Screenshots of the player for the READMEs, with the default voice; run by scripts/screenshots."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.support.browser import Player, chromium, player
from tests.support.server import running

_SIZE = {"width": 1180, "height": 800}
_PALETTE = "split[a][b];[a]palettegen=max_colors=96[p];[b][p]paletteuse=dither=none"
"""Of ffmpeg: a page has few colours, and a file of them is a third as large."""
_LANGUAGES = {"": "en-US", "-zh": "zh-CN"}


def take(opened: Player, path: Path) -> None:
    """The page while a story is read, with the word that is said."""
    opened.page.locator("#samples button").nth(2).click()
    opened.page.locator("#play").click()
    opened.wait("playerState.playedSeconds > 3")
    opened.page.click("#read-along")
    opened.page.click("#pause")
    opened.wait("playerState.level < 0.001")
    opened.page.mouse.move(0, 0)
    whole = path.with_suffix(".whole.png")
    opened.page.screenshot(path=whole)
    subprocess.run(["ffmpeg", "-v", "error", "-y", "-i", whole, "-filter_complex", _PALETTE, path], check=True)
    whole.unlink()


def main(folder: Path) -> None:
    """Write player-light.png, player-dark.png, player-zh-light.png and player-zh-dark.png."""
    folder.mkdir(parents=True, exist_ok=True)
    with running() as live, chromium() as browser:
        for suffix, locale in _LANGUAGES.items():
            for scheme in ("light", "dark"):
                with player(browser, live.port, locale=locale, color_scheme=scheme, viewport=_SIZE) as opened:
                    take(opened, folder / f"player{suffix}-{scheme}.png")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
