"""The player page's playback: pausing, replaying and seeking without another synthesis, downloading."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, expect

from streaming_server.audio.decode import decode_native
from tests.support.browser import chromium, player
from tests.support.fakes import FOREVER, Step, tone
from tests.support.server import LiveServer, by_text, running

METHODS = {"ogg": (), "webm": ("AudioDecoder",), "pcm": ("AudioDecoder", "MediaSource", "ManagedMediaSource")}


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as launched:
        yield launched


@pytest.fixture(scope="module")
def fake() -> Iterator[LiveServer]:
    scripts: dict[str, list[Step]] = {"short": [tone(0.5)], "long": [tone(30.0)], "endless": [tone(2.0), FOREVER]}
    with running(by_text(scripts)) as live:
        yield live


@pytest.mark.parametrize("format_name", [*METHODS])
def test_a_pause_holds_the_sound_and_a_resume_goes_on(browser: Browser, fake: LiveServer, format_name: str) -> None:
    with player(browser, fake.port, without=METHODS[format_name]) as opened:
        button = opened.page.locator("#pause")
        expect(button).to_be_disabled()
        opened.play("long")
        opened.wait("playerState.playedSamples > 4800")
        button.click()
        expect(button).to_have_text("Resume")
        expect(opened.page.locator("#status")).to_have_text("Paused")
        opened.wait("playerState.level < 0.001")
        opened.page.wait_for_timeout(100)
        held = opened.state("playedSamples")
        opened.page.wait_for_timeout(500)
        assert opened.state("playedSamples") == held
        button.click()
        opened.wait(f"playerState.playedSamples > {held + 4800}")
        assert opened.state("phase") == "playing"


@pytest.mark.parametrize("format_name", [*METHODS])
def test_the_complete_speech_is_replayed_without_another_synthesis(
    browser: Browser, fake: LiveServer, format_name: str
) -> None:
    with player(browser, fake.port, without=METHODS[format_name]) as opened:
        opened.play_whole("short")
        synthesised = len(fake.engine.requests)
        opened.wait("Number.isFinite(document.getElementById('clip').duration)")
        opened.wait("!document.getElementById('clip').dataset.measuring")
        assert opened.page.evaluate("document.getElementById('clip').duration") == pytest.approx(0.5, abs=0.05)
        opened.page.evaluate("document.getElementById('clip').play()")
        opened.wait("document.getElementById('clip').ended")
        assert len(fake.engine.requests) == synthesised


def test_seeking_takes_over_from_the_stream(browser: Browser, fake: LiveServer, tmp_path: Path) -> None:
    with player(browser, fake.port) as opened:
        opened.play("long")
        opened.heard_ms()
        expect(opened.page.locator("#download")).to_be_enabled()
        samples, rate_hz = decode_native(opened.download(tmp_path))
        assert samples.size / rate_hz == pytest.approx(30, abs=0.001)
        assert opened.state("phase") == "playing"
        opened.wait("document.getElementById('clip').duration > 29")
        opened.page.evaluate("document.getElementById('clip').currentTime = 20")
        opened.wait("playerState.phase === 'stopped'")
        opened.wait("document.getElementById('clip').currentTime > 20.2")
        opened.page.click("#voices li:nth-child(2) .listen")
        opened.wait("document.getElementById('clip').paused")


def test_a_recording_stops_the_speech(browser: Browser, fake: LiveServer) -> None:
    with player(browser, fake.port) as opened:
        opened.play("endless")
        opened.heard_ms()
        opened.page.click("#voices li:nth-child(2) .listen")
        opened.wait("playerState.phase === 'stopped'")
        expect(opened.page.locator("#download")).to_be_enabled()


def test_the_keys_of_a_headset_pause_and_resume(browser: Browser, fake: LiveServer) -> None:
    with player(browser, fake.port) as opened:
        opened.page.add_init_script(
            """globalThis.keys = {};
            navigator.mediaSession.setActionHandler = (name, handler) => (keys[name] = handler);"""
        )
        opened.page.reload()
        opened.page.wait_for_selector("#voices input")
        opened.play("long")
        opened.heard_ms()
        assert opened.page.evaluate("navigator.mediaSession.metadata.title") == "long"
        opened.page.evaluate("keys.pause() && undefined")
        expect(opened.page.locator("#status")).to_have_text("Paused")
        opened.page.evaluate("keys.play() && undefined")
        expect(opened.page.locator("#status")).to_have_text("Playing")
        opened.page.evaluate("keys.stop()")
        expect(opened.page.locator("#status")).to_have_text("Stopped")
