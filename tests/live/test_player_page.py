"""What the player page shows: the engine in words, the controls that have an effect, errors, and its accessibility."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, expect

from streaming_server.domain import Capability
from tests.support.browser import Player, accessible, chromium, player
from tests.support.fakes import FOREVER, FakeEngine, Gate, Step, tone
from tests.support.server import RECORDINGS, LiveServer, RawClient, by_text, running, speaking

PHONE = {"width": 360, "height": 740}
_SHIFTS = """
  globalThis.shifts = [];
  new PerformanceObserver((list) => shifts.push(...list.getEntries()))
    .observe({ type: "layout-shift", buffered: true });
"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as launched:
        yield launched


@pytest.fixture(scope="module")
def fake() -> Iterator[LiveServer]:
    scripts: dict[str, list[Step]] = {"a": [tone(0.3)], "long": [tone(2.0), FOREVER]}
    with running(by_text(scripts), max_text_characters=100) as live:
        yield live


@pytest.fixture(scope="module")
def plain() -> Iterator[LiveServer]:
    """A server whose engine gets its capabilities from the tests."""
    with running(speaking(tone(0.1))) as live:
        yield live


@pytest.fixture
def page(browser: Browser, fake: LiveServer) -> Iterator[Player]:
    with player(browser, fake.port) as opened:
        yield opened


def with_capabilities(*capabilities: Capability) -> FakeEngine:
    engine = speaking(tone(0.1))
    engine.capabilities = frozenset(capabilities)
    return engine


@pytest.mark.parametrize(("scheme", "locale"), [("light", "en-US"), ("dark", "zh-CN")])
def test_the_page_is_accessible_in_its_states(browser: Browser, fake: LiveServer, scheme: str, locale: str) -> None:
    with player(browser, fake.port, locale=locale, color_scheme=scheme) as opened:
        for part in ("#settings", "#figures", "#emotion", "#emotion-more", "#code"):
            opened.page.click(f"{part} > summary")
        accessible(opened.page)
        opened.page.check("[name=mode][value=dialogue]", force=True)
        opened.page.click("#add-turn")
        accessible(opened.page)
        opened.page.check("[name=mode][value=text]", force=True)
        opened.play_whole("a")
        opened.page.click("#history > summary")
        opened.page.click("#read-along")
        opened.page.wait_for_selector("#reading")
        accessible(opened.page)
        opened.page.click("#read-along")
        opened.play("")
        expect(opened.page.locator("#problem")).to_be_visible()
        accessible(opened.page)
        opened.play("long")
        opened.heard_ms()
        accessible(opened.page)
        opened.page.keyboard.press("Escape")
        opened.page.click("#add-model")
        accessible(opened.page)


def test_the_key_dialog_is_accessible(browser: Browser) -> None:
    with (
        running(speaking(tone(0.1)), api_keys=("secret",)) as live,
        player(browser, live.port, ready="#key-dialog[open]") as opened,
    ):
        opened.page.keyboard.press("Enter")
        accessible(opened.page)


@pytest.mark.parametrize("viewport", [PHONE, {"width": 1280, "height": 900}])
def test_the_layout_hardly_shifts_while_the_page_loads(
    browser: Browser, fake: LiveServer, viewport: dict[str, int]
) -> None:
    with player(browser, fake.port, viewport=viewport, script=_SHIFTS) as opened:
        opened.play_whole("a")
        shifts = "shifts.filter((shift) => !shift.hadRecentInput).reduce((sum, shift) => sum + shift.value, 0)"
        assert opened.page.evaluate(shifts) <= 0.05


def test_the_header_says_what_is_loaded_and_how_to_add_a_model(page: Player) -> None:
    expect(page.page.locator("#engine")).to_have_text("fake 1.0.0: 11 voices, no cloning.")
    page.page.get_by_role("button", name="Add a model").click()
    dialog = page.page.get_by_role("dialog", name="Add a model")
    expect(dialog).to_contain_text("streaming-server download indextts-1.5")
    expect(dialog.get_by_role("link", name="API reference")).to_have_attribute("href", "docs")
    page.page.keyboard.press("Escape")
    expect(dialog).to_be_hidden()


def test_one_voice_is_singular(browser: Browser, tmp_path: Path) -> None:
    shutil.copy(RECORDINGS / "voice_01.wav", tmp_path)
    engine = with_capabilities(Capability.VOICE_CLONING)
    with running(engine, reference_audio_dir=tmp_path) as live, player(browser, live.port) as opened:
        expect(opened.page.locator("#engine")).to_have_text("fake 1.0.0: 1 voice, cloned from recordings.")
        expect(opened.page.locator("#voice-count")).to_have_text("1 voice")
        expect(opened.page.locator("#add-model")).to_be_hidden()


