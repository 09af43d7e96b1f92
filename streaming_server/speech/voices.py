"""The voices that can be asked for: reference recordings, the engine's presets, and uploads by their id or name."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from pathlib import Path

from streaming_server.domain import Voice, parse_blend
from streaming_server.errors import VoiceFileMissing, VoiceIndexOutOfRange
from streaming_server.speech.voice_details import VoiceDetails

SUFFIXES = frozenset({".wav", ".mp3", ".flac", ".m4a", ".ogg", ".opus"})


class VoiceLibrary:
    """The reference folder as it was last listed, and the presets of the engine.

    An index keeps its meaning between two listings, so that a client which has seen a list and asks for one of it
    gets that file or hears that it is gone, and never another.
    """

    def __init__(
        self,
        folder: Path,
        find_upload: Callable[[str], Voice | None] = lambda _: None,
        list_uploads: Callable[[], Sequence[Voice]] = tuple,
        presets: Sequence[Voice] = (),
        *,
        blends: bool = False,
    ) -> None:
        """
        Args:
            folder: of the recordings.
            find_upload: returns an uploaded recording as a voice, by its id or name; it may block its thread.
            list_uploads: returns the uploads that have a name, under that name; it may block its thread.
            presets: voices of the engine.
            blends: a blend of presets is a voice too.
        """
        self._folder = folder
        self._details = VoiceDetails(folder)
        self._presets = presets
        self._blendable = {preset.name for preset in presets} if blends else set[str]()
        self._find_upload = find_upload
        self._list_uploads = list_uploads
        self._voices: list[Voice] = []
        self.list()

    def list(self) -> list[Voice]:
        """The recordings, sorted by file name, as the folder is now; empty where there is no folder."""
        try:
            names = sorted(path.name for path in self._folder.iterdir() if _is_recording(path))
        except (FileNotFoundError, NotADirectoryError):
            names = []
        self._details.refresh()
        self._voices = [self._recording(name, index) for index, name in enumerate(names)]
        return self._voices

    def all(self) -> Sequence[Voice]:
        """The recordings, and behind them the presets; of one name the first."""
        found: dict[str, Voice] = {}
        for voice in (*self.list(), *self._presets):
            found.setdefault(voice.name, voice)
        return [*found.values()]

    async def uploaded(self) -> Sequence[Voice]:
        """The named uploads, the oldest first."""
        return await asyncio.to_thread(self._list_uploads)

    @property
    def default(self) -> Voice:
        """The first recording, or the first preset where there is none.

        Raises:
            VoiceIndexOutOfRange: there is no voice at all.
        """
        return next(iter(self.all()), None) or self.get(0)

    def get(self, index: int) -> Voice:
        """The voice at an index.

        Raises:
            VoiceIndexOutOfRange: there is none, not even since the last listing.
            VoiceFileMissing: its file is gone.
        """
        if not 0 <= index < len(self._voices) and not 0 <= index < len(self.list()):
            raise VoiceIndexOutOfRange(index, len(self._voices))
        voice = self._voices[index]
        if not voice.path.is_file():
            raise VoiceFileMissing(voice.path.name)
        return voice

    async def find(self, name: str) -> Voice | None:
        """The voice of a name: a file's stem, its name, or its path as listed; a preset or a blend; an upload's id or
        name.

        No path is built from it.
        """
        listed = next((voice for voice in self.all() if name in _names(voice)), None)
        return listed or self._blend(name) or await asyncio.to_thread(self._find_upload, name)

    def _recording(self, name: str, index: int) -> Voice:
        stem = Path(name).stem
        details = self._details.of(stem)
        return Voice(
            stem,
            self._folder / name,
            index,
            title=details.title,
            languages=details.languages,
            gender=details.gender,
        )

    def _blend(self, name: str) -> Voice | None:
        known = all(voice in self._blendable for voice, _ in parse_blend(name))
        return Voice(name, is_preset=True) if known else None


def _names(voice: Voice) -> set[str]:
    return {voice.name} if voice.is_preset else {voice.name, voice.path.name, voice.path.as_posix()}


def _is_recording(path: Path) -> bool:
    # A name that no JSON can hold is left out. So is what is not a file: to open a FIFO or a device would block.
    return path.suffix.lower() in SUFFIXES and path.name.isprintable() and (path.is_file() or not path.exists())
