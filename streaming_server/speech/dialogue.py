"""Dialogues: parses ``[SPEAKERn]`` tags into a script and streams a script through any engine."""

from __future__ import annotations

import re
from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from streaming_server.audio.prosody import ProsodyFilter
from streaming_server.audio.stretch import SPEED_MAX, SPEED_MIN
from streaming_server.domain import AudioChunk, Capability, Mark, Script, Span, SpeechRequest, Turn, Voice
from streaming_server.engines.base import Engine, EngineInfo
from streaming_server.errors import InvalidRequest
from streaming_server.speech.joints import Joints
from streaming_server.speech.markup import spans_of, without_pauses
from streaming_server.speech.timeline import Passage
from streaming_server.text import cut_by_words

_TAG = re.compile(r"\[SPEAKER([0-9]+)\]")


@dataclass(frozen=True, slots=True)
class Cutting:
    """How a script is split into pieces."""

    method: Literal["speaker", "word"] | None = None
    """None does not split."""
    max_words: int = 200
    """Words of one piece, with ``word``."""
    max_turns: int = 1
    """Turns of one piece, with ``speaker``."""


PLAIN = Cutting("word", 50)
"""For a text that the request does not split: about 20 seconds a piece."""


def is_dialogue(text: str) -> bool:
    """Whether a text has ``[SPEAKERn]`` tags."""
    return _TAG.search(text) is not None


def script_of(text: str, voices: Sequence[Voice], cutting: Cutting, field: str = "text") -> Script:
    """Parse a text into a script.

    Args:
        text: with or without tags.
        voices: a text without tags uses the first one; ``[SPEAKERn]`` uses the one at index n.
        cutting: how to split.
        field: the name of the text's field, for errors.

    Raises:
        InvalidRequest: an empty turn, text before the first tag, or a speaker without a voice.
    """
    turns = _turns(text, voices, field)
    if cutting.method == "speaker":
        return tuple(tuple(turns[at : at + cutting.max_turns]) for at in range(0, len(turns), cutting.max_turns))
    if cutting.method == "word":
        return tuple(
            (replace(turn, text=piece),) for turn in turns for piece in cut_by_words(turn.text, cutting.max_words)
        )
    return (tuple(turns),)


def as_dialogue(request: SpeechRequest, voices: Sequence[Voice], field: str = "text") -> SpeechRequest:
    """Parse the tags of a request: ``[SPEAKER0]`` is its own voice, the next speakers are ``voices`` in order.

    Raises:
        InvalidRequest: as `script_of`.
    """
    if not is_dialogue(request.text):
        return request
    cast = [request.voice, *(voice for voice in voices if voice != request.voice)]
    return replace(request, script=script_of(request.text, cast, PLAIN, field))


async def perform(engine: Engine, request: SpeechRequest) -> AsyncGenerator[AudioChunk, None]:
    """Stream the audio of a request: as one script if the engine takes scripts, otherwise turn by turn.

    The pauses of a text, and those between its spans and turns, are made here, in exact samples; those of a script that
    the engine takes whole are left out.
    """
    joints = Joints(engine.info.sample_rate_hz)
    speaker: int | None = None
    for part, part_speaker in _parts(engine.info, request):
        if part_speaker != speaker:
            joints.turn_ended()
            speaker = part_speaker
        async with aclosing(engine.stream(part) if part.script else _spans(engine, part, joints)) as chunks:
            async for chunk in chunks:
                yield chunk


def engine_requests(info: EngineInfo, request: SpeechRequest) -> Iterator[SpeechRequest]:
    """Yield the requests that the engine gets for a request, as `perform` makes them."""
    for part, _ in _parts(info, request):
        if part.script:
            yield part
        else:
            yield from (_of_span(info, part, span) for span in spans_of(part) if _is_spoken(part, span))


def _parts(info: EngineInfo, request: SpeechRequest) -> list[tuple[SpeechRequest, int | None]]:
    """The script whole if the engine takes scripts, otherwise its turns; a text without a script as it is.

    Each with its speaker.
    """
    if request.script and Capability.DIALOGUE in info.capabilities:
        turns = [[replace(turn, text=without_pauses(turn.text)) for turn in piece] for piece in request.script]
        return [(replace(request, script=tuple(map(tuple, turns))), None)]
    if request.script:
        spoken = [turn for piece in request.script for turn in piece]
        return [(replace(request, text=turn.text, voice=turn.voice, script=()), turn.speaker) for turn in spoken]
    return [(request, None)]


def _is_spoken(request: SpeechRequest, span: Span) -> bool:
    return span.text == request.text or any(map(str.isalnum, span.text))


def _rate(span: Span) -> float:
    return min(max(span.rate, SPEED_MIN), SPEED_MAX)  # emphasis multiplies it beyond the range


