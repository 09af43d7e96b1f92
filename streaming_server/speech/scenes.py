"""The scenes: descriptions in words of where something is said, one text file each.

Knows files; not what a model makes of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Scene:
    """A description and where it stands."""

    name: str
    """The file's stem."""
    path: Path
    text: str


class SceneLibrary:
    """The ``.txt`` files of a folder, as they are at each moment."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def list(self) -> list[Scene]:
        """Sorted by file name; empty where there is no folder."""
        paths = sorted(path for path in self._folder.glob("*.txt") if path.is_file() and path.name.isprintable())
        return [Scene(path.stem, path, path.read_text(encoding="utf-8", errors="replace").strip()) for path in paths]

    def find(self, name: str) -> Scene | None:
        """The scene of a name. No path is built from it."""
        return next((scene for scene in self.list() if scene.name == name), None)
