"""The player page in a real Firefox."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.browser import EARS
from tests.support.fakes import FOREVER, Step, tone
from tests.support.firefox import Firefox, firefox
from tests.support.listening import READY, play_seek_and_stop
from tests.support.server import LiveServer, by_text, running

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
    browser.wait(READY)
    return browser


@pytest.mark.parametrize("method", [*METHODS])
def test_it_plays_seeks_and_stops(browser: Firefox, fake: LiveServer, method: str) -> None:
    page = opened(browser, fake, METHODS[method])
    play_seek_and_stop(page, fake, method)


def test_its_history_is_kept(browser: Firefox, fake: LiveServer) -> None:
    page = opened(browser, fake, "")
    page.fill("#text", "short")
    page.click("#play")
    page.wait("playerState.phase === 'done' && /clip/.test(document.getElementById('history-count').textContent)")
    page = opened(browser, fake, "")
    page.click("#history summary")
    page.click("#clips .listen")
    page.wait("playerState.phase === 'done'")