def _of_span(info: EngineInfo, request: SpeechRequest, span: Span) -> SpeechRequest:
    """The engine's request for a span."""
    voice = span.voice or request.voice
    speed = request.speed * (_rate(span) if Capability.SPEED in info.capabilities else 1.0)
    return replace(
        request,
        text=span.text,
        voice=voice,
        spans=(),
        speed=min(max(speed, SPEED_MIN), SPEED_MAX),
        language=span.language or request.language,
        pronunciations=span.pronunciations,
        script=script_of(span.text, [voice], PLAIN) if Capability.DIALOGUE in info.capabilities else (),
    )


async def _spans(engine: Engine, request: SpeechRequest, joints: Joints) -> AsyncGenerator[AudioChunk, None]:
    """Stream a text span by span, each with its prosody and the pauses before and behind it."""
    info = engine.info
    rate_hz = info.sample_rate_hz
    has_speed = Capability.SPEED in info.capabilities
    made = 0  # samples
    spans = spans_of(request)
    for span in spans:
        is_spoken, asked = _is_spoken(request, span), _of_span(info, request, span)
        tempo = 1.0 if has_speed else _rate(span)
        if is_spoken and (pause := joints.before(span.text, asked.speed if has_speed else tempo, asked.voice)).size:
            made += pause.size
            yield AudioChunk(pause)
        joints.said(span.text, asked.voice)
        begin_s, measured = made / rate_hz, list[Mark]()
        if is_spoken:
            prosody = ProsodyFilter(rate_hz, tempo, span.pitch, span.gain_db)
            async with aclosing(engine.stream(asked)) as chunks:
                async for chunk in chunks:
                    marks = [
                        replace(mark, character=span.start + mark.character, time_s=begin_s + mark.time_s / tempo)
                        for mark in chunk.marks
                    ]
                    measured += marks
                    samples = prosody.push(chunk.samples)
                    made += samples.size
                    joints.heard(samples)
                    yield AudioChunk(samples, marks)
            if (rest := prosody.finish()).size:
                made += rest.size
                joints.heard(rest)
                yield AudioChunk(rest)
        reached = _reached(span, begin_s, made / rate_hz, measured, has_ends=is_spoken and len(spans) > 1)
        if reached:
            yield AudioChunk(np.empty(0, np.float32), reached)
        # Where the engine has no speed of its own, the pause is stretched with the speech.
        missing = round(span.pause_s * rate_hz * (1.0 if has_speed else request.speed))
        made += missing
        if missing:
            joints.paused()
        while missing > 0:
            yield AudioChunk(np.zeros(min(missing, rate_hz), np.float32))
            missing -= rate_hz


def _reached(span: Span, begin_s: float, end_s: float, measured: Sequence[Mark], *, has_ends: bool) -> list[Mark]:
    """When the bookmarks of a span are reached, and its ends where the engine does not measure them.

    Args:
        span: the span.
        begin_s: when its audio begins.
        end_s: when its audio ends.
        measured: the words that the engine has measured.
        has_ends: its ends are places of their own: it is spoken, and is not the whole text.
    """
    found: list[Mark] = []
    if not measured and has_ends:
        end = span.start + len(span.text)
        found += [Mark(span.start, begin_s, is_measured=False), Mark(end, end_s, is_measured=False)]
    elif has_ends and measured[-1].character < (end := span.start + len(span.text.rstrip())):
        found.append(
            Mark(end, end_s, is_measured=measured[-1].is_measured)
        )  # the engine measures beginnings only; the last word ends with the audio
    if span.bookmarks:
        words = [
            replace(mark, character=mark.character - span.start, time_s=mark.time_s - begin_s) for mark in measured
        ]
        times_s = Passage(span.text, begin_s, end_s, words).times_s
        found += [
            Mark(span.start + mark.character, float(times_s[mark.character]), mark.name) for mark in span.bookmarks
        ]
    return found


def _turns(text: str, voices: Sequence[Voice], field: str) -> list[Turn]:
    if not is_dialogue(text):
        return [Turn(text, voices[0])]
    before, *rest = _TAG.split(text)
    if before.strip():
        raise InvalidRequest(f"{field} has text before its first [SPEAKERn] tag", field)
    turns: list[Turn] = []
    for number, (digits, words) in enumerate(zip(rest[::2], rest[1::2], strict=True), 1):
        tag = f"[SPEAKER{digits[:20]}]"
        if not words.strip():
            raise InvalidRequest(f"{field} has no text after {tag}, turn {number}", field)
        if len(digits) > 9 or int(digits) >= len(voices):
            valid = "no voices are given" if not voices else f"valid range: 0-{len(voices) - 1}"
            raise InvalidRequest(f"{field} has {tag}, which has no voice; {valid}", field)
        turns.append(Turn(words.strip(), voices[int(digits)], int(digits)))
    return turns
