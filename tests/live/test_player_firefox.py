"""The player page in a real Firefox."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.browser import EARS
from tests.support.fakes import FOREVER, Step, tone
from tests.support.firefox import END, ESCAPE, Firefox, firefox
from tests.support.server import LiveServer, by_text, eventually, running

METHODS = {"webcodecs": "", "mediasource": "delete globalThis.AudioDecoder;"}


@pytest.fixture(scope="module")
def browser() -> Iterator[Firefox]:
    with firefox() as launched:
        yield launched


@pytest.fixture(scope="module")
def fake() -> Iterator[LiveServer]:
    scripts: dict[str, list[Step]] = {"short": [tone(0.5)], "endless": [tone(2.0), FOREVER]}
    with running(by_text(scripts)) as live:
        yield live


def opened(browser: Firefox, fake: LiveServer, preload: str) -> Firefox:
    browser.open(f"http://127.0.0.1:{fake.port}/player", preload=EARS + preload)
    browser.wait("document.querySelector('#voices input') !== null && !('loading' in document.body.dataset)")
    return browser


@pytest.mark.parametrize("method", [*METHODS])
def test_it_plays_seeks_and_stops(browser: Firefox, fake: LiveServer, method: str) -> None:
    page = opened(browser, fake, METHODS[method])
    page.fill("#text", "endless")
    page.click("#play")
    page.wait("ears.heard !== null && playerState.scheduledSamples > 1.95 * playerState.sampleRate")
    assert page.evaluate("playerState.method") == method
    assert fake.queue()["is_processing"]
    page.click("#pause")
    page.wait("playerState.level < 0.001")
    page.evaluate("document.getElementById('wave').focus()")
    page.press(END)
    page.wait("Math.abs(playerState.playedSeconds - 2) < 0.1")
    page.press(ESCAPE)
    eventually(lambda: not fake.queue()["is_processing"])
    page.fill("#text", "short")
    page.click("#play")
    page.wait("playerState.phase === 'done'")
    assert page.evaluate("playerState.playedSeconds") == pytest.approx(0.5, abs=0.05)
    synthesised = len(fake.engine.requests)
    page.evaluate("ears.heard = null")
    page.click("#pause")
    page.wait("ears.heard !== null && playerState.phase === 'done'")
    assert len(fake.engine.requests) == synthesised


def test_its_history_is_kept(browser: Firefox, fake: LiveServer) -> None:
    page = opened(browser, fake, "")
    page.fill("#text", "short")
    page.click("#play")
    page.wait("/clip/.test(document.getElementById('history-count').textContent)")
    page = opened(browser, fake, "")
    page.click("#history summary")
    page.click("#clips .listen")
    page.wait("ears.laid.length > 0 && playerState.phase === 'done'")
