"""Client paths as keys of the file store. Pure: nothing is opened and no link is followed."""

from __future__ import annotations

import posixpath
from pathlib import Path, PurePosixPath

from streaming_server.errors import FileOutside
from streaming_server.text import forbidden_character

WORKFLOWS = "workflows"
"""Prefix of the keys of files that clients name."""
_SHARE = PurePosixPath("/share")
_MAX_BYTES, _MAX_PART_BYTES = 1024, 200
"""Of a path and of each of its parts. File systems allow 255, but a temporary name is longer than the name."""


def workflow_key(path: str, root: Path) -> str:
    """The key of a client's path: one below ``/share``, which stands for the root, below the root itself, or relative.

    Raises:
        FileOutside: it leads outside the root, or is no valid path.
    """
    if not path or len(path.encode(errors="replace")) > _MAX_BYTES or forbidden_character(path):
        raise FileOutside
    given = PurePosixPath(posixpath.normpath("/" + path.lstrip("/") if path.startswith("/") else path))
    if given.is_relative_to(_SHARE):
        given = given.relative_to(_SHARE)
    elif given.is_absolute() and given.is_relative_to(root):
        given = given.relative_to(root)
    is_long = any(len(part.encode()) > _MAX_PART_BYTES for part in given.parts)
    if given.is_absolute() or not given.parts or ".." in given.parts or is_long:
        raise FileOutside
    return f"{WORKFLOWS}/{given}"
