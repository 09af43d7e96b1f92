"""The player page in a real Chromium: audio, display, disconnects and stopping."""

from __future__ import annotations

import subprocess
import time
import urllib.parse
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from playwright.sync_api import Browser, expect

from streaming_server.audio.decode import decode_native
from streaming_server.domain import Capability, FloatSamples
from tests.support.browser import LAN_HOST, PAUSE_AT_ONCE, Player, chromium, player
from tests.support.fakes import FOREVER, RATE_HZ, Step, tone
from tests.support.proxy import cutting_proxy
from tests.support.server import LiveServer, RawClient, by_text, eventually, running

MANY = [tone(0.15, frequency) for frequency in range(200, 600, 40)]
NO_MEDIA = ("AudioDecoder", "MediaSource", "ManagedMediaSource")
LOOP = """() => {
  const play = HTMLMediaElement.prototype.play;
  HTMLMediaElement.prototype.play = function () { this.loop = true; return play.call(this); };
}"""
"""A recording sounds until it is stopped."""
SEVEN_WAIT = """import("/static/queue_panel.js").then(({ showQueue }) => {
  const queue = [1, 2, 3, 4, 5, 6, 7].map((position) => ({ position, request_id: position, expected_wait_seconds: 1 }));
  showQueue({ status: { is_processing: false, waiting: 7, queue } }, { mine: 6 });
  return document.getElementById("queue").innerText;
})"""
"""What the queue shows to the sixth of seven."""
WAYS = {"webcodecs": (), "mediasource": ("AudioDecoder",), "pcm": NO_MEDIA}


def slowly(chunks: list[FloatSamples], pause_s: float) -> list[Step]:
    return [step for chunk in chunks for step in (chunk, pause_s)]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as launched:
        yield launched


@pytest.fixture(scope="module")
def espeak() -> Iterator[LiveServer]:
    with running() as live:
        yield live


@pytest.fixture(scope="module")
def fake() -> Iterator[LiveServer]:
    scripts: dict[str, list[Step]] = {
        "a": [tone(0.5)],
        "odd": [tone(1.23456)],
        "many": slowly(MANY, 0.05),
        "long": [tone(2.0), FOREVER],
        "broken": [tone(0.3), 0.2, ValueError("it broke")],
        "minutes": [tone(1.0)] * 150,
    }
    engine = by_text(scripts)
    engine.capabilities = frozenset(
        {Capability.GENERATION_PARAMETERS, Capability.TOKEN_STREAMING, Capability.SEED, Capability.VOICE_CLONING}
    )
    with running(engine, resume_grace_s=FOREVER) as live:
        yield live


@pytest.fixture
def page(browser: Browser, fake: LiveServer) -> Iterator[Player]:
    with player(browser, fake.port) as opened:
        yield opened


@pytest.mark.parametrize("way", [*WAYS])
def test_sound_is_heard_while_the_engine_works(browser: Browser, fake: LiveServer, way: str) -> None:
    with player(browser, fake.port, without=WAYS[way]) as opened:
        assert opened.state("method") == way
        for _ in range(2):
            opened.play("long")
            opened.heard_ms()
            opened.wait("playerState.firstAudioMs > 0")
            assert fake.queue()["is_processing"]
            opened.page.keyboard.press("Escape")
            opened.wait("playerState.level < 0.001")


def test_the_sound_device_starts_before_the_click(page: Player) -> None:
    page.page.click("#text")
    page.page.hover("#play")
    page.wait("playerState.contextTime > 0")
    assert page.state("phase") == "idle"
    page.play_whole("a")
    assert page.state("playedSamples") == 24000


def test_the_waveform_is_drawn_while_it_arrives(page: Player) -> None:
    eventually(page.bars)
    assert max(page.bars()) <= 3
    page.play("long")
    page.wait("playerState.drawnSlots > 90")
    # Two of the six seconds that the width shows at least, at half of full scale.
    eventually(lambda: 0.25 < np.mean(np.array(page.bars()) > 20) < 0.4)
    assert page.state("phase") == "playing"
    expect(page.page.locator("#first")).to_contain_text("ms")
    expect(page.page.locator("#received")).to_contain_text("kB")


