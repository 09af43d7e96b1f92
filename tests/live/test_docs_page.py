"""The page of the API in a real browser: complete, usable, and quiet towards other hosts."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import Browser, Page, sync_playwright

from tests.support.fakes import FakeEngine, tone
from tests.support.server import RECORDINGS, LiveServer, running, speaking


@pytest.fixture(scope="module")
def server() -> Iterator[LiveServer]:
    with running(speaking(tone(0.2))) as live:
        yield live


@pytest.fixture(scope="module")
def api(server: LiveServer) -> dict[str, Any]:
    described: dict[str, Any] = server.get("/openapi.json").json()
    return described


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path="/usr/bin/chromium", args=["--no-sandbox"])
        yield launched
        launched.close()


@pytest.fixture(scope="module")
def page(server: LiveServer, browser: Browser) -> Iterator[Page]:
    """The page, once it is drawn; fails where it asked another host or had something to complain about."""
    asked: list[str] = []
    complaints: list[str] = []
    shown = browser.new_page()
    shown.on("request", lambda request: asked.append(request.url))
    shown.on("console", lambda message: complaints.append(message.text))
    shown.on("pageerror", lambda error: complaints.append(str(error)))
    drawn(shown, server)
    yield shown
    shown.close()
    assert not complaints
    assert {urlsplit(url).netloc for url in asked if not url.startswith("blob:")} == {f"127.0.0.1:{server.port}"}


def drawn(page: Page, server: LiveServer) -> None:
    page.goto(f"http://127.0.0.1:{server.port}/docs")
    page.wait_for_selector("details.operation")


def open_all(page: Page) -> None:
    page.evaluate("document.querySelectorAll('details').forEach(details => details.open = true)")
    page.wait_for_function(
        "[...document.querySelectorAll('details.operation')].every(details => details.querySelector('pre > code'))"
    )


def test_the_page_shows_every_operation(page: Page, api: dict[str, Any]) -> None:
    shown = [
        tuple(summary.split("\n")[:3]) for summary in page.locator("details.operation > summary").all_inner_texts()
    ]
    wanted = [
        (method.upper(), path, operation["summary"])
        for path, item in api["paths"].items()
        for method, operation in item.items()
    ]
    assert sorted(shown) == sorted(wanted)
    assert page.locator("main h2").all_inner_texts() == [tag["name"] for tag in api["tags"]]


def test_fields_are_shown_with_kinds_defaults_and_ranges(page: Page) -> None:
    operation = page.locator("#post_synthesize_stream_opus")
    operation.evaluate("details => details.open = true")
    rows = {row.split("\n")[0]: row for row in operation.locator(".fields > div").all_inner_texts()}
    assert "integer 8000 to 512000, default 32000" in rows["opus_bitrate"]
    assert '"ogg", "webm", "mp3", default "ogg"' in rows["format"]
    assert "integer -2^63 to 2^63 or null" in rows["seed"]
    assert "text required" in rows


def test_it_is_used_by_keyboard(page: Page) -> None:
    operation = page.locator("#post_tts")
    operation.locator("summary").first.focus()
    page.keyboard.press("Enter")
    assert operation.get_attribute("open") is not None
    operation.get_by_role("button", name="Send").press("Enter")
    operation.locator("audio").wait_for()
    assert "200 OK" in operation.locator(".outcome").inner_text()
    assert "content-type: audio/wav" in operation.locator(".outcome pre").inner_text()


def test_what_never_ends_is_shown_as_it_comes_and_can_be_stopped(page: Page) -> None:
    operation = page.locator("#get_opus_queue_status_events")
    operation.evaluate("details => details.open = true")
    operation.get_by_role("button", name="Send").click()
    operation.get_by_text('"is_processing": false').wait_for()
    operation.get_by_role("button", name="Stop").click()
    operation.get_by_text("Stopped.").wait_for()


def test_an_address_opens_its_operation(page: Page) -> None:
    page.locator("nav a[href='#get_health']").click()
    assert page.locator("#get_health").get_attribute("open") is not None


def test_it_fits_a_phone(page: Page) -> None:
    open_all(page)
    wide = page.viewport_size
    assert wide
    page.set_viewport_size({"width": 360, "height": 740})
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    page.set_viewport_size(wide)


RECORDING = RECORDINGS / "voice_01.wav"


def test_curl_lines_work_as_they_stand(page: Page, tmp_path: Path) -> None:
    open_all(page)
    for line in page.locator("details.operation pre > code").all_inner_texts():
        if re.search("[A-Z]+_ID", line) or any(endless in line for endless in ("/events'", "/test_stream'")):
            continue
        result = subprocess.run(
            ["bash", "-c", f"curl -sS --fail-with-body {line.removeprefix('curl ').replace('@FILE', f'@{RECORDING}')}"],
            cwd=tmp_path,
            capture_output=True,
            check=False,
            timeout=30,
        )
        assert result.returncode == 0, (line, result.stderr, result.stdout)
        written = list(tmp_path.iterdir())
        assert len(written) == (" -o answer." in line)
        for path in written:
            assert path.stat().st_size > 100
            path.unlink()


def test_a_key_is_sent_and_stands_in_the_curl_line(browser: Browser) -> None:
    with running(FakeEngine(), api_keys=("secret",), wait=False) as live:
        page = browser.new_page()
        drawn(page, live)
        operation = page.locator("#get_model_info")
        operation.locator("summary").first.click()
        assert '-H "Authorization: Bearer $API_KEY"' in operation.locator("pre > code").inner_text()
        for key, status in (("", "401"), ("secret", "200")):
            page.get_by_label("API key").fill(key)
            operation.get_by_role("button", name="Send").click()
            operation.locator(".outcome strong", has_text=status).wait_for()
        page.close()
