"""The API reference in a real browser: complete, usable, and without a request to another host."""

from __future__ import annotations

from collections.abc import Iterator
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import Browser, Page, sync_playwright

from tests.support.browser import accessible
from tests.support.fakes import tone
from tests.support.server import LiveServer, running, speaking


@pytest.fixture(scope="module")
def server() -> Iterator[LiveServer]:
    with running(speaking(tone(0.2)), api_keys=("secret",)) as live:
        yield live


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path="/usr/bin/chromium", args=["--no-sandbox"])
        yield launched
        launched.close()


@pytest.fixture
def page(server: LiveServer, browser: Browser) -> Iterator[Page]:
    """Return the rendered page; fails on script errors or requests to other hosts."""
    asked: list[str] = []
    complaints: list[str] = []
    shown = browser.new_page()
    shown.on("request", lambda request: asked.append(request.url))
    shown.on("pageerror", lambda error: complaints.append(str(error)))
    shown.on("console", lambda message: complaints.append(message.text) if "Security" in message.text else None)
    shown.goto(f"http://127.0.0.1:{server.port}/docs")
    shown.locator(".opblock-tag").first.wait_for()
    yield shown
    shown.close()
    assert not complaints
    hosts = {urlsplit(url).netloc for url in asked if not url.startswith(("blob:", "data:"))}
    assert hosts == {f"127.0.0.1:{server.port}"}


def test_the_page_shows_every_operation(server: LiveServer, page: Page) -> None:
    api = server.get("/openapi.json").json()
    accessible(page)
    for tag in page.locator(".opblock-tag").all():
        tag.click()
    page.locator(".opblock-tag-section.is-open").nth(len(api["tags"]) - 1).wait_for()
    wanted = [(method.upper(), path) for path, item in api["paths"].items() for method in item]
    methods = page.locator(".opblock-summary-method").all_text_contents()
    paths = [path.replace("\u200b", "") for path in page.locator(".opblock-summary-path").all_text_contents()]
    assert sorted(zip(methods, paths, strict=True)) == sorted(wanted)
    assert page.locator(".opblock-tag-section").count() == len(api["tags"])


def test_a_request_is_sent_with_a_key_and_its_audio_can_be_played(page: Page) -> None:
    page.get_by_role("button", name="Authorize").first.click()
    page.get_by_label("auth-bearer-value").fill("secret")
    page.get_by_role("button", name="Apply credentials").first.click()
    page.get_by_role("button", name="Close").first.click()
    page.locator(".opblock-tag", has_text="Earlier forms").click()
    operation = page.locator("[id$='-post_tts']")
    operation.locator(".opblock-summary-control").focus()
    page.keyboard.press("Enter")
    operation.get_by_role("button", name="Try it out").click()
    operation.get_by_role("button", name="Execute").press("Enter")
    operation.locator("audio").wait_for()
    assert operation.locator(".live-responses-table tbody .response-col_status").first.inner_text().startswith("200")
    assert "Bearer secret" in operation.locator(".curl").inner_text()
