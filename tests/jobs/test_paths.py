from __future__ import annotations

from pathlib import Path

import pytest

from streaming_server.errors import FileOutside
from streaming_server.jobs.paths import workflow_key

ROOTS = Path("/srv/media"), Path("/mnt/link")


@pytest.mark.parametrize(
    ("path", "key"),
    [
        ("a.wav", "a.wav"),
        ("out/a.wav", "out/a.wav"),
        ("./out//a.wav", "out/a.wav"),
        ("/share/a.wav", "a.wav"),
        ("/share/workflows/output/a.wav", "workflows/output/a.wav"),
        ("//share/a.wav", "a.wav"),
        ("/share/share/a.wav", "share/a.wav"),
        ("/srv/media/a.wav", "a.wav"),
        ("/srv/media/out/a.wav", "out/a.wav"),
        ("/mnt/link/out/a.wav", "out/a.wav"),
        ("/share/b/../a.wav", "a.wav"),
        ("b/../a.wav", "a.wav"),
        ("share/a.wav", "share/a.wav"),
        ("...", "..."),
        ("输出/语音.wav", "输出/语音.wav"),
        ("a" * 196 + ".wav", "a" * 196 + ".wav"),
    ],
)
def test_what_lies_below_the_root(path: str, key: str) -> None:
    assert workflow_key(path, *ROOTS) == f"workflows/{key}"


@pytest.mark.parametrize(
    "path",
    [
        *("", ".", "/", "/share", "/share/", "/share/.", "..", "../a.wav", "a/../../b.wav", "/share/../a.wav"),
        *("/share/../share/../a.wav", "/a.wav", "/sharex/a.wav", "/srv/a.wav", "/srv/media", "/srv/media/../a.wav"),
        *("/srv/mediax/a.wav", "a\0.wav", "a\n\x1f.wav", "\ud800.wav", "a" * 201, "语" * 67, "a/" * 512 + "b"),
        *("/etc/passwd", "/mnt/link", "/mnt/link/../a.wav", "/share/out/", "/share/out/.", "out/a.wav/", "a/b/.."),
    ],
)
def test_what_does_not(path: str) -> None:
    with pytest.raises(FileOutside):
        workflow_key(path, *ROOTS)
