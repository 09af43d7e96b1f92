"""What a path that a client names means below a shared folder. Pure: opens nothing, follows no link."""

from __future__ import annotations

import posixpath
from pathlib import Path, PurePosixPath

from streaming_server.errors import FileOutside
from streaming_server.text import forbidden_character

WORKFLOWS = "workflows"
"""Prefix of the keys of files that clients name."""
_SHARE = PurePosixPath("/share")
_LONGEST, _LONGEST_NAME = 1024, 200
"""In bytes, of a path and of each of its parts; file systems take 255, but a temporary name is longer."""


def workflow_key(path: str, root: Path) -> str:
    """The key of a client's path: one below ``/share``, which stands for the root, below the root itself, or relative.

    Raises:
        FileOutside: it leads elsewhere, or nowhere.
    """
    if not path or len(path.encode(errors="replace")) > _LONGEST or forbidden_character(path):
        raise FileOutside
    given = PurePosixPath(posixpath.normpath("/" + path.lstrip("/") if path.startswith("/") else path))
    if given.is_relative_to(_SHARE):
        given = given.relative_to(_SHARE)
    elif given.is_absolute() and given.is_relative_to(root):
        given = given.relative_to(root)
    is_long = any(len(part.encode()) > _LONGEST_NAME for part in given.parts)
    if given.is_absolute() or not given.parts or ".." in given.parts or is_long:
        raise FileOutside
    return f"{WORKFLOWS}/{given}"