@pytest.mark.parametrize(("way", "rate_hz"), [("webcodecs", 48000), ("pcm", RATE_HZ)])
def test_every_sample_is_played_once_and_none_besides(
    browser: Browser, fake: LiveServer, way: str, rate_hz: int
) -> None:
    expected = tone(1.23456, rate_hz=rate_hz)
    length = round(1.23456 * RATE_HZ) * rate_hz // RATE_HZ
    with player(browser, fake.port, without=WAYS[way]) as opened:
        opened.play_whole("odd")
        laid = opened.laid()
        assert (opened.state("method"), opened.state("sampleRate")) == (way, rate_hz)
        assert opened.state("scheduledSamples") == opened.state("playedSamples") == laid.size == length
        # Nothing but a pause of the machine may stand between two buffers, and the page owns up to it.
        gaps = [gap for gap in opened.seams() if gap]
        assert all(gap > 0 for gap in gaps)
        assert len(gaps) == opened.state("underruns")
    # A shift by the pre-skip would be most of a period and a half of the tone.
    assert np.corrcoef(laid, expected[:length])[0, 1] > 0.99


def test_a_stop_in_mid_sentence_frees_the_slot_at_once(page: Player, fake: LiveServer) -> None:
    page.play("long")
    page.heard_ms()
    assert fake.queue()["is_processing"]
    page.page.click("#play")
    # A connection that is merely gone would keep the slot for `resume_grace_s`.
    eventually(lambda: not fake.queue()["is_processing"])
    page.wait("playerState.level === 0 || playerState.level < 0.001")
    assert page.state("phase") == "stopped"
    assert page.page.inner_text("#play-text") == "Play"


def test_leaving_the_page_frees_the_slot(browser: Browser, fake: LiveServer) -> None:
    with player(browser, fake.port) as opened:
        opened.play("long")
        opened.heard_ms()
        opened.page.goto("about:blank")
        eventually(lambda: not fake.queue()["is_processing"])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("way", "cuts"),
    [("webcodecs", (3000, 2001)), ("pcm", (40_001,)), ("mediasource", (3000,))],
)
def test_a_broken_connection_costs_no_sample(
    browser: Browser, fake: LiveServer, tmp_path: Path, way: str, cuts: tuple[int, ...]
) -> None:
    with player(browser, fake.port, without=WAYS[way]) as opened:
        opened.play_whole("many")
        whole = opened.laid()
        assert opened.state("resumes") == 0
    for cut in cuts:
        synthesised = len(fake.engine.requests)
        with (
            cutting_proxy(fake.port, b"POST /player/speech", cut) as proxy,
            player(browser, proxy.port, without=WAYS[way]) as opened,
        ):
            opened.play_whole("many")
            assert proxy.made == 1
            assert opened.state("resumes") >= 1
            assert np.array_equal(opened.laid(), whole)
            kept = fake.get(f"/streams/{opened.stream_ids[0]}").content
            assert opened.download(tmp_path).read_bytes()[-len(kept) :] == kept
        assert len(fake.engine.requests) == synthesised + 1
    if way != "mediasource":  # which keeps its samples to itself
        assert whole.size == 1.5 * (48000 if way == "webcodecs" else RATE_HZ)


@pytest.mark.slow
def test_a_connection_that_breaks_again_and_again_is_continued_each_time(browser: Browser, fake: LiveServer) -> None:
    with (
        cutting_proxy(fake.port, b"GET /streams/", 700, 900, 1100) as proxy,
        cutting_proxy(proxy.port, b"POST /player/speech", 1500) as outer,
        player(browser, outer.port) as opened,
    ):
        opened.play_whole("many")
        assert (outer.made, proxy.made, opened.state("resumes")) == (1, 3, 4)
        assert opened.laid().size == 1.5 * 48000