@pytest.mark.parametrize(
    ("capability", "fields"),
    [
        (None, set()),
        (Capability.SEED, {"seed"}),
        (Capability.TOKEN_STREAMING, {"stream_granularity"}),
        (
            Capability.GENERATION_PARAMETERS,
            {"temperature", "top_p", "top_k", "num_beams", "repetition_penalty", "length_penalty", "do_sample"}
            | {"max_text_tokens_per_sentence", "max_mel_tokens"},
        ),
    ],
)
def test_only_controls_that_have_an_effect_are_shown(
    browser: Browser, plain: LiveServer, capability: Capability | None, fields: set[str]
) -> None:
    plain.engine.capabilities = frozenset([capability] if capability else [])
    with player(browser, plain.port) as opened:
        opened.page.click("#settings summary")
        shown = opened.page.locator("#fields :is(input, select)").filter(visible=True)
        assert {control.get_attribute("name") for control in shown.all()} == fields | {
            "opus_complexity",
            "speed",
            "verbose",
        }
        opened.page.select_option("#format", "mp3")
        expect(opened.page.locator("#opus_complexity")).to_be_hidden()
        expect(opened.page.locator("#bitrate")).to_be_hidden()


def test_the_counter_has_the_limit_and_the_estimated_duration(page: Player) -> None:
    count = page.page.locator("#count")
    page.page.fill("#text", "x" * 60)
    expect(count).to_have_text("60 / 100 characters, about 4 s")
    page.page.fill("#text", "字" * 45)
    expect(count).to_have_text("45 / 100 characters, about 10 s")
    page.page.fill("#text", "")
    expect(count).to_have_text("0 / 100 characters")
    page.play("x" * 101)
    expect(page.page.locator("#error")).to_have_text("The text has 101 characters; at most 100 are allowed.")
    page.page.click("#language")
    expect(page.page.locator("#error")).to_have_text("文本有 101 个字符，最多允许 100 个。")


def test_a_missing_recording_is_told_beside_the_voices(browser: Browser, tmp_path: Path) -> None:
    for name in ("voice_01.wav", "voice_02.wav"):
        shutil.copy(RECORDINGS / name, tmp_path)
    with running(speaking(tone(0.1)), reference_audio_dir=tmp_path) as live, player(browser, live.port) as opened:
        (tmp_path / "voice_01.wav").unlink()
        opened.play("a")
        expect(opened.page.locator(".voices #error")).to_contain_text("Choose another voice")
        opened.page.click("#voices li:nth-child(2) label")
        opened.page.get_by_role("button", name="Retry").click()
        opened.wait("playerState.phase === 'done'")


def test_a_server_that_is_gone_is_told_in_the_pages_language(browser: Browser) -> None:
    with running(speaking(tone(0.1))) as live, player(browser, live.port, locale="zh-CN") as opened:
        opened.page.route("**/player/speech", lambda route: route.abort())
        opened.play("a")
        expect(opened.page.locator("#error")).to_have_text("无法连接服务器。")
        opened.page.unroute("**/player/speech")
        opened.page.get_by_role("button", name="重试").click()
        opened.wait("playerState.phase === 'done'")


def test_without_previews_the_queue_shows_no_text(browser: Browser) -> None:
    scripts: dict[str, list[Step]] = {"private": [tone(0.1), FOREVER], "mine": [tone(0.1), FOREVER]}
    with running(by_text(scripts), queue_preview=False) as live, player(browser, live.port) as opened:
        current = opened.page.locator("#queue .now")
        holder = RawClient(live.port, "/synthesize_stream", {"text": "private"})
        expect(current).to_contain_text("Someone")
        holder.close()
        opened.play("mine")
        expect(current).to_contain_text("You")


def test_while_it_plays_the_page_says_so(browser: Browser) -> None:
    with running(speaking(tone(300.0))) as live, player(browser, live.port) as opened:
        opened.page.select_option("#format", "pcm")
        opened.play("a")
        opened.heard_ms()
        # The server is done long before the last second is heard.
        expect(opened.page.locator("#chip-text")).to_have_text("Playing")
        expect(opened.page.locator("#status")).to_have_text("Playing")
        assert opened.page.title().startswith("▶")
        opened.page.keyboard.press("Escape")
        expect(opened.page.locator("#chip-text")).to_have_text("Ready")


def test_no_live_region_changes_many_times_a_second(browser: Browser) -> None:
    gate = Gate()
    with running(speaking(tone(1.2), gate)) as live, player(browser, live.port) as opened:
        opened.page.evaluate(
            """() => {
              globalThis.announced = 0;
              const live = "[role=status], [role=alert], [aria-live]:not([aria-live=off]), output";
              for (const region of document.querySelectorAll(live)) {
                new MutationObserver(() => announced++)
                  .observe(region, { childList: true, characterData: true, subtree: true });
              }
            }"""
        )
        opened.play("a")
        opened.wait("playerState.playedSamples > 48000")
        # Waiting for the first sound, and playing.
        assert opened.page.evaluate("announced") <= 3
        gate.open()
        opened.wait("playerState.phase === 'done'")
        assert opened.page.evaluate("announced") <= 4


def test_on_a_phone_the_voices_come_before_the_figures(browser: Browser, fake: LiveServer) -> None:
    with player(browser, fake.port, viewport=PHONE) as opened:
        voices, figures = (opened.page.locator(part).bounding_box() for part in (".voices", "#figures"))
        assert voices is not None
        assert figures is not None
        assert voices["y"] < figures["y"]
        expect(opened.page.locator("#first")).to_be_hidden()
