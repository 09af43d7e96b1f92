"""What a person does on the player page, for browsers that Playwright does not drive."""

from __future__ import annotations

import json
from typing import Any, Protocol

import pytest

from tests.support.server import LiveServer, eventually

ESCAPE = "\ue00c"
END = "\ue010"
"""Keys, as WebDriver names them."""
READY = "document.querySelector('#voices input') !== null && !('loading' in document.body.dataset)"


class Tab(Protocol):
    """A page with the player, and the ears of `tests.support.browser`."""

    def evaluate(self, expression: str) -> Any: ...
    def wait(self, condition: str) -> None: ...
    def click(self, selector: str) -> None: ...
    def press(self, key: str) -> None: ...
    def fill(self, selector: str, text: str) -> None: ...


def filling(selector: str, text: str) -> str:
    """A script that sets the value of a field as typing does."""
    return f"""(() => {{
      const field = document.querySelector({json.dumps(selector)});
      field.value = {json.dumps(text)};
      field.dispatchEvent(new Event("input", {{ bubbles: true }}));
    }})()"""


def play_seek_and_stop(page: Tab, live: LiveServer, method: str) -> None:
    """Hear ``endless`` (two seconds, then nothing), seek in it while paused, stop, and hear ``short`` twice."""
    page.fill("#text", "endless")
    page.click("#play")
    page.wait("ears.hears() && playerState.scheduledSamples > 1.95 * playerState.sampleRate")
    assert page.evaluate("playerState.method") == method
    assert live.queue()["is_processing"]
    page.click("#pause")
    page.wait("playerState.level < 0.001")
    page.evaluate("document.getElementById('wave').focus()")
    page.press(END)
    page.wait("Math.abs(playerState.playedSeconds - 2) < 0.1")
    page.press(ESCAPE)
    eventually(lambda: not live.queue()["is_processing"])
    page.fill("#text", "short")
    page.click("#play")
    page.wait("playerState.phase === 'done'")
    assert page.evaluate("playerState.playedSeconds") == pytest.approx(0.5, abs=0.05)
    synthesised = len(live.engine.requests)
    page.evaluate("ears.heard = null")
    page.wait("ears.hears() && playerState.phase === 'done'")
    assert len(live.engine.requests) == synthesised
