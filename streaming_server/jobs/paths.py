"""Converts client paths to keys of the file store, without opening files or following links."""

from __future__ import annotations

import posixpath
from pathlib import Path, PurePosixPath

from streaming_server.errors import FileOutside
from streaming_server.text import forbidden_character

WORKFLOWS = "workflows"
"""Prefix of the keys of files that clients name."""
_SHARE = PurePosixPath("/share")
_MAX_BYTES, _MAX_PART_BYTES = 1024, 200
"""Maximum lengths of a path and of each part. File systems allow 255, but temporary names are longer."""


def workflow_key(path: str, *roots: Path) -> str:
    """Return the key of a client path: relative, below a path of the root, or below ``/share``, which stands for it.

    Raises:
        FileOutside: it resolves outside the root, names a folder, or is not a valid path.
    """
    is_folder = posixpath.basename(path) in {"", ".", ".."}
    if is_folder or len(path.encode(errors="replace")) > _MAX_BYTES or forbidden_character(path):
        raise FileOutside
    given = PurePosixPath(posixpath.normpath("/" + path.lstrip("/") if path.startswith("/") else path))
    if given.is_relative_to(_SHARE):
        given = given.relative_to(_SHARE)
    elif root := next((root for root in roots if given.is_relative_to(root)), None):
        given = given.relative_to(root)
    is_long = any(len(part.encode()) > _MAX_PART_BYTES for part in given.parts)
    if given.is_absolute() or not given.parts or ".." in given.parts or is_long:
        raise FileOutside
    return f"{WORKFLOWS}/{given}"
