"""The API reference in a real browser: complete, readable without scripts, and without a request to another host."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import Browser, Page, expect

from streaming_server.audio.decode import decode_native
from tests.support.browser import accessible, chromium
from tests.support.fakes import tone
from tests.support.server import LiveServer, eventually, running, speaking

OPERATION = "post_synthesize"


@pytest.fixture(scope="module")
def server() -> Iterator[LiveServer]:
    with running(speaking(tone(0.2)), api_keys=("secret",)) as live:
        yield live


@pytest.fixture(scope="module")
def api(server: LiveServer) -> dict[str, Any]:
    described: dict[str, Any] = server.get("/openapi.json").json()
    return described


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as launched:
        yield launched


@pytest.fixture
def page(server: LiveServer, browser: Browser) -> Iterator[Page]:
    """The page once its script has run; fails on script errors or requests to other hosts."""
    asked: list[str] = []
    complaints: list[str] = []
    context = browser.new_context(permissions=["clipboard-read", "clipboard-write"])
    context.set_default_timeout(180_000)
    shown = context.new_page()
    shown.on("request", lambda request: asked.append(request.url))
    shown.on("pageerror", lambda error: complaints.append(str(error)))
    shown.on("console", lambda message: complaints.append(message.text) if "Security" in message.text else None)
    shown.goto(f"http://127.0.0.1:{server.port}/docs")
    shown.locator(":root.has-script").wait_for()
    yield shown
    context.close()
    assert not complaints
    hosts = {urlsplit(url).netloc for url in asked if not url.startswith(("blob:", "data:"))}
    assert hosts == {f"127.0.0.1:{server.port}"}


def opened(page: Page, operation: str) -> Any:
    """An operation whose details are shown."""
    details = page.locator(f"#{operation}")
    details.locator("summary").click()
    expect(details.locator("pre").first).to_be_visible()
    return details


def fields_of(api: dict[str, Any], operation: dict[str, Any]) -> set[str]:
    """The names of the parameters and of the fields of the body."""
    names = {parameter["name"] for parameter in operation.get("parameters", ())}
    for taken in operation.get("requestBody", {}).get("content", {}).values():
        names |= api["components"]["schemas"][taken["schema"]["$ref"].split("/")[-1]]["properties"].keys()
    return names


def test_every_operation_is_shown_with_its_fields_and_answers(api: dict[str, Any], page: Page) -> None:
    shown = page.evaluate(
        """Object.fromEntries([...document.querySelectorAll(".operation")].map((operation) => [operation.id, {
          title: operation.querySelector("h3").textContent,
          names: [...operation.querySelectorAll("dt > code")].map((code) => code.textContent),
        }]))"""
    )
    titles = {}
    for path, item in api["paths"].items():
        for method, operation in item.items():
            name = operation["operationId"]
            titles[name] = f"{method.upper()} {path}"
            assert fields_of(api, operation) | operation["responses"].keys() <= set(shown[name]["names"]), name
    assert {name: part["title"] for name, part in shown.items()} == titles
    assert page.locator(".group h2").all_text_contents() == [tag["name"] for tag in api["tags"]]


def test_types_limits_and_defaults_are_shown(page: Page) -> None:
    rows = opened(page, OPERATION).locator(".rows").first.locator("div")
    expect(rows.first).to_have_text(re.compile(r"text string required\s+Text to synthesise.+ 1 – 20000 characters"))
    beams = rows.filter(has=page.get_by_text("num_beams", exact=True))
    expect(beams).to_have_text(re.compile(r"num_beams integer\s+Ignored by .+ 1 – 10 default 3"))


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_is_accessible_with_operations_open_and_closed(page: Page, scheme: Any) -> None:
    page.emulate_media(color_scheme=scheme)
    # All operations are made alike, and axe takes seconds for the elements of all.
    kept = [OPERATION, "get_streams_stream_id", "post_v1_audio_voices", "get_health"]
    page.evaluate(
        """(kept) => document.querySelectorAll(".operation")
          .forEach((operation) => kept.includes(operation.id) || operation.remove())""",
        kept,
    )
    for name in kept[:-1]:
        details = opened(page, name)
        details.get_by_role("button", name="Try it").click()
        expect(details.get_by_role("button", name="Send")).to_be_visible()
    accessible(page)


def test_it_can_be_read_without_scripts(server: LiveServer, browser: Browser) -> None:
    context = browser.new_context(java_script_enabled=False)
    context.set_default_timeout(180_000)
    shown = context.new_page()
    shown.goto(f"http://127.0.0.1:{server.port}/docs")
    expect(shown.locator("#filter")).to_be_hidden()
    details = shown.locator(f"#{OPERATION}")
    details.locator("summary").click()
    expect(details.get_by_text("curl")).to_be_visible()
    expect(details.get_by_role("button")).to_have_count(0)
    context.close()


def test_operations_are_filtered_and_linked(page: Page) -> None:
    everything = page.locator(".operation").count()
    visible = page.locator(".operation").filter(visible=True)
    page.get_by_label("Filter").fill("prompt_audio_id SYNC")
    expect(visible).to_have_count(1)
    expect(visible).to_contain_text("/api/v1/tts/sync")
    expect(page.get_by_role("status")).to_have_text(f"1 of {everything}")
    assert page.locator(".group").filter(visible=True).count() == 1
    page.get_by_label("Filter").fill("xyzzy")
    expect(page.get_by_text("No operation matches.")).to_be_visible()
    # A link to an operation that the filter hides shows it.
    page.goto(f"{page.url}#{OPERATION}")
    expect(page.locator(f"#{OPERATION} pre")).to_be_visible()
    expect(visible).to_have_count(everything)
    page.reload()
    expect(page.locator(f"#{OPERATION} pre")).to_be_visible()


def test_the_example_is_copied_and_works(page: Page, tmp_path: Path) -> None:
    details = opened(page, OPERATION)
    page.evaluate("globalThis.setTimeout = () => 0")  # "Copied" stays
    details.get_by_role("button", name="Copy").click()
    expect(details.get_by_role("button", name="Copied")).to_be_visible()
    copied = page.evaluate("navigator.clipboard.readText()")
    assert copied == details.locator("pre").text_content()
    strict = copied.replace("curl ", "curl -sS --fail-with-body ", 1)
    environment = {"API_KEY": "secret", "PATH": "/usr/bin"}
    subprocess.run(["bash", "-c", strict], cwd=tmp_path, check=True, timeout=300, env=environment)
    samples, rate_hz = decode_native(tmp_path / "speech.wav")
    assert samples.size / rate_hz == pytest.approx(0.2, abs=0.001)


def test_a_request_is_tried_with_a_key_and_its_audio_can_be_played(page: Page) -> None:
    details = opened(page, OPERATION)
    details.get_by_role("button", name="Try it").click()
    details.get_by_role("button", name="Send").click()
    expect(details.get_by_role("status")).to_contain_text("401")
    details.get_by_label("API key").fill("secret")
    details.get_by_label("Body").fill('{"text": ""}')
    details.get_by_role("button", name="Send").click()
    expect(details.locator(".form pre")).to_contain_text("文本不能为空")
    details.get_by_label("Body").fill('{"text": "Hello."}')
    details.get_by_role("button", name="Send").click()
    expect(details.get_by_role("status")).to_have_text("200 OK audio/wav")
    audio = details.locator("audio")
    expect(audio).to_be_visible()
    eventually(lambda: page.evaluate("document.querySelector('audio').duration > 0.1"))
