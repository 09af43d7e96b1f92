"""A real Chromium on the player page, with ears: what is scheduled, and what reaches the way out."""

from __future__ import annotations

import base64
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, BrowserContext, CDPSession, Page, Request, Response, expect, sync_playwright

from streaming_server.domain import FloatSamples
from tests.support.server import eventually

LAN_HOST = "speech.lan"
_ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",  # drawing in software is cheaper without it
    "--autoplay-policy=no-user-gesture-required",
    "--disable-background-networking",
    # A microphone that beeps, without asking.
    "--use-fake-device-for-media-stream",
    "--use-fake-ui-for-media-stream",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
    # A name that is not this machine's makes plain HTTP what it is in a home network: no secure context.
    f"--host-resolver-rules=MAP {LAN_HOST} 127.0.0.1",
]
# Watches from outside the page's own code: the click as the browser dates it, every buffer that is given a time, and
# the first moment at which the analyser sees sound.
EARS = """
  globalThis.ears = { laid: [] };
  addEventListener("click", (event) => {
    if (event.target.closest("#play")) Object.assign(ears, { clicked: event.timeStamp, heard: null, laid: [] });
  }, true);
  setInterval(() => {
    if (ears.clicked && ears.heard === null && playerState.level > 0.01) ears.heard = performance.now();
  }, 1);
  // What is over before a page that is held up could hear it is played again.
  ears.hears = () => {
    if (ears.heard !== null) return true;
    const { phase, playedSeconds, playedSamples, scheduledSamples } = playerState;
    if (phase === "done") document.getElementById("pause").click();
    if (phase === "playing" && playedSeconds > 0.4 && scheduledSamples - playedSamples < 2400)
      document.getElementById("wave").dispatchEvent(new KeyboardEvent("keydown", { key: "Home", bubbles: true }));
    return false;
  };
  const start = AudioBufferSourceNode.prototype.start;
  AudioBufferSourceNode.prototype.start = function (when) {
    ears.laid.push({ when, rate: this.buffer.sampleRate, samples: this.buffer.getChannelData(0).slice() });
    return start.call(this, when);
  };
  ears.base64 = () => {
    const bytes = ears.laid.flatMap(({ samples }) => [...new Uint8Array(samples.buffer)]);
    return btoa(bytes.reduce((text, byte) => text + String.fromCharCode(byte), ""));
  };
"""

_PATIENCE = """
  const later = setTimeout;
  globalThis.setTimeout = (run, ms, ...rest) => later(run, ms === 8000 ? 1e9 : ms, ...rest);
"""
"""Disables the page's reconnection after eight seconds of silence, which a busy test machine may cause."""

PAUSE_AT_ONCE = """
  globalThis.pausing = setInterval(() => {
    const button = document.getElementById("pause");
    if (playerState.phase !== "playing" || button.disabled) return;
    clearInterval(pausing);
    button.click();
  }, 1);
"""
"""Pauses as soon as it can be paused."""


@contextmanager
def chromium() -> Iterator[Browser]:
    path = shutil.which("chromium-headless-shell")  # without windows and their GPU process: a third less work
    assert path, "the tests of the page need Debian's chromium-headless-shell"
    expect.set_options(timeout=180_000)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=_ARGUMENTS)
        try:
            yield browser
        finally:
            browser.close()


def accessible(page: Page) -> None:
    """That axe finds nothing to complain about."""
    if not page.evaluate("'axe' in globalThis"):
        page.evaluate(Axe().axe_script)
    violations = page.evaluate("axe.run({ resultTypes: ['violations'] }).then(({ violations }) => violations)")
    assert not violations, json.dumps(violations, indent=1)


class _Profile:
    """A browser context that pages of several tests share, one after the other, for the sake of its HTTP cache."""

    def __init__(self, browser: Browser, options: dict[str, Any]) -> None:
        self.context: BrowserContext = browser.new_context(**options)
        self.context.set_default_timeout(180_000)
        self._storage: CDPSession = self.context.new_cdp_session(self.context.new_page())

    def clear(self, origin: str) -> None:
        """Close all pages, and delete what they have stored; what a tab stores goes with it."""
        for page in self.context.pages[1:]:
            page.close()
        kinds = "local_storage,indexeddb,cookies"
        self._storage.send("Storage.clearDataForOrigin", {"origin": origin, "storageTypes": kinds})


_PROFILES: WeakKeyDictionary[Browser, dict[str, _Profile]] = WeakKeyDictionary()