def test_a_stop_while_the_connection_is_lost_is_shown(browser: Browser, fake: LiveServer) -> None:
    with cutting_proxy(fake.port, b"POST /player/speech", 3000) as proxy, player(browser, proxy.port) as opened:
        opened.page.route("**/streams/*?from=*", lambda _: None)  # looked for until it is stopped
        opened.play("long")
        status = opened.page.locator("#status")
        expect(status).to_have_text("The connection broke; it continues…")
        opened.page.keyboard.press("Escape")
        expect(status).to_have_text("Stopped")
        eventually(lambda: not fake.queue()["is_processing"])


@pytest.mark.parametrize("format_name", ["webm", "mp3"])
def test_a_media_source_plays_where_no_decoder_is(browser: Browser, fake: LiveServer, format_name: str) -> None:
    with player(browser, fake.port, without=WAYS["mediasource"]) as opened:
        offered = opened.page.evaluate("[...document.querySelectorAll('#format option')].map((o) => o.value)")
        assert offered == ["", "webm", "pcm", "mp3"]
        opened.page.select_option("#format", "" if format_name == "webm" else format_name)
        opened.play("odd")
        opened.heard_ms()
        opened.wait("playerState.phase === 'done'")
        assert opened.state("method") == "mediasource"
        assert opened.page.evaluate("ears.laid.length") == 0
        # MP3 ends with what its frame and its decoder add.
        assert opened.state("playedSamples") / 48000 == pytest.approx(1.23456, abs=0.08)
        eventually(lambda: max(opened.bars()) > 20)
        opened.page.click("#history summary")
        expect(opened.page.locator("#history")).to_contain_text("· 0:01.")
        assert fake.get(f"/streams/{opened.stream_ids[0]}").headers["content-type"] in {"audio/webm", "audio/mpeg"}


def test_plain_http_in_a_home_network_is_enough(browser: Browser, fake: LiveServer) -> None:
    with player(browser, fake.port, host=LAN_HOST) as opened:
        assert opened.page.evaluate("[isSecureContext, typeof AudioDecoder]") == [False, "undefined"]
        opened.play_whole("odd")
        assert opened.state("method") == "mediasource"
        shown = opened.page.text_content("#snippet") or ""
        opened.page.click("#code summary")
        opened.page.evaluate("globalThis.setTimeout = () => 0")  # "Copied" stays
        opened.page.click("#copy")
        expect(opened.page.locator("#copy")).to_have_text("Copied")
        opened.page.fill("#text", "")
        opened.page.focus("#text")
        opened.page.keyboard.press("Control+V")
        assert opened.page.input_value("#text") == shown


def test_without_decoder_and_media_source_plain_samples_play(browser: Browser, espeak: LiveServer) -> None:
    with player(browser, espeak.port, without=NO_MEDIA) as opened:
        assert opened.page.evaluate("[...document.querySelectorAll('#format option')].map((o) => o.value)") == [
            "",
            "pcm",
        ]
        opened.play("Good morning.")
        opened.heard_ms()
        assert (opened.state("method"), opened.state("sampleRate")) == (
            "pcm",
            espeak.service.engine.info.sample_rate_hz,
        )


def test_a_media_source_reaches_what_is_appended_later(browser: Browser, fake: LiveServer) -> None:
    with player(browser, fake.port, without=WAYS["mediasource"]) as opened:
        opened.page.evaluate(PAUSE_AT_ONCE)
        opened.play("minutes")
        expect(opened.page.locator("#clips")).to_contain_text("· 2:30.0 ·", use_inner_text=False)
        position = opened.page.get_by_role("slider", name="Position in the speech")
        expect(position).to_have_attribute("aria-valuemax", "150")
        for key, second in {"End": 150, "ArrowLeft": 145, "Home": 0}.items():
            position.press(key)
            opened.wait(f"Math.abs(playerState.playedSeconds - {second}) < 4", 30)


