"""The player page's playback: pausing, replaying and seeking without another synthesis, downloading."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from playwright.sync_api import Browser, expect

from streaming_server.audio.decode import decode_native
from tests.support.browser import chromium, player
from tests.support.fakes import FOREVER, Gate, Step, tone
from tests.support.server import LiveServer, by_text, running

METHODS = {"ogg": (), "webm": ("AudioDecoder",), "pcm": ("AudioDecoder", "MediaSource", "ManagedMediaSource")}

MEDIA_KEYS = """
  globalThis.keys = {};
  navigator.mediaSession.setActionHandler = (name, handler) => (keys[name] = handler);
"""
SAFARI = """
  globalThis.ManagedMediaSource = class extends MediaSource {
    constructor() { super(); globalThis.managed = this; }
  };
  globalThis.elements = [];
  const play = HTMLMediaElement.prototype.play;
  HTMLMediaElement.prototype.play = function () { elements.push(this); return play.call(this); };
"""

STOP_AND_COUNT = """new Promise((resolve) => {
  const at = playerState.contextTime;
  document.getElementById("play").click();
  const played = playerState.playedSamples;
  const look = (times) => {
    if (playerState.contextTime - at > 0.2 || times > 100) resolve(playerState.playedSamples - played);
    else setTimeout(() => look(times + 1), 20);
  };
  look(0);
})"""
"""Stops, and counts the samples by which the speech goes on while the clock of the sound runs for 0.2 s."""
IMPATIENT = """{
  const later = globalThis.setTimeout;
  globalThis.setTimeout = (run, ms, ...rest) => later(run, ms === 8000 ? 50 : ms, ...rest);
}"""
"""Shortens the eight seconds of silence after which the page asks for the rest of a stream."""
LARGE_CLIP = """async (times) => {
  const { MediaPlayback } = await import("/static/media_playback.js");
  const { Speaker } = await import("/static/speaker.js");
  const response = await fetch("player/speech", {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify({ text: "short", format: "mp3" }),
  });
  const part = await response.arrayBuffer();
  const speaker = new Speaker();
  speaker.wake(48000);
  globalThis.large = new MediaPlayback("audio/mpeg", speaker);
  large.push(new Uint8Array(part));
  while (!large.receivedSeconds) await new Promise((resolve) => setTimeout(resolve, 10));
  large.push(new Uint8Array(await new Blob(Array(times).fill(part)).arrayBuffer()));
  return times * part.byteLength;
}"""
"""Plays an MP3 once and then, as one piece, repeated so many times; returns the size of that piece."""

SEEKS_IN_BETWEEN = """{
  const remove = SourceBuffer.prototype.remove;
  globalThis.between = [
    (buffer) => large.seek(0.2),
    (buffer) => buffer.addEventListener("updateend", () => large.seek(0.2), { once: true }),
  ];
  SourceBuffer.prototype.remove = function (start, end) {
    remove.call(this, start, end);
    if (end < Infinity) between.pop()(this);
  };
  undefined;
}"""
"""Seeks back to the start right after the browser has removed audio for a later place, then while it removes it."""


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as launched:
        yield launched


@pytest.fixture(scope="module")
def fake() -> Iterator[LiveServer]:
    scripts: dict[str, list[Step]] = {
        "short": [tone(0.5)],
        "second": [tone(1.0)],
        "sweep": [tone(0.15, frequency) for frequency in range(200, 800, 50)],
        "long": [tone(30.0)],
        "endless": [tone(2.0), FOREVER],
    }
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
        held = opened.held_samples()
        opened.page.wait_for_timeout(300)
        assert opened.state("playedSamples") == held
        button.click()
        opened.wait(f"playerState.playedSamples > {held + 4800}")
        assert opened.state("phase") == "playing"


@pytest.mark.parametrize("format_name", [*METHODS])
def test_the_complete_speech_is_replayed_without_another_synthesis(
    browser: Browser, fake: LiveServer, format_name: str
) -> None:
    with player(browser, fake.port, without=METHODS[format_name]) as opened:
        button = opened.page.locator("#pause")
        opened.play_whole("short")
        synthesised = len(fake.engine.requests)
        expect(button).to_have_text("Replay")
        for _ in range(2):
            opened.forget_sound()
            opened.wait("ears.hears() && playerState.phase === 'done'")
            assert opened.state("playedSeconds") == pytest.approx(0.5, abs=0.05)
        assert len(fake.engine.requests) == synthesised


@pytest.mark.parametrize("format_name", [*METHODS])
def test_what_was_received_is_sought_while_more_arrives(browser: Browser, fake: LiveServer, format_name: str) -> None:
    with player(browser, fake.port, without=METHODS[format_name]) as opened:
        position = opened.page.get_by_role("slider", name="Position in the speech")
        opened.play("endless")
        opened.wait("playerState.scheduledSamples > 1.95 * playerState.sampleRate")
        opened.page.click("#pause")
        for key, second in {"End": 2, "ArrowLeft": 0, "Home": 0}.items():
            position.press(key)
            opened.wait(f"Math.abs(playerState.playedSeconds - {second}) < 0.1")
        assert opened.held_samples() < 0.1 * opened.state("sampleRate")  # it is paused all the while
        # The width shows six seconds.
        box = position.bounding_box()
        assert box is not None
        position.click(position={"x": box["width"] / 6, "y": 10})
        opened.wait("Math.abs(playerState.playedSeconds - 1) < 0.1")
        expect(position).to_have_attribute("aria-valuenow", "1")
        opened.page.click("#pause")
        opened.wait("playerState.playedSeconds > 1.3")
        assert opened.state("phase") == "playing"


def test_a_place_that_is_sought_sounds_as_it_did(browser: Browser, fake: LiveServer) -> None:
    with player(browser, fake.port) as opened:
        opened.play_whole("sweep")
        whole = opened.laid()
        opened.page.evaluate("ears.laid = []")
        box = opened.page.locator("#wave").bounding_box()
        assert box is not None
        # The width shows six seconds, of which 1.8 were said.
        opened.page.locator("#wave").click(position={"x": box["width"] * 0.6 / 6, "y": 10})
        opened.wait("ears.laid.length > 0 && playerState.phase === 'done'")
        again = opened.laid()
        assert again.size == pytest.approx(1.2 * 48000, abs=4800)
        before = whole[-again.size :]
        assert np.corrcoef(again[:4800], before[:4800])[0, 1] > 0.99
        # The decoder takes a moment until it has forgotten that it began in between.
        assert np.abs(again[9600:] - before[9600:]).max() < 0.01


def test_the_tempo_keeps_the_pitch(browser: Browser, fake: LiveServer) -> None:
    with player(browser, fake.port) as opened:
        opened.page.select_option("#tempo", "2")
        opened.play_whole("second")
        faster = opened.laid()
        assert faster.size / 48000 == pytest.approx(0.5, abs=0.1)
        middle = faster[4800:19200]
        spectrum = np.abs(np.fft.rfft(middle * np.hanning(middle.size)))
        assert np.argmax(spectrum) * 48000 / middle.size == pytest.approx(220, abs=5)
        assert opened.state("playedSeconds") == pytest.approx(1, abs=0.001)


def test_the_volume_is_heard_and_kept(browser: Browser, fake: LiveServer) -> None:
    with player(browser, fake.port) as opened:
        opened.page.locator("#volume").fill("0.2")
        opened.play("long")
        opened.heard_ms()
        opened.wait("playerState.level > 0.08")
        assert opened.state("level") < 0.12  # a fifth of the half of full scale
        opened.page.locator("#volume").fill("0")
        opened.wait("playerState.level < 0.001")
        opened.page.reload()
        expect(opened.page.locator("#volume")).to_have_value("0")


@pytest.mark.parametrize("save_as", ["ogg", "wav"])
def test_it_is_saved_in_a_chosen_format_as_soon_as_it_is_complete(
    browser: Browser, fake: LiveServer, tmp_path: Path, save_as: str
) -> None:
    with player(browser, fake.port) as opened:
        opened.play("long")
        opened.heard_ms()
        opened.page.click("#pause")
        expect(opened.page.locator("#download")).to_be_enabled()
        opened.page.select_option("#save-as", save_as)
        path = opened.download(tmp_path)
        assert path.suffix == f".{save_as}"
        samples, rate_hz = decode_native(path)
        assert samples.size / rate_hz == pytest.approx(30, abs=0.001)
        assert opened.state("phase") == "playing"


def test_a_recording_stops_the_speech(browser: Browser, fake: LiveServer) -> None:
    with player(browser, fake.port) as opened:
        opened.play("endless")
        opened.heard_ms()
        opened.page.click("#voices li:nth-child(2) .listen")
        opened.wait("playerState.phase === 'stopped'")
        expect(opened.page.locator("#download")).to_be_enabled()


def test_a_speech_that_was_stopped_while_it_arrived_is_replayed(browser: Browser, fake: LiveServer) -> None:
    with player(browser, fake.port) as opened:
        opened.play("endless")
        opened.wait("playerState.scheduledSamples > 1.95 * playerState.sampleRate")
        assert opened.page.evaluate(STOP_AND_COUNT) == 0
        opened.page.click("#pause")
        opened.wait("['playing', 'done'].includes(playerState.phase) && playerState.playedSamples > 4800")
        expect(opened.page.locator("#problem")).to_be_hidden()


def test_the_keys_of_a_headset_pause_and_resume(browser: Browser, fake: LiveServer) -> None:
    with player(browser, fake.port, script=MEDIA_KEYS) as opened:
        opened.play("long")
        opened.heard_ms()
        assert opened.page.evaluate("navigator.mediaSession.metadata.title") == "long"
        opened.page.evaluate("keys.pause() && undefined")
        expect(opened.page.locator("#status")).to_have_text("Paused")
        opened.page.evaluate("keys.play() && undefined")
        expect(opened.page.locator("#status")).to_have_text("Playing")
        opened.page.evaluate("keys.stop()")
        expect(opened.page.locator("#status")).to_have_text("Stopped")


def test_a_managed_media_source_plays_as_in_safari(browser: Browser, fake: LiveServer) -> None:
    with player(browser, fake.port, without=("AudioDecoder",), script=SAFARI) as opened:
        opened.page.locator("#volume").fill("0.5")
        opened.play_whole("second")
        assert opened.state("method") == "mediasource"
        assert opened.page.evaluate("managed.readyState") == "ended"
        assert opened.state("playedSeconds") == pytest.approx(1, abs=0.05)
        assert opened.state("firstAudioMs") > 0
        # WebKit plays such a source only in an element that is not cast, and never through an AudioContext.
        assert opened.page.evaluate("[elements[0].disableRemotePlayback, elements[0].volume]") == [True, 0.5]
        assert opened.state("level") == 0
        opened.play("endless")
        opened.page.locator("#volume").fill("0.25")
        assert opened.page.evaluate("elements.at(-1).volume") == 0.25
        assert not opened.page.evaluate("elements[0].hasAttribute('src')"), "the buffered audio is kept"


def test_what_is_saved_is_what_was_stopped(browser: Browser, fake: LiveServer) -> None:
    with player(browser, fake.port) as opened:
        opened.play_whole("short")
        opened.page.select_option("#format", "mp3")
        opened.play("endless")
        opened.wait("playerState.phase === 'playing'")
        offered = opened.page.locator("#save-as option").all()
        assert [option.get_attribute("value") for option in offered] == ["mp3", "wav"]
        opened.page.fill("#voice-search", "a")
        opened.page.press("#voice-search", "Escape")  # which clears it
        assert opened.state("phase") == "playing"
        opened.page.press("#play", "Escape")
        assert opened.state("phase") == "stopped"
        opened.page.evaluate("OfflineAudioContext.prototype.decodeAudioData = () => Promise.reject(), 0")
        opened.page.select_option("#save-as", "wav")
        opened.page.click("#download")
        expect(opened.page.locator("#error")).to_contain_text("The browser cannot convert this speech to WAV.")


def test_a_stream_that_cannot_be_resumed_is_waited_for(browser: Browser) -> None:
    gate = Gate()
    with (
        running(by_text({"a": [tone(0.3), gate, tone(0.3)]}), resume_keep_s=0) as live,
        player(browser, live.port, script=IMPATIENT) as opened,
    ):
        opened.play("a")
        opened.wait("playerState.playedSeconds > 0.2")
        opened.page.wait_for_timeout(200)
        gate.open()
        opened.wait("playerState.phase === 'done'")
        assert opened.state("playedSamples") == 0.6 * 48000
        assert not [url for url in opened.requested if "from=" in url]


def test_a_clip_that_is_larger_than_the_browsers_buffer_plays(browser: Browser, fake: LiveServer) -> None:
    with player(browser, fake.port) as opened:
        assert opened.page.evaluate(LARGE_CLIP, 4000) > 14e6
        opened.wait("large.playedSeconds > 0.7")
        opened.page.evaluate("large.setTotal(2000)")
        for second in (1500, 0.2):
            opened.page.evaluate("second => large.seek(second)", second)
            opened.wait(f"large.playedSeconds > {second + 0.2} && large.playedSeconds < {second + 100}")
        opened.page.evaluate(SEEKS_IN_BETWEEN)
        for left in (1, 0):
            opened.page.evaluate("large.seek(1900)")
            opened.wait(f"between.length === {left} && large.playedSeconds > 0.4 && large.playedSeconds < 100")