def _profile(browser: Browser, options: dict[str, Any]) -> _Profile:
    profiles = _PROFILES.setdefault(browser, {})
    key = json.dumps(options, sort_keys=True)
    if key not in profiles:
        profiles[key] = _Profile(browser, options)
    return profiles[key]


class Player:
    """The page, once it is ready.

    ``without``: names that the browser shall not have; ``script`` runs before the page's own.
    """

    def __init__(
        self,
        browser: Browser,
        port: int,
        *,
        host: str = "127.0.0.1",
        without: tuple[str, ...] = (),
        script: str = "",
        ready: str = "#voices input",
        **context: Any,
    ) -> None:
        options = {"locale": "en-US", "viewport": {"width": 1280, "height": 900}} | context
        self._profile = _profile(browser, options)
        self.context = self._profile.context
        self.page: Page = self.context.new_page()
        self.page.set_default_timeout(180_000)
        self.requested: list[str] = []
        self.errors: list[str] = []
        self.context.on("request", self._note_request)
        self.stream_ids: list[str] = []
        self.page.on("response", self._note_stream)
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        for name in without:
            self.page.add_init_script(f"delete globalThis.{name}")
        self.page.add_init_script(_PATIENCE)
        self.page.add_init_script(EARS)
        self.page.add_init_script(script)
        self._origin = f"http://{host}:{port}"
        self.page.goto(f"{self._origin}/player")
        self.page.wait_for_selector(ready)

    def close(self) -> None:
        """Close the pages and delete what they have stored."""
        self.context.remove_listener("request", self._note_request)
        self._profile.clear(self._origin)

    def _note_request(self, request: Request) -> None:
        self.requested.append(request.url)

    def _note_stream(self, response: Response) -> None:
        if "x-stream-id" in response.headers:
            self.stream_ids.append(response.headers["x-stream-id"])

    def download(self, folder: Path) -> Path:
        with self.page.expect_download() as started:
            self.page.click("#download")
        path = folder / started.value.suggested_filename
        started.value.save_as(path)
        return path

    def state(self, name: str) -> Any:
        return self.page.evaluate(f"playerState.{name}")

    def play(self, text: str = "a") -> None:
        self.page.fill("#text", text)
        self.page.click("#play")

    def wait(self, condition: str, within_s: float = 180.0) -> None:
        """Until an expression over ``playerState`` and ``ears`` holds."""
        # Playwright's own waiting evaluates text in the page, which the page's policy forbids.
        eventually(lambda: self.page.evaluate(condition), within_s)

    def play_whole(self, text: str = "a") -> None:
        self.play(text)
        self.wait("playerState.phase === 'done'")

    def forget_sound(self) -> None:
        """``heard_ms`` waits for a sound after this moment."""
        self.page.evaluate("ears.heard = null")

    def heard_ms(self) -> float:
        """From the click to the first sound at the way out."""
        self.wait("ears.hears()")
        took: float = self.page.evaluate("ears.heard - ears.clicked")
        return took

    def held_samples(self) -> int:
        """What has been played once the clock of the sound stands still."""
        seen: list[int] = [-1, -2]

        def stands() -> bool:
            seen[:] = seen[1], self.state("playedSamples")
            self.page.wait_for_timeout(20)
            return seen[0] == seen[1]

        eventually(stands)
        return seen[1]

    def laid(self) -> FloatSamples:
        """All samples that were given a time, in their order."""
        return np.frombuffer(base64.b64decode(self.page.evaluate("ears.base64()")), np.float32)

    def seams(self) -> list[int]:
        """Samples between the end of each buffer and the start of the next; 0 where they join."""
        laid = self.page.evaluate("ears.laid.map(({ when, rate, samples }) => [when * rate, samples.length])")
        ends = [start + length for start, length in laid]
        return [round(start - end) for (start, _), end in zip(laid[1:], ends, strict=False)]

    def bars(self) -> list[int]:
        """Height of the waveform where it is drawn, in pixels, column by column."""
        drawn: list[int] = self.page.evaluate(
            """() => {
              const { width, height } = document.getElementById("wave");
              const { data } = document.getElementById("wave").getContext("2d").getImageData(0, 0, width, height);
              const column = (x) => [...Array(height).keys()].filter((y) => data[(y * width + x) * 4 + 3] > 128).length;
              return [...Array(width).keys()].map(column).filter((tall) => tall > 0);
            }"""
        )
        return drawn


@contextmanager
def player(browser: Browser, port: int, **options: Any) -> Iterator[Player]:
    page = Player(browser, port, **options)
    try:
        yield page
    finally:
        page.close()
    assert not page.errors
