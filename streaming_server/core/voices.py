"""The reference recordings: what there is, and which index means which file.

Knows file names only; it opens none.
"""

from __future__ import annotations

from pathlib import Path

from streaming_server.domain import Voice
from streaming_server.errors import VoiceFileMissing, VoiceIndexOutOfRange

SUFFIXES = frozenset({".wav", ".mp3", ".flac", ".m4a", ".ogg", ".opus"})


class VoiceLibrary:
    """The reference folder as it was last listed.

    An index keeps its meaning between two listings, so that a client which has seen a list and asks for one of it
    gets that file or hears that it is gone, and never another.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
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

    def find(self, name: str) -> Voice | None:
        """The voice of a name: a file's stem, its name, or its path as it is listed. No path is built from it."""
        return next((v for v in self.list() if name in {v.name, v.path.name, v.path.as_posix()}), None)


def _is_recording(path: Path) -> bool:
    # A link that leads nowhere is listed, so that its absence can be seen; a name that no JSON can hold is not.
    return path.suffix.lower() in SUFFIXES and not path.is_dir() and path.name.isprintable()
