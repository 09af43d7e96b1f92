"""The player page on a server with API keys: the key is asked for, checked, kept, and never part of a URL."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, expect

from streaming_server.domain import Capability
from tests.support.browser import Player, chromium, player
from tests.support.fakes import tone
from tests.support.server import LiveServer, running, speaking

KEY = "schlüssel 密钥"
"""Headers carry bytes: a key outside ASCII is sent in UTF-8."""


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as launched:
        yield launched


@pytest.fixture(scope="module")
def locked() -> Iterator[LiveServer]:
    engine = speaking(tone(0.5))
    engine.capabilities = frozenset({Capability.VOICE_CLONING})
    with running(engine, api_keys=(KEY,)) as live:
        yield live


@pytest.fixture
def page(browser: Browser, locked: LiveServer) -> Iterator[Player]:
    with player(browser, locked.port, ready="#key-dialog[open]") as opened:
        yield opened
        assert not [url for url in opened.requested if KEY in url or "key" in url.partition("?")[2]]


def enter(opened: Player, key: str = KEY, *, keep: bool = False) -> None:
    opened.page.fill("#key-input", key)
    opened.page.set_checked("#key-keep", keep)
    opened.page.keyboard.press("Enter")


def test_the_page_asks_for_the_key_and_works_with_it(page: Player) -> None:
    expect(page.page.get_by_role("dialog", name="API key")).to_be_visible()
    expect(page.page.locator("#chip-text")).to_have_text("API key needed")
    page.page.keyboard.press("Escape")
    page.page.click("#play")
    expect(page.page.locator("#key-dialog")).to_be_visible()
    for wrong in ("wrong", "", "line\tbreak"):
        enter(page, wrong)
        expect(page.page.locator("#key-error")).to_have_text("The server does not accept this key.")
        expect(page.page.locator("#key-input")).to_be_focused()
    enter(page)
    expect(page.page.locator("#key-dialog")).to_be_hidden()
    expect(page.page.locator("#voices input").first).to_be_attached()
    expect(page.page.locator("#chip-text")).to_have_text("Ready")
    expect(page.page.locator("#problem")).to_be_hidden()
    page.play_whole()
    assert page.state("playedSamples") == 24000
    page.page.click("#voices li:nth-child(2) .listen")
    expect(page.page.locator("#voices li:nth-child(2) .listen")).to_have_attribute("aria-label", "Listen to Echo")
    assert any(url.endswith("/download_reference_audio/1") for url in page.requested)


@pytest.mark.parametrize("keep", [False, True])
def test_the_key_is_kept_for_the_tab_or_on_the_device(page: Player, *, keep: bool) -> None:
    enter(page, keep=keep)
    page.page.wait_for_selector("#voices input")
    page.page.reload()
    page.page.wait_for_selector("#voices input")
    other = page.context.new_page()
    other.goto(page.page.url)
    other.wait_for_selector("#voices input" if keep else "#key-dialog[open]")
    page.page.click("#key")
    page.page.click("#key-forget")
    expect(page.page.locator("#key-dialog")).to_be_visible()
    assert page.page.evaluate("JSON.stringify([{ ...sessionStorage }, { ...localStorage }])").count("api-key") == 0


def test_the_command_line_names_the_key_and_does_not_show_it(page: Player, tmp_path: Path) -> None:
    enter(page)
    page.page.wait_for_selector("#voices input")
    shown = page.page.text_content("#snippet") or ""
    assert KEY not in page.page.content()
    strict = shown.replace("curl ", "curl -sS --fail-with-body ", 1)
    subprocess.run(
        ["bash", "-c", strict], cwd=tmp_path, check=True, timeout=180, env={"API_KEY": KEY, "PATH": "/usr/bin"}
    )
    (path,) = tmp_path.iterdir()
    assert path.read_bytes()[:4] == b"OggS"


def test_without_keys_nothing_is_asked(browser: Browser) -> None:
    with running(speaking(tone(0.1))) as live, player(browser, live.port) as opened:
        expect(opened.page.locator("#key-dialog")).to_be_hidden()
        expect(opened.page.locator("#key")).to_be_hidden()
