"""Time from a click to the first sound of the player page in real browsers, compared with the stream itself.

The default voice speaks in Chromium by each playback method, and in Firefox.

Usage: python -m benchmarks.player [--rounds N]
"""

from __future__ import annotations

import argparse
import asyncio

from benchmarks.common import first_audio_ms, percentile, running_server, table
from tests.support.browser import EARS, chromium, player
from tests.support.firefox import Firefox, firefox
from tests.support.listening import ESCAPE

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


def in_firefox(browser: Firefox, port: int, rounds: int) -> list[float]:
    """First sound after each of the clicks."""
    browser.open(f"http://127.0.0.1:{port}/player", preload=EARS)
    browser.wait("document.querySelector('#voices input') !== null")
    browser.fill("#text", TEXT)
    took = []
    for _ in range(rounds):
        browser.click("#play")
        browser.wait("ears.heard !== null")
        took.append(float(browser.evaluate("ears.heard - ears.clicked")))
        browser.press(ESCAPE)
        browser.wait("playerState.level < 0.001")
    return took


def row(way: str, took: list[float], floor: float) -> tuple[str, ...]:
    median, slow = percentile(took, 50), percentile(took, 95)
    return way, f"{median:.0f}", f"{slow:.0f}", f"{floor:.1f}", f"{median / floor:.1f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=20)
    rounds: int = parser.parse_args().rounds
    rows = []
    with running_server(ENGINE="hibari") as server:
        # Before the browser: Playwright runs an event loop of its own in this thread.
        floor = percentile(asyncio.run(floor_ms(server.port, rounds)), 50)
        with chromium() as browser:
            for way, missing in WITHOUT.items():
                took = []
                with player(browser, server.port, without=missing) as page:
                    for _ in range(rounds):
                        page.play(TEXT)
                        took.append(page.heard_ms())
                        page.page.keyboard.press("Escape")
                        page.wait("playerState.level < 0.001")
                rows.append(row(f"Chromium, {way}", took, floor))
        with firefox() as other:
            rows.append(row("Firefox, webcodecs", in_firefox(other, server.port, rounds), floor))
    table(("way", "first sound, ms", "p95", "first audio over HTTP, ms", "ratio"), rows)


if __name__ == "__main__":
    main()
