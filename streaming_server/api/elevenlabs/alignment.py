"""When each character is said, as ElevenLabs' clients read it."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from typing_extensions import TypedDict

from streaming_server.speech.timeline import Passage


class Alignment(TypedDict):
    """Over HTTP: seconds from the start of all audio. The lists are of equal length."""

    characters: list[str]
    character_start_times_seconds: list[float]
    character_end_times_seconds: list[float]


def seconds(passages: Sequence[Passage]) -> Alignment | None:
    """The characters of several passages, each with a space behind; None without any."""
    if not passages:
        return None
    characters: list[str] = []
    starts: list[float] = []
    ends: list[float] = []
    for passage in passages:
        times_s = [round(float(time_s), 3) for time_s in passage.times_s]
        characters += [*passage.text, " "]
        starts += times_s
        ends += [*times_s[1:], times_s[-1]]
    return {
        "characters": characters,
        "character_start_times_seconds": starts,
        "character_end_times_seconds": ends,
    }


def milliseconds(passage: Passage, from_s: float) -> dict[str, Any]:
    """The characters of a passage for a WebSocket, with a space behind: pipecat's last word ends with it.

    Args:
        passage: what was said.
        from_s: the time that counts as 0, from the start of the stream's audio.
    """
    times_ms = [round((float(time_s) - from_s) * 1000) for time_s in passage.times_s]
    durations_ms = [end - start for start, end in pairwise(times_ms)]
    return {"chars": [*passage.text, " "], "charStartTimesMs": times_ms, "charDurationsMs": [*durations_ms, 0]}
