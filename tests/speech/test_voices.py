from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from streaming_server.domain import Voice
from streaming_server.errors import VoiceFileMissing, VoiceIndexOutOfRange
from streaming_server.speech.voices import VoiceLibrary


def folder_of(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).write_bytes(b"")
    return folder


def test_recordings_are_listed_by_name_and_other_files_are_not(tmp_path: Path) -> None:
    folder_of(tmp_path, "b.wav", "a.MP3", "c.flac", "notes.txt", "d.m4a", "f.opus", "e.ogg", "noend")
    voices = VoiceLibrary(tmp_path).list()
    assert [(voice.index, voice.path.name, voice.name) for voice in voices] == [
        *((0, "a.MP3", "a"), (1, "b.wav", "b"), (2, "c.flac", "c"), (3, "d.m4a", "d"), (4, "e.ogg", "e")),
        (5, "f.opus", "f"),
    ]


def test_what_is_no_file_is_left_out_and_not_opened(tmp_path: Path) -> None:
    folder_of(tmp_path, "a.wav")
    os.mkfifo(tmp_path / "b.wav")  # to open it would wait for a writer
    (tmp_path / "c.wav").symlink_to(tmp_path / "b.wav")
    (tmp_path / "d.wav").symlink_to("/dev/zero")
    (tmp_path / "e.wav").mkdir()
    (tmp_path / "f.wav").symlink_to(tmp_path / "nowhere")
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind(str(tmp_path / "g.wav"))
        assert [voice.name for voice in VoiceLibrary(tmp_path).list()] == ["a", "f"]


def test_no_folder_is_an_empty_one(tmp_path: Path) -> None:
    library = VoiceLibrary(tmp_path / "none")
    assert library.list() == []
    with pytest.raises(VoiceIndexOutOfRange, match="reference_audio_index 0 is out of range"):
        library.get(0)


def test_an_index_means_the_same_file_until_the_next_listing(tmp_path: Path) -> None:
    library = VoiceLibrary(folder_of(tmp_path, "a.wav", "b.wav", "c.wav"))
    (tmp_path / "b.wav").unlink()
    assert library.get(2).name == "c"
    with pytest.raises(VoiceFileMissing, match=r"b\.wav does not exist"):
        library.get(1)
    assert [voice.name for voice in library.list()] == ["a", "c"]
    assert library.get(1).name == "c"


def test_a_file_that_came_since_the_listing_is_found(tmp_path: Path) -> None:
    library = VoiceLibrary(folder_of(tmp_path, "a.wav"))
    folder_of(tmp_path, "b.wav")
    assert library.get(1).name == "b"


@pytest.mark.parametrize("index", [-1, 3, 10**30])
def test_an_index_out_of_range_names_the_range(index: int, tmp_path: Path) -> None:
    library = VoiceLibrary(folder_of(tmp_path, "a.wav", "b.wav", "c.wav"))
    with pytest.raises(VoiceIndexOutOfRange, match=rf"^reference_audio_index {index} is out of range; valid: 0-2$"):
        library.get(index)


@pytest.mark.anyio
async def test_presets_are_voices_behind_the_recordings(tmp_path: Path) -> None:
    presets = [Voice("nova", is_preset=True), Voice("a", is_preset=True)]
    library = VoiceLibrary(folder_of(tmp_path, "a.wav", "b.wav"), presets=presets)
    assert [(voice.name, voice.index, voice.is_preset) for voice in library.all()] == [
        *(("a", 0, False), ("b", 1, False)),
        ("nova", None, True),
    ]
    assert [voice.name for voice in library.list()] == ["a", "b"]
    assert await library.find("nova") is presets[0]
    assert library.default.name == "a"
    with pytest.raises(VoiceIndexOutOfRange):
        library.get(2)


@pytest.mark.anyio
async def test_of_two_recordings_with_one_stem_each_has_its_file_name(tmp_path: Path) -> None:
    library = VoiceLibrary(folder_of(tmp_path, "b.flac", "b.wav"))
    for name, index in (("b", 0), ("b.flac", 0), ("b.wav", 1), (f"{tmp_path.as_posix()}/b.wav", 1)):
        found = await library.find(name)
        assert found is not None
        assert found.index == index
    assert [voice.path.name for voice in library.all()] == ["b.flac"]


@pytest.mark.anyio
async def test_without_recordings_a_preset_is_the_default(tmp_path: Path) -> None:
    library = VoiceLibrary(tmp_path, presets=[Voice("nova", is_preset=True)])
    assert library.default.name == "nova"
    assert await library.find(".") is None
    with pytest.raises(VoiceIndexOutOfRange, match="the reference folder has no recordings"):
        VoiceLibrary(tmp_path).default  # noqa: B018
