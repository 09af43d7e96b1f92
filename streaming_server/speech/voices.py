"""The voices: reference recordings, the engine's own voices, and uploads by their id. Opens no file."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from pathlib import Path

from streaming_server.domain import Voice, parse_blend
from streaming_server.errors import VoiceFileMissing, VoiceIndexOutOfRange

SUFFIXES = frozenset({".wav", ".mp3", ".flac", ".m4a", ".ogg", ".opus"})


class VoiceLibrary:
    """The reference folder as it was last listed.

    An index keeps its meaning between two listings, so that a client which has seen a list and asks for one of it
    gets that file or hears that it is gone, and never another.
    """

    def __init__(
        self,
        folder: Path,
        find_upload: Callable[[str], Voice | None] = lambda _: None,
        presets: Mapping[str, Path] | None = None,
    ) -> None:
        """
        Args:
            folder: of the recordings.
            find_upload: an upload as a voice, by its id; it may block its thread.
            presets: the engine's own voices, as `EngineInfo.voices`.
        """
        self.presets = presets or {}
        self._folder = folder
        self._find_upload = find_upload
        self._voices: list[Voice] = []
        self.list()

    def list(self) -> list[Voice]:
        """Read the folder anew, sorted by file name; empty where there is no folder."""
        try:
            names = sorted(path.name for path in self._folder.iterdir() if _is_recording(path))
        except (FileNotFoundError, NotADirectoryError):
            names = []
        self._voices = [Voice(Path(name).stem, self._folder / name, index) for index, name in enumerate(names)]
        return self._voices

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
        """The voice of a name: a file's stem, name or path as listed, a preset or a blend of presets, an upload's id.

        No path is built from it.
        """
        listed = next((v for v in self.list() if name in {v.name, v.path.name, v.path.as_posix()}), None)
        return listed or self._preset(name) or await asyncio.to_thread(self._find_upload, name)

    def _preset(self, name: str) -> Voice | None:
        names = [voice for voice, _ in parse_blend(name)]
        return Voice(name, self.presets[names[0]]) if all(voice in self.presets for voice in names) else None


def _is_recording(path: Path) -> bool:
    # A link that leads nowhere is listed, so that its absence can be seen; a name that no JSON can hold is not.
    return path.suffix.lower() in SUFFIXES and not path.is_dir() and path.name.isprintable()
