"""Scene descriptions, one text file each."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Scene:
    """A scene and its file."""

    name: str
    """The file's stem."""
    path: Path
    text: str


class SceneLibrary:
    """The ``.txt`` files of a folder, read at each call."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def list(self) -> list[Scene]:
        """All scenes by file name; empty if the folder does not exist."""
        paths = sorted(path for path in self._folder.glob("*.txt") if path.is_file() and path.name.isprintable())
        return [Scene(path.stem, path, path.read_text(encoding="utf-8", errors="replace").strip()) for path in paths]

    def find(self, name: str) -> Scene | None:
        """Find a scene by name. No path is built from the name."""
        return next((scene for scene in self.list() if scene.name == name), None)
