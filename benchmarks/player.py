"""Time from a click to the first sound of the player page in a real Chromium, compared with the stream itself.

Usage: python -m benchmarks.player [--rounds N]
"""

from __future__ import annotations

import argparse
import asyncio

from benchmarks.common import first_audio_ms, percentile, running_server, table
from tests.support.browser import chromium, player

TEXT = "One sentence, typed by a person."
WITHOUT = {
    "webcodecs": (),
    "mediasource": ("AudioDecoder",),
    "pcm": ("AudioDecoder", "MediaSource", "ManagedMediaSource"),
}
"""The browser features that are removed for each playback method."""


async def floor_ms(port: int, rounds: int) -> list[float]:
    """Return the first audio over HTTP."""
    return [await first_audio_ms(port, "/synthesize_stream_opus", TEXT) for _ in range(rounds)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=20)
    rounds: int = parser.parse_args().rounds
    rows = []
    with running_server() as server, chromium() as browser:
        floor = percentile(asyncio.run(floor_ms(server.port, rounds)), 50)
        for way, missing in WITHOUT.items():
            took = []
            with player(browser, server.port, without=missing) as page:
                for _ in range(rounds):
                    page.play(TEXT)
                    took.append(page.heard_ms())
                    page.page.keyboard.press("Escape")
                    page.wait("playerState.level < 0.001")
            median, slow = percentile(took, 50), percentile(took, 95)
            rows.append((way, f"{median:.0f}", f"{slow:.0f}", f"{floor:.1f}", f"{median / floor:.1f}"))
    table(("way", "first sound, ms", "p95", "first audio over HTTP, ms", "ratio"), rows)


if __name__ == "__main__":
    main()
