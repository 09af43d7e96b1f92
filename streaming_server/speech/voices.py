"""The available voices: reference recordings, the engine's presets, and uploads by id or name."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from pathlib import Path

from streaming_server.domain import Voice, parse_blend
from streaming_server.errors import VoiceFileMissing, VoiceIndexOutOfRange, VoiceUnknown
from streaming_server.speech.voice_details import VoiceDetails

SUFFIXES = frozenset({".wav", ".mp3", ".flac", ".m4a", ".ogg", ".opus"})


class VoiceLibrary:
    """The reference folder as last listed, the presets of the engine, and uploads.

    An index refers to the last listing, whoever asked for it: until then a deleted file is an error, not another file.
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
            folder: folder of the recordings.
            find_upload: returns an uploaded recording as a voice, by its id or name; may block.
            list_uploads: returns the uploads that have a name, under that name or their id; may block.
            presets: voices of the engine.
            blends: whether blends of presets are voices.
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
        """List the recordings of the folder by file name; empty if there is no folder."""
        try:
            names = sorted(path.name for path in self._folder.iterdir() if _is_recording(path))
        except (FileNotFoundError, NotADirectoryError):
            names = []
        self._details.refresh()
        self._voices = [self._recording(name, index) for index, name in enumerate(names)]
        return self._voices

    def all(self) -> Sequence[Voice]:
        """Return the recordings and the presets; of equal names only the first."""
        found: dict[str, Voice] = {}
        for voice in (*self.list(), *self._presets):
            found.setdefault(voice.name, voice)
        return [*found.values()]

    async def uploaded(self) -> Sequence[Voice]:
        """Return the named uploads, oldest first."""
        return await asyncio.to_thread(self._list_uploads)

    @property
    def default(self) -> Voice:
        """The first recording, or the first preset if there is none.

        Raises:
            VoiceIndexOutOfRange: there are no voices.
        """
        return next(iter(self.all()), None) or self.get(0)

    def get(self, index: int) -> Voice:
        """Return the voice at an index.

        Raises:
            VoiceIndexOutOfRange: the index does not exist.
            VoiceFileMissing: its file does not exist any more.
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
        return self.built_in(name) or await asyncio.to_thread(self._find_upload, name)

    def built_in(self, name: str) -> Voice | None:
        """As `find`, without uploads; it precedes an upload of the same name."""
        listed = next((voice for voice in (*self.list(), *self._presets) if name in names_of(voice)), None)
        return listed or self._blend(name)

    async def require(self, name: str, field: str = "voice") -> Voice:
        """As `find`.

        Raises:
            VoiceUnknown: the voice does not exist; the message lists those that do.
        """
        if found := await self.find(name):
            return found
        known = [*(voice.name for voice in self.all()), *(voice.title for voice in await self.uploaded())]
        raise VoiceUnknown(name, known, field)

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


def names_of(voice: Voice) -> set[str]:
    """The names by which a listed voice is found."""
    return {voice.name} if voice.is_preset else {voice.name, voice.path.name, voice.path.as_posix()}


def _is_recording(path: Path) -> bool:
    # A name that no JSON can hold is left out. So is what is not a file: to open a FIFO or a device would block.
    return path.suffix.lower() in SUFFIXES and path.name.isprintable() and (path.is_file() or not path.exists())
