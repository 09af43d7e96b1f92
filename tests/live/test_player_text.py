"""What the player page says, and in whose voice: texts, dialogues, emotions, voices, history and code."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Route, expect

from streaming_server.audio.decode import decode_native
from streaming_server.domain import Capability, SpeechRequest, Voice
from streaming_server.engines.base import EngineInfo
from tests.support.browser import LAN_HOST, PAUSE_AT_ONCE, Player, accessible, chromium, player
from tests.support.fakes import FOREVER, FakeEngine, Step, tone
from tests.support.server import RECORDINGS, LiveServer, RawClient, eventually, running

PRESETS = (
    *(Voice(f"af_{name}", is_preset=True, title=name.title(), languages=("en",), gender="female") for name in "abcdef"),
    Voice("zm_yun", is_preset=True, title="Yun", languages=("zh",), gender="male"),
    Voice("zf_mei", is_preset=True, title="Mei", languages=("zh",), gender="female"),
    Voice("jm_ken", is_preset=True, title="Ken", languages=("ja",), gender="male"),
)

RECORDED_PIECES = """
  globalThis.recorded = 0;
  const start = MediaRecorder.prototype.start;
  MediaRecorder.prototype.start = function () {
    this.addEventListener("dataavailable", ({ data }) => (recorded += data.size > 0 ? 1 : 0));
    start.call(this, 100);
  };
"""
"""Counts the pieces of 100 ms that a microphone has given."""
DROP_A_FOLDER = """{
  Blob.prototype.arrayBuffer = () => Promise.reject(new DOMException("not found", "NotFoundError"));
  const dataTransfer = new DataTransfer();
  dataTransfer.items.add(new File([], "folder"));
  document.getElementById("problem").hidden = true;
  document.getElementById("error").textContent = "";
  document.querySelector(".composer").dispatchEvent(new DragEvent("drop", { dataTransfer }));
}"""
"""Drops something that the browser cannot read."""
HUGE_FILES = "Object.defineProperty(File.prototype, 'size', { configurable: true, get: () => 101_000_000 })"
FULL_STORAGE = """{
  Object.defineProperty(File.prototype, 'size', { configurable: true, get: () => 40_000_000 });
  IDBObjectStore.prototype.add = function () { this.transaction.abort(); };
  undefined;
}"""
"""Three clips are above the limit, and a third one cannot be stored."""
DELETED_ELSEWHERE = """import("/static/clips.js").then(async (clips) => {
  for (const { id } of await clips.list()) await clips.remove(id);
})"""
"""Deletes the clips as another tab does."""
STORED_WORDS = """import("/static/read_along.js").then(({ subtitles }) =>
  [["«Да»", "–", "你", "好，", "世", "界。", "(ok)"], ["कैसे", "हो", "(ん", "ん)"]].map((texts) => {
    const words = texts.map((text, i) => ({ text, start: i / 10, end: (i + 1) / 10 }));
    return subtitles(words, "vtt").split("\\n").filter((line) => line && !/-->|WEBVTT/.test(line)).join(" ");
  }))"""
"""The words of clips that were stored without their spaces, as subtitles."""
PROMPT = """
  globalThis.prompts = [];
  globalThis.microphones = [];
  const ask = navigator.mediaDevices.getUserMedia.bind(navigator.mediaDevices);
  navigator.mediaDevices.getUserMedia = async (wanted) => {
    await new Promise((resolve) => prompts.push(resolve));
    microphones.push(await ask(wanted));
    return microphones.at(-1);
  };