def test_far_ahead_nothing_is_decoded(page: Player) -> None:
    page.play("minutes")
    expect(page.page.locator("#download")).to_be_enabled()  # all has arrived
    page.wait("playerState.playedSamples > 24000")
    # Two minutes have arrived; half a minute of samples is the most that memory holds.
    assert page.page.evaluate("playerState.scheduledSamples - playerState.playedSamples") < 40 * 48000


def test_what_was_made_before_a_failure_is_heard_and_the_failure_told(page: Player) -> None:
    page.play("broken")
    expect(page.page.locator("#error")).to_be_visible()
    page.wait("playerState.phase === 'failed'")
    assert page.state("playedSamples") > 0.2 * 48000
    assert "broke" not in page.page.inner_text("#error")
    assert page.page.inner_text("#error")


@pytest.mark.parametrize("format_name", ["", "pcm", "webm", "mp3"])
def test_what_was_heard_can_be_downloaded(page: Player, tmp_path: Path, format_name: str) -> None:
    page.page.select_option("#format", format_name)
    page.play_whole("odd")
    path = page.download(tmp_path)
    assert path.suffix == {"": ".ogg", "pcm": ".wav"}.get(format_name, f".{format_name}")
    samples, rate_hz = decode_native(path)
    assert samples.size / rate_hz == pytest.approx(1.23456, abs=0.08 if format_name == "mp3" else 0.001)


def test_the_queue_is_shown_and_ones_own_place_in_it(browser: Browser) -> None:
    with (
        running(by_text({"first": [tone(0.1), FOREVER], "mine": [tone(0.2)]})) as live,
        player(browser, live.port) as opened,
    ):
        chip = opened.page.locator("#chip-text")
        expect(chip).to_have_text("Ready")
        assert "and 2 more" in opened.page.evaluate(SEVEN_WAIT)
        holder = RawClient(live.port, "/synthesize_stream", {"text": "first"})
        expect(chip).to_have_text("Speaking")
        expect(opened.page.locator("#queue .now")).to_contain_text("first")
        clicked_s = time.monotonic()
        opened.play("mine")
        expect(chip).to_have_text("Speaking, 1 waiting")
        expect(opened.page.locator("#queue .mine")).to_contain_text("You")
        expect(opened.page.locator("#status")).to_contain_text("number 1")
        opened.page.wait_for_timeout(500)
        holder.close()
        opened.wait("playerState.phase === 'done'")
        took_s = time.monotonic() - clicked_s
        expect(chip).to_have_text("Ready")
        # The half second of waiting is not synthesis, of which there is 0.2 s of audio, on a machine of any speed.
        assert float(opened.page.text_content("#factor") or "") * 0.2 < took_s - 0.5


def test_a_full_queue_is_told_and_retried(browser: Browser) -> None:
    scripts: dict[str, list[Step]] = {"first": [tone(0.1), FOREVER], "mine": [tone(0.2)]}
    with running(by_text(scripts), max_queue=0) as live, player(browser, live.port) as opened:
        holder = RawClient(live.port, "/synthesize_stream", {"text": "first"})
        holder.read()
        opened.play("mine")
        expect(opened.page.locator("#error")).to_have_text(
            "The server cannot take another request now. Try again in a moment."
        )
        holder.close()
        eventually(lambda: not live.queue()["is_processing"])
        opened.page.get_by_role("button", name="Retry").click()
        opened.wait("playerState.phase === 'done'")
        expect(opened.page.locator("#problem")).to_be_hidden()


def test_an_error_stands_beside_what_caused_it(page: Player) -> None:
    error = page.page.locator("#error")
    page.play("   ")
    expect(error).to_have_text("Enter the text to speak.")
    expect(page.page.locator(".composer #problem")).to_be_visible()
    expect(page.page.locator("#text")).to_be_focused()
    page.page.click("#settings summary")
    page.page.fill("#top_p", "7")
    page.page.click("#settings summary")
    page.play("a")
    expect(page.page.locator(".field:has(#top_p) #error")).to_contain_text("top_p: ")
    expect(page.page.locator("#top_p")).to_have_attribute("aria-invalid", "true")
    expect(page.page.locator("#top_p")).to_be_focused()
    page.page.click("#language")
    expect(error).to_have_text("top_p 的值无效，有效范围：0 – 1。")
    page.page.click("#reset")
    page.play_whole("a")
    expect(error).to_be_hidden()


