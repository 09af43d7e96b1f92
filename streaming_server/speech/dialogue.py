"""Dialogues: a text with ``[SPEAKERn]`` tags becomes a script, and a script becomes one stream on any engine.

Knows neither HTTP nor any engine in particular.
"""

from __future__ import annotations

import re
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import Literal

from streaming_server.domain import AudioChunk, Capability, Script, SpeechRequest, Turn, Voice
from streaming_server.engines.base import Engine
from streaming_server.errors import InvalidRequest
from streaming_server.text import cut_by_words

_TAG = re.compile(r"\[SPEAKER([0-9]+)\]")


@dataclass(frozen=True, slots=True)
class Cutting:
    """How a script is cut into pieces."""

    method: Literal["speaker", "word"] | None = None
    """None leaves it whole."""
    most_words: int = 200
    """Of one piece, with ``word``."""
    most_turns: int = 1
    """Of one piece, with ``speaker``."""


PLAIN = Cutting("word", 50)
"""Of a text that its caller has not cut: about 20 seconds, which a model can make well at once."""


def is_dialogue(text: str) -> bool:
    """Whether a text has tags of speakers."""
    return _TAG.search(text) is not None


def script_of(text: str, voices: Sequence[Voice], cutting: Cutting, field: str = "text") -> Script:
    """Who says what, cut into pieces.

    Args:
        text: plain, or with tags.
        voices: a plain text takes the first; ``[SPEAKERn]`` takes the one at n.
        cutting: how.
        field: what the text is called in a refusal.

    Raises:
        InvalidRequest: a tag without words, words before the first tag, or a speaker without a voice.
    """
    turns = _turns(text, voices, field)
    if cutting.method == "speaker":
        return tuple(tuple(turns[at : at + cutting.most_turns]) for at in range(0, len(turns), cutting.most_turns))
    if cutting.method == "word":
        return tuple(
            (replace(turn, text=piece),) for turn in turns for piece in cut_by_words(turn.text, cutting.most_words)
        )
    return (tuple(turns),)


def as_dialogue(request: SpeechRequest, voices: Sequence[Voice], field: str = "text") -> SpeechRequest:
    """The request with its tags understood: ``[SPEAKER0]`` is its own voice, the next ones are the others in order.

    Raises:
        InvalidRequest: as `script_of`.
    """
    if not is_dialogue(request.text):
        return request
    cast = [request.voice, *(voice for voice in voices if voice != request.voice)]
    return replace(request, script=script_of(request.text, cast, PLAIN, field))


async def perform(engine: Engine, request: SpeechRequest) -> AsyncGenerator[AudioChunk, None]:
    """The audio of a request, as `Engine.stream`: by an engine that plays scripts, or turn by turn."""
    if Capability.DIALOGUE in engine.info.capabilities:
        script = request.script or script_of(request.text, [request.voice], PLAIN)
        parts = [replace(request, script=script)]
    elif request.script:
        turns = [turn for piece in request.script for turn in piece]
        parts = [replace(request, text=turn.text, voice=turn.voice, script=()) for turn in turns]
    else:
        parts = [request]
    for part in parts:
        async with aclosing(engine.stream(part)) as chunks:
            async for chunk in chunks:
                yield chunk


def _turns(text: str, voices: Sequence[Voice], field: str) -> list[Turn]:
    if not is_dialogue(text):
        return [Turn(text, voices[0])]
    before, *rest = _TAG.split(text)
    if before.strip():
        raise InvalidRequest(f"{field} has words before its first [SPEAKERn] tag, which belong to nobody", field)
    turns: list[Turn] = []
    for number, (digits, words) in enumerate(zip(rest[::2], rest[1::2], strict=True), 1):
        tag = f"[SPEAKER{digits[:20]}]"
        if not words.strip():
            raise InvalidRequest(f"{field} has no words after {tag}, its turn {number}", field)
        if len(digits) > 9 or int(digits) >= len(voices):
            there_are = "there are none" if not voices else f"the {len(voices)} there are end at {len(voices) - 1}"
            raise InvalidRequest(f"{field} has {tag}, which has no voice: {there_are}", field)
        turns.append(Turn(words.strip(), voices[int(digits)], int(digits)))
    return turns