"""
"""A prompt for the microphone, answered by calling what is in `prompts`."""


class EngineWithPresets(FakeEngine):
    @property
    def info(self) -> EngineInfo:
        return replace(super().info, presets=PRESETS)


def script(request: SpeechRequest) -> list[Step]:
    return [tone(0.2, 220 + 110 * len(request.voice.name)), *([FOREVER] if request.text == "endless" else [])]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as launched:
        yield launched


@pytest.fixture(scope="module")
def fake() -> Iterator[LiveServer]:
    engine = FakeEngine(script)
    engine.capabilities |= {Capability.SEED}
    with running(engine, max_text_characters=2000) as live:
        yield live


@pytest.fixture(scope="module")
def presets() -> Iterator[LiveServer]:
    with running(EngineWithPresets(script)) as live:
        yield live


@pytest.fixture
def page(browser: Browser, fake: LiveServer) -> Iterator[Player]:
    with player(browser, fake.port) as opened:
        yield opened


# ---- voices ----


def test_voices_have_names_languages_and_genders(browser: Browser, presets: LiveServer) -> None:
    with player(browser, presets.port) as opened:
        rows = opened.page.locator("#voices li").filter(visible=True)
        expect(rows).to_have_count(9)
        expect(rows.last).to_contain_text("Ken")
        expect(rows.last).to_contain_text("Japanese · male")
        opened.page.fill("#voice-search", "ken")
        opened.page.press("#voice-search", "ArrowDown")
        opened.page.keyboard.press("Space")
        expect(opened.page.locator("#voice-name")).to_have_text("jm_ken")
        opened.page.fill("#voice-search", "")
        opened.page.select_option("#voice-language", label="Chinese")
        expect(rows).to_have_count(2)
        opened.page.select_option("#voice-gender", label="female")
        expect(rows).to_have_count(1)
        rows.first.locator("label").click()
        expect(opened.page.locator("#voice-name")).to_have_text("zf_mei")
        opened.page.fill("#voice-search", "nobody")
        expect(rows).to_have_count(0)
        expect(opened.page.locator("#no-voices")).to_be_visible()
        opened.play_whole("Hello.")
    assert presets.engine.requests[-1].voice.name == "zf_mei"


def test_the_name_of_a_voice_is_copied(browser: Browser, fake: LiveServer) -> None:
    with player(browser, fake.port, host=LAN_HOST) as opened:
        opened.page.click("#voices li:nth-child(4) label")
        opened.page.evaluate("document.execCommand = () => false")
        opened.page.click("#copy-voice")
        expect(opened.page.locator("#error")).to_have_text("The browser does not allow the page to copy.")
        opened.page.evaluate("delete document.execCommand")
        opened.page.click("#copy-voice")
        opened.page.fill("#text", "")
        opened.page.focus("#text")
        opened.page.keyboard.press("Control+V")
        assert opened.page.input_value("#text") == "voice_04"


def test_a_voice_without_a_recording_is_heard_by_a_sentence(browser: Browser, presets: LiveServer) -> None:
    with player(browser, presets.port) as opened:
        opened.page.click("#voices li:nth-child(7) .listen")
        button = opened.page.locator("#voices li:nth-child(7) .listen")
        eventually(lambda: [request for request in presets.engine.requests if request.voice.name == "zm_yun"])
        expect(button).to_have_attribute("aria-label", "Listen to Yun")  # once it has ended
        opened.page.route("**/player/speech", lambda route: route.fulfill(status=503, json={"detail": "full"}))
        button.click()
        expect(opened.page.locator(".voices #error")).to_contain_text("The server cannot take another request now.")
        opened.page.unroute("**/player/speech")
        holder = RawClient(presets.port, "/synthesize_stream", {"text": "endless"})
        holder.read()
        synthesised = len(presets.engine.requests)
        for row in (7, 8):
            opened.page.click(f"#voices li:nth-child({row}) .listen")
            eventually(lambda: len(presets.service.slot.status().waiting) == 1)
        opened.page.click("#voices li:nth-child(8) .listen")
        eventually(lambda: not presets.service.slot.status().waiting)
        assert len(presets.engine.requests) == synthesised
        holder.close()


# ---- a voice of one's own ----


@pytest.fixture(scope="module")
def cloning() -> Iterator[LiveServer]:
    engine = FakeEngine(script)
    engine.capabilities = frozenset({Capability.VOICE_CLONING})
    with running(engine) as live:
        yield live


def test_an_uploaded_voice_is_trimmed_named_used_and_deleted(browser: Browser, cloning: LiveServer) -> None:
    with player(browser, cloning.port) as opened:
        page = opened.page
        page.click("#own-voice")
        dialog = page.get_by_role("dialog", name="Add your own voice")
        use = dialog.get_by_role("button", name="Use this voice")
        use.click()
        expect(page.locator("#own-error")).to_have_text("Choose a recording or record one.")
        page.set_input_files("#own-file", RECORDINGS / "voice_05.wav")
        expect(page.get_by_label("Name", exact=True)).to_have_value("voice_05")
        page.set_input_files("#own-file", [])
        page.get_by_label("Name", exact=True).fill("")
        recording = (RECORDINGS / "voice_05.wav").read_bytes()
        page.set_input_files("#own-file", {"name": "Smith, John.wav", "mimeType": "audio/wav", "buffer": recording})
        expect(page.get_by_label("Name", exact=True)).to_have_value("Smith John")
        page.get_by_label("Name", exact=True).fill("Mine, yours")
        use.click()
        expect(page.locator("#own-error")).to_have_text("The name must not contain a comma.")
        page.get_by_label("Name", exact=True).fill("Mine & yours")
        page.get_by_role("slider", name="Start").fill("1")
        page.get_by_role("slider", name="End").fill("3.5")
        use.click()
        expect(page.locator("#own-error")).to_have_text("Confirm the consent of the person who speaks.")
        expect(page.locator("#own-consent")).to_be_focused()
        accessible(page)
        page.check("#own-consent")
        use.click()
        expect(dialog).to_be_hidden()
        # A name that the path of a URL cannot have is listed by the id of the voice.
        expect(page.get_by_role("radio", name="Mine & yours")).to_be_checked()
        expect(page.locator("#voice-name")).to_have_text(re.compile("voice_[0-9a-f]{24}"))
        opened.play_whole("Hello.")
        asked = cloning.engine.requests[-1].voice
        samples, rate_hz = decode_native(asked.path)
        assert samples.size / rate_hz == pytest.approx(2.5, abs=0.01)
        page.route("**/v1/audio/voices/*", lambda route: route.fulfill(status=500))
        page.get_by_role("button", name="Delete Mine & yours").click()
        expect(page.locator(".voices #error")).to_contain_text("failed on the server")
        page.unroute("**/v1/audio/voices/*")
        page.get_by_role("button", name="Delete Mine & yours").click()
        expect(page.locator("#voice-name")).to_have_text("voice_01")
    assert "Mine & yours" not in cloning.get("/v1/audio/voices").text


def test_a_voice_is_recorded_in_the_page(browser: Browser, cloning: LiveServer) -> None:
    with player(browser, cloning.port, script=RECORDED_PIECES) as opened:
        page = opened.page
        page.click("#own-voice")
        page.click("#own-record")
        expect(page.locator("#own-record")).to_have_text("Stop recording")
        # A voice has a second at least.
        opened.wait("recorded >= 20")
        page.click("#own-record")
        page.get_by_label("Name", exact=True).fill("Beep")
        page.check("#own-consent")
        expect(page.locator("#own-trim")).to_be_visible()
        page.get_by_role("button", name="Use this voice").click()
        expect(page.locator("#voice-name")).to_have_text("Beep")


def test_a_dialog_that_was_closed_does_not_record(browser: Browser, cloning: LiveServer) -> None:
    with player(browser, cloning.port, script=PROMPT) as opened:
        opened.page.click("#own-voice")
        for _ in range(2):
            opened.page.click("#own-record")
        opened.page.keyboard.press("Escape")
        opened.page.evaluate("prompts.forEach((allow) => allow())")
        opened.wait("microphones.length > 0")
        opened.wait("microphones.every((microphone) => !microphone.active)")
        assert opened.page.evaluate("prompts.length") == 1
        assert opened.page.text_content("#own-record") == "Record"


@pytest.mark.parametrize("content", [b"no sound", b""])
def test_a_file_without_sound_is_refused(browser: Browser, cloning: LiveServer, content: bytes) -> None:
    with player(browser, cloning.port) as opened:
        opened.page.click("#own-voice")
        opened.page.set_input_files("#own-file", {"name": "a.wav", "mimeType": "audio/wav", "buffer": content})
        expect(opened.page.locator("#own-error")).to_have_text("This file holds no sound that the browser can read.")


def test_without_cloning_no_voice_can_be_added(browser: Browser, fake: LiveServer) -> None:
    with player(browser, fake.port) as opened:
        expect(opened.page.locator("#own-voice")).to_be_hidden()


# ---- texts ----


@pytest.mark.parametrize(
    ("name", "content", "text"),
    [
        ("a.txt", "One.\r\nTwo.\r\n", "One.\nTwo."),
        (
            "a.md",
            "---\ntitle: x\n---\n# Head\n\n- *one* and **two** [link](http://x/)\n\n```sh\nrm\n```\n> `code`",
            "Head\n\none and two link\n\ncode",
        ),
        (
            "a.srt",
            "1\n00:00:01,000 --> 00:00:02,000\n<i>Good</i>\nmorning.\n\n2\n00:00:03,000 --> 00:00:04,000\nYou too.\n",
            "Good morning.\nYou too.",
        ),
    ],
)
def test_files_are_opened_as_text(page: Player, name: str, content: str, text: str) -> None:
    page.page.set_input_files("#file", {"name": name, "mimeType": "text/plain", "buffer": content.encode()})
    expect(page.page.locator("#text")).to_have_value(text)


def test_a_file_that_is_no_text_is_refused(page: Player) -> None:
    def opened(content: bytes) -> None:
        page.page.set_input_files("#file", {"name": "a.txt", "mimeType": "text/plain", "buffer": content})

    asked: list[Route] = []
    error = page.page.locator("#error")
    page.page.route("**/player/speech", lambda route, _: asked.append(route))
    page.play("lost")
    opened(b"\xff\xfe\x00")
    expect(error).to_have_text("This file is not text in UTF-8.")
    eventually(lambda: page.state("phase") == "asking" and asked)
    asked[0].abort()
    expect(error).to_have_text("The server cannot be reached.")
    opened(b"\xff\xfe\x00")
    expect(error).to_have_text("This file is not text in UTF-8.")
    opened(b"kept")
    expect(page.page.locator("#problem")).to_be_hidden()
    expect(page.page.locator("#text")).to_have_attribute("aria-invalid", "false")
    page.page.evaluate(DROP_A_FOLDER)
    expect(error).to_have_text("This file is not text in UTF-8.")
    assert page.page.input_value("#text") == "kept"


def test_a_draft_survives_a_reload(page: Player) -> None:
    page.page.fill("#text", "Not yet spoken.")
    page.page.click("#voices li:nth-child(3) label")
    page.page.click("#settings summary")
    page.page.fill("#seed", "7")
    page.page.reload()
    page.page.wait_for_selector("#voices input")
    assert page.page.input_value("#text") == "Not yet spoken."
    expect(page.page.locator("#voice-name")).to_have_text("voice_03")
    expect(page.page.locator("#seed")).to_have_value("7")


def test_a_link_carries_text_voice_and_settings(browser: Browser, fake: LiveServer) -> None:
    with player(browser, fake.port, host=LAN_HOST) as opened:
        opened.page.fill("#text", "Shared & “quoted” 你好")
        opened.page.click("#voices li:nth-child(5) label")
        opened.page.click("#settings summary")
        opened.page.fill("#speed", "1.5")
        opened.page.click("#emotion summary")
        opened.page.get_by_role("button", name="Sad").click()
        opened.page.evaluate("globalThis.setTimeout = () => 0")  # "Copied" stays
        opened.page.click("#share")
        expect(opened.page.locator("#share")).to_have_text("Copied")
        opened.page.fill("#text", "")
        opened.page.focus("#text")
        opened.page.keyboard.press("Control+V")
        link = opened.page.input_value("#text")
    assert link.startswith(f"http://{LAN_HOST}:{fake.port}/player#")
    with player(browser, fake.port) as opened:
        opened.page.goto(link.replace(LAN_HOST, "127.0.0.1"))
        expect(opened.page.locator("#voice-name")).to_have_text("voice_05")
        assert opened.page.input_value("#text") == "Shared & “quoted” 你好"
        expect(opened.page.locator("#emotion-now")).to_have_text("Sad")
        assert opened.state("phase") == "idle"
        opened.page.click("#play")
        opened.wait("playerState.phase === 'done'")
        opened.page.fill("#text", "My own.")
        opened.page.reload()
        opened.page.wait_for_selector("#voices input")
        assert opened.page.input_value("#text") == "My own."
        # The fragment stays in the browser.
        assert not [url for url in opened.requested if "Shared" in url.partition("#")[0]]
    asked = fake.engine.requests[-1]
    assert (asked.text, asked.voice.name, asked.speed) == ("Shared & “quoted” 你好", "voice_05", 1.5)
    assert asked.emotion is not None
    assert asked.emotion.vector == (0, 0, 1, 0, 0, 0, 0, 0)


@pytest.mark.parametrize(
    "fragment",
    ["text=a&settings=7", "turns=[1,null]", "turns=x&settings={", 'text=a&voice=gone&settings={"emo_vector":null}'],
)
def test_a_broken_link_leaves_a_page_that_works(browser: Browser, fake: LiveServer, fragment: str) -> None:
    with player(browser, fake.port) as opened:
        opened.page.goto(f"http://127.0.0.1:{fake.port}/player#{fragment}")
        opened.page.reload()
        opened.page.wait_for_selector("#voices input")
        opened.page.check("[name=mode][value=text]", force=True)
        opened.play_whole("a")


def test_the_page_never_grows_with_the_text(page: Player) -> None:
    height = "document.documentElement.scrollHeight"
    page.page.fill("#text", "a")
    before = page.page.evaluate(height)
    page.page.fill("#text", "many words\n" * 150)
    expect(page.page.locator("#count")).to_contain_text("1,650 / 2,000 characters, about 2 min")
    assert page.page.evaluate(height) == before
    page.page.get_by_role("radio", name="Dialogue").check(force=True)
    before = page.page.evaluate(height)
    for _ in range(9):
        page.page.click("#add-turn")
    assert page.page.evaluate(height) == before


# ---- dialogues ----


def test_a_dialogue_is_written_reordered_and_played_as_one(page: Player, fake: LiveServer) -> None:
    page.page.fill("#text", "First.")
    page.page.get_by_role("radio", name="Dialogue").check(force=True)
    page.page.click("#add-turn")
    page.page.get_by_label("Text of turn 2").fill("Second.")
    page.page.get_by_label("Voice of turn 2").select_option("voice_05")
    page.page.click("#add-turn")
    page.page.click("#play")
    expect(page.page.locator("#error")).to_have_text("Enter the text of this turn, or remove the turn.")
    expect(page.page.get_by_label("Text of turn 3")).to_be_focused()
    page.page.get_by_label("Remove turn 3").click()
    page.page.get_by_label("Move turn 2 up").click()
    page.page.click("#play")
    page.wait("playerState.phase === 'done'")
    asked = fake.engine.requests[-2:]
    assert [(turn.text, turn.voice.name) for turn in asked] == [("Second.", "voice_05"), ("First.", "voice_01")]
    assert len(page.stream_ids) == 1
    page.page.reload()
    expect(page.page.get_by_label("Text of turn 1")).to_have_value("Second.")
    page.page.check("[name=mode][value=text]", force=True)
    assert page.page.input_value("#text") == "[SPEAKER0] Second.\n[SPEAKER1] First."


def test_a_text_with_tags_becomes_a_dialogue_and_keeps_its_voices(page: Player, fake: LiveServer) -> None:
    tagged = b"[SPEAKER0] Hello.\n[SPEAKER1] Hi.\n[SPEAKER0] Bye."
    page.page.click("#voices li:nth-child(2) label")
    page.page.set_input_files("#file", {"name": "a.txt", "mimeType": "text/plain", "buffer": tagged})
    turns = page.page.locator(".turn")
    expect(turns).to_have_count(3)
    chosen = [select.input_value() for select in turns.locator("select").all()]
    assert chosen == ["voice_02", "voice_03", "voice_02"]
    page.page.get_by_label("Voice of turn 2").select_option("voice_06")
    for mode in ("text", "dialogue", "text"):
        page.page.check(f"[name=mode][value={mode}]", force=True)
    page.page.click("#play")
    page.wait("playerState.phase === 'done'")
    assert [turn.voice.name for turn in fake.engine.requests[-3:]] == ["voice_02", "voice_06", "voice_02"]
    page.page.reload()
    page.page.wait_for_selector("#voices input")

    def voices() -> list[str]:
        page.page.check("[name=mode][value=dialogue]", force=True)
        return [select.input_value() for select in turns.locator("select").all()]

    assert voices() == ["voice_02", "voice_06", "voice_02"]
    for turn in (1, 3):
        page.page.get_by_label(f"Voice of turn {turn}").select_option("voice_06")
    page.page.check("[name=mode][value=text]", force=True)
    assert voices() == ["voice_06"] * 3
    page.page.check("[name=mode][value=text]", force=True)
    page.page.fill("#text", "")
    page.page.fill("#text", "[SPEAKER0] Another.")
    assert voices() == ["voice_02"]


# ---- emotions ----


def test_an_emotion_is_chosen_described_or_mixed(page: Player, fake: LiveServer) -> None:
    def spoken() -> tuple[object, ...]:
        page.play_whole("a")
        emotion = fake.engine.requests[-1].emotion
        assert emotion is not None
        name = emotion.reference.name if emotion.reference else None
        return emotion.text, emotion.vector, name, emotion.weight

    page.page.click("#emotion > summary")
    chip = page.page.get_by_role("button", name="Happy")
    chip.click()
    expect(chip).to_have_attribute("aria-pressed", "true")
    assert spoken() == (None, (1, 0, 0, 0, 0, 0, 0, 0), None, 1)
    page.page.fill("#emotion-text", "out of breath")
    page.page.fill("#strength", "0.5")
    expect(chip).to_have_attribute("aria-pressed", "false")
    assert spoken() == ("out of breath", None, None, 0.5)
    page.page.click("#emotion-more summary")
    page.page.get_by_role("slider", name="Calm").fill("0.3")
    page.page.get_by_role("slider", name="Sad").fill("0.2")
    expect(page.page.locator("#emotion-now")).to_have_text("Mixed")
    assert spoken() == (None, (0, 0, 0.2, 0, 0, 0, 0, 0.3), None, 0.5)
    page.page.select_option("#emotion-audio", label="Nova")
    assert spoken() == (None, None, "voice_05", 0.5)


def test_without_emotions_none_are_offered(browser: Browser) -> None:
    engine = FakeEngine(script)
    engine.capabilities = frozenset()
    with running(engine) as live, player(browser, live.port) as opened:
        expect(opened.page.locator("#emotion")).to_be_hidden()


# ---- history and code ----


def test_clips_are_replayed_downloaded_and_deleted(page: Player, fake: LiveServer, tmp_path: Path) -> None:
    for text, count in {"first": "1 clip", "second": "2 clips"}.items():
        page.play_whole(text)
        expect(page.page.locator("#history-count")).to_have_text(count)
    for state in (HUGE_FILES, FULL_STORAGE):
        page.page.evaluate(state)
        page.play_whole("third")
        expect(page.page.locator("#error")).to_contain_text("There is no room for this speech in the history.")
        expect(page.page.locator("#history-count")).to_have_text("2 clips")
    synthesised = len(fake.engine.requests)
    page.page.reload()
    page.page.wait_for_selector("#voices input")
    expect(page.page.locator("#history-count")).to_have_text("2 clips")
    page.page.click("#history summary")
    rows = page.page.locator("#clips li")
    expect(rows.first).to_contain_text("second")
    expect(rows.first).to_contain_text("Alloy")
    page.page.get_by_role("button", name="Play “first”").click()
    page.wait("playerState.phase === 'done'")
    assert page.state("playedSeconds") == pytest.approx(0.2, abs=0.001)
    with page.page.expect_download() as started:
        page.page.get_by_role("button", name="Download “first”").click()
    started.value.save_as(tmp_path / "a.ogg")
    samples, rate_hz = decode_native(tmp_path / "a.ogg")
    assert samples.size / rate_hz == pytest.approx(0.2, abs=0.001)
    page.page.get_by_role("button", name="Delete “second”").click()
    expect(rows).to_have_count(1)
    page.play_whole("fourth")
    expect(rows).to_have_count(2)
    page.page.evaluate(DELETED_ELSEWHERE)
    page.page.get_by_role("button", name="Play “first”").click()
    expect(page.page.locator("#error")).to_have_text("This clip is no longer there, or the browser cannot play it.")
    expect(page.page.locator("#history")).to_be_hidden()
    assert page.state("phase") == "done"
    page.play_whole("fifth")
    page.page.click("#clear-history")
    expect(page.page.locator("#history")).to_be_hidden()
    assert len(fake.engine.requests) == synthesised + 2


@pytest.mark.parametrize(
    ("language", "has_seed", "file"),
    [("python", False, "speech.opus"), ("python", True, "speech.ogg"), ("javascript", True, "speech.ogg")],
)
def test_the_code_works_as_it_is_shown(
    page: Player, fake: LiveServer, tmp_path: Path, language: str, file: str, *, has_seed: bool
) -> None:
    text = 'It\'s "quoted" \\ and\nhas two lines. 你好 😀'
    page.page.fill("#text", text)
    page.page.click("#voices li:nth-child(6) label")
    if has_seed:
        page.page.click("#settings summary")
        page.page.fill("#seed", "3")
        page.page.check("#verbose")
    page.page.click("#code summary")
    page.page.check(f"[name=code][value={language}]", force=True)
    program = tmp_path / ("program.mjs" if language == "javascript" else "program.py")
    program.write_text(page.page.text_content("#snippet") or "", encoding="utf-8")
    assert ("from openai import" in program.read_text()) == (language == "python" and not has_seed)
    runner = "node" if language == "javascript" else sys.executable
    subprocess.run([runner, program], cwd=tmp_path, check=True, timeout=120)
    samples, rate_hz = decode_native(tmp_path / file)
    assert samples.size / rate_hz == pytest.approx(0.2, abs=0.001)
    asked = fake.engine.requests[-1]
    assert (asked.text, asked.voice.name, asked.generation.seed) == (text, "voice_06", 3 if has_seed else None)


# ---- reading along ----


def test_the_words_are_marked_as_they_are_said_and_saved_as_subtitles(browser: Browser, tmp_path: Path) -> None:
    with running(FakeEngine(lambda _: [tone(4.0)])) as live, player(browser, live.port) as opened:
        page = opened.page
        page.evaluate(PAUSE_AT_ONCE)
        opened.play("One “two” (three) – four. Пять six seven eight.")
        expect(page.locator("#status")).to_have_text("Paused")
        toggle = page.get_by_role("button", name="Read along")
        toggle.click()
        marked = page.locator("#reading .now")
        for word in ("two", "six"):
            page.locator("#reading span", has_text=word).click()
            expect(marked).to_contain_text(word)
        page.click("#pause")
        page.locator("#wave").press("End")
        opened.wait("playerState.phase === 'done'")
        expect(marked).to_have_text("eight.")
        for name in ("srt", "vtt"):
            page.select_option("#save-as", name)
            lines = opened.download(tmp_path).read_text().splitlines()
            assert [line for line in lines if line.endswith(".")] == [
                "One “two” (three) – four.",
                "Пять six seven eight.",
            ]
            times = [line for line in lines if "-->" in line]
            assert times[0].startswith("00:00:00.000" if name == "vtt" else "00:00:00,000")
            assert times[1].endswith("00:00:04.000" if name == "vtt" else "00:00:04,000")
        expect(page.locator("#reading")).to_have_text("One “two” (three) – four. Пять six seven eight.")
        assert page.evaluate(STORED_WORDS) == ["«Да» –你好，世界。 (ok)", "कैसे हो (んん)"]
        page.get_by_role("button", name="Greeting").click()
        expect(page.locator("#text")).to_be_visible()
        expect(toggle).to_have_attribute("aria-pressed", "false")
        toggle.click()
        expect(page.locator("#reading")).to_be_visible()
        toggle.click()
        expect(page.locator("#text")).to_be_visible()
        page.reload()
        page.click("#history summary")
        page.click("#clips .listen")
        expect(toggle).to_be_enabled()