def test_what_is_set_is_what_is_asked_for(page: Player, fake: LiveServer) -> None:
    page.page.click("#settings summary")
    page.page.fill("#temperature", "0.7")
    page.page.fill("#seed", "42")
    page.page.uncheck("#do_sample")
    page.page.select_option("#stream_granularity", "sentence")
    page.page.click("#voices li:nth-child(3) label")
    page.play_whole("a")
    asked = fake.engine.requests[-1]
    assert (asked.generation.temperature, asked.generation.seed, asked.generation.do_sample) == (0.7, 42, False)
    assert (asked.generation.top_k, asked.granularity) == (30, "sentence")
    assert asked.voice.name == "voice_03"
    expect(page.page.locator("#changed")).to_have_text("4 changed")


@pytest.mark.parametrize("format_name", ["", "pcm", "webm", "mp3"])
def test_the_curl_line_works_as_it_is_shown(
    browser: Browser, espeak: LiveServer, tmp_path: Path, format_name: str
) -> None:
    with player(browser, espeak.port) as opened:
        opened.page.select_option("#format", format_name)
        opened.page.fill("#text", 'It\'s "quoted", costs $HOME `pwd` \\ and\nhas two lines. 你好。')
        bitrate = opened.page.locator("#bitrate")
        if bitrate.is_visible():
            bitrate.fill("7")
        shown = opened.page.text_content("#snippet") or ""
    assert ('"opus_bitrate":96000' in shown) == (format_name in {"", "webm"})
    strict = shown.replace("curl ", "curl -sS --fail-with-body ", 1)
    subprocess.run(["bash", "-c", strict], cwd=tmp_path, check=True, timeout=120)
    (path,) = tmp_path.iterdir()
    if format_name == "pcm":
        assert path.stat().st_size > 22050 * 2
    else:
        samples, rate_hz = decode_native(path)
        assert samples.size / rate_hz > 1


def test_a_text_that_is_refused_leaves_the_speech_and_a_replay_ends_a_recording(page: Player) -> None:
    page.play_whole("a")
    page.play("")
    expect(page.page.locator("#error")).to_have_text("Enter the text to speak.")
    expect(page.page.locator("#download")).to_be_enabled()
    page.page.evaluate(LOOP)
    page.page.click("#voices li:nth-child(2) .listen")
    expect(page.page.locator(".listen.on")).to_have_count(1)
    page.page.get_by_role("button", name="Replay").click()
    expect(page.page.locator(".listen.on")).to_have_count(0)
    page.wait("playerState.phase === 'done'")


def test_a_recording_can_be_heard_before_it_is_chosen(page: Player) -> None:
    listen = page.page.locator("#voices li:nth-child(2) .listen")
    expect(listen).to_have_attribute("aria-label", "Listen to Echo")
    page.page.evaluate(LOOP)
    listen.click()
    expect(listen).to_have_attribute("aria-label", "Stop listening to Echo")
    assert any(url.endswith("/download_reference_audio/1") for url in page.requested)
    listen.click()
    expect(listen).to_have_attribute("aria-label", "Listen to Echo")


def test_the_page_asks_no_other_host(page: Player, fake: LiveServer) -> None:
    page.play_whole("a")
    listen = page.page.locator("#voices li:nth-child(1) .listen")
    page.page.evaluate(LOOP)
    listen.click()
    expect(listen).to_have_attribute("aria-label", "Stop listening to Alloy")
    hosts = {urllib.parse.urlsplit(url).netloc for url in page.requested if not url.startswith(("data:", "blob:"))}
    assert hosts == {f"127.0.0.1:{fake.port}"}
    blocked = page.page.evaluate("fetch('http://localhost:9/').then(() => '', (error) => error.message)")
    assert blocked, "the page's policy lets it ask another host"


