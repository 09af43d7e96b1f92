"""The player page in a real WebKit, the engine of Safari."""

from __future__ import annotations

from tests.support.browser import EARS
from tests.support.fakes import FOREVER, Step, tone
from tests.support.listening import READY, play_seek_and_stop
from tests.support.server import by_text, running
from tests.support.webkit import webkit


def test_it_plays_seeks_and_stops() -> None:
    scripts: dict[str, list[Step]] = {"short": [tone(0.5)], "endless": [tone(2.0), FOREVER]}
    with running(by_text(scripts)) as live, webkit() as page:
        page.open(f"http://127.0.0.1:{live.port}/player", script=EARS)
        page.wait(READY)
        play_seek_and_stop(page, live, "webcodecs")
        page.open(f"http://127.0.0.1:{live.port}/docs#post_synthesize")
        page.wait("document.querySelector('#post_synthesize').open")