def test_the_keyboard_is_enough(page: Player) -> None:
    reached, ringed = set(), set()
    page.page.click("#code summary")
    page.page.focus("#language")
    for _ in range(70):
        page.page.keyboard.press("Tab")
        name, ring = page.page.evaluate(
            """() => {
              const { id, className, type } = document.activeElement;
              return [id || className || type, getComputedStyle(document.activeElement).outlineStyle];
            }"""
        )
        reached.add(name)
        ringed |= {name} if ring != "none" else set()
    assert {"text", "play", "format", "bitrate", "copy", "snippet", "listen", "radio", "language"} <= reached
    assert {"play", "format", "bitrate", "copy", "snippet", "listen", "language"} <= ringed
    page.page.fill("#text", "long")
    page.page.focus("#text")
    for ignored in ("isComposing", "repeat"):
        page.page.evaluate(
            f'dispatchEvent(new KeyboardEvent("keydown", {{ key: "Enter", ctrlKey: true, {ignored}: true }}))'
        )
        assert page.state("phase") == "idle"
    page.page.keyboard.press("Control+Enter")
    page.wait("playerState.playedSamples > 4800")
    page.page.keyboard.press("Escape")
    assert page.state("phase") == "stopped"


def test_every_control_has_a_name(page: Player) -> None:
    nameless = page.page.evaluate(
        """[...document.querySelectorAll("button, input, select, textarea")].filter((control) =>
          !control.getAttribute("aria-label") && !control.textContent.trim() && !control.labels?.[0]?.textContent.trim()
        ).map((control) => control.outerHTML)"""
    )
    assert nameless == []


@pytest.mark.parametrize("locale", ["en-US", "zh-CN"])
def test_nothing_is_wider_than_a_phone(browser: Browser, fake: LiveServer, locale: str) -> None:
    phone = {"width": 360, "height": 740}
    with player(browser, fake.port, viewport=phone, locale=locale, has_touch=True, is_mobile=True) as opened:
        opened.page.click("#settings summary")
        opened.play("long")
        opened.heard_ms()
        assert opened.page.evaluate("document.documentElement.scrollWidth") == phone["width"]
        beyond = opened.page.evaluate(
            f"""[...document.querySelectorAll("main *:not(option), header *")].filter((element) =>
              element.getBoundingClientRect().right > {phone["width"]}).map((element) => element.outerHTML)"""
        )
        assert beyond == []


def test_two_languages(browser: Browser, fake: LiveServer) -> None:
    with player(browser, fake.port, locale="zh-CN") as opened:
        page = opened.page
        assert page.evaluate("document.documentElement.lang") == "zh-CN"
        assert page.inner_text("#play-text") == "播放"
        expect(page.locator("#chip-text")).to_have_text("就绪")
        page.click("#settings summary")
        page.fill("#seed", "1.5")
        opened.play("a")
        expect(page.locator("#error")).to_have_text("seed 的值无效，应为整数，有效范围：−2⁶³ – 2⁶³−1。")
        page.click("#language")
        assert page.evaluate("document.documentElement.lang") == "en"
        assert page.inner_text("#play-text") == "Play"
        page.reload()
        page.wait_for_selector("#voices input")
        assert page.inner_text("h1") == "Streaming speech"


def test_no_word_is_missing_in_either_language(browser: Browser, fake: LiveServer) -> None:
    with player(browser, fake.port) as opened:
        english, chinese = opened.page.evaluate(
            """import("/static/i18n.js").then(({ HINTS, SAMPLES, WORDS }) => ["en", "zh"].map((language) =>
              [HINTS[language], WORDS[language]].map((words) => Object.keys(words).sort())))"""
        )
    assert english == chinese
