"""Workflows as data: the order of a chain, the jobs that it becomes, and the interface to its protocol."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from streaming_server.domain import Emotion, EmotionVector, Generation, Granularity, SpeechRequest, Voice
from streaming_server.errors import FileOutside, InvalidRequest
from streaming_server.jobs.file_store import Files
from streaming_server.jobs.inspection import VoicePresets
from streaming_server.jobs.paths import workflow_key
from streaming_server.jobs.runner import SpeechJob
from streaming_server.jobs.store import Job


@dataclass(frozen=True, slots=True)
class SpeechOrder:
    """The speech request of a workflow: validated values, with the client's names and paths."""

    text: str
    output_path: str
    voice: str | None
    """None for the default voice."""
    max_text_tokens: int
    emotion_reference: str | None = None
    emotion_vector: EmotionVector | None = None
    emotion_text: str | None = None
    """At most one of the three is given."""
    emotion_weight: float = 1.0
    emotion_random: bool = False


@dataclass(frozen=True, slots=True)
class Plan:
    """A chain of jobs."""

    names: Sequence[str]
    speech: SpeechJob | None
    """The payload of the speech jobs."""


@dataclass(frozen=True, slots=True)
class OrderPlanner:
    """Resolves voices and paths of an order."""

    presets: VoicePresets
    files: Files
    roots: Sequence[Path]
    """Paths of the folder in which workflows read and write."""

    async def speech(self, order: SpeechOrder, memo: dict[str, Any]) -> SpeechJob:
        """Return the payload of a speech job; ``memo`` as in `SpeechJob`.

        Raises:
            InvalidRequest: a path is outside the root.
            FileMissing: a recording does not exist.
        """
        output = await self._key(order.output_path, "output_path")
        emotion = None
        if order.emotion_reference or order.emotion_vector or order.emotion_text:
            reference = order.emotion_reference
            emotion = Emotion(
                await self._voice(reference, "emotion_reference") if reference else None,
                order.emotion_vector,
                order.emotion_text,
                order.emotion_weight,
                order.emotion_random,
            )
        request = SpeechRequest(
            order.text,
            await self._voice(order.voice, "reference_audio"),
            Generation(max_text_tokens_per_sentence=order.max_text_tokens),
            Granularity.SENTENCE,
            emotion=emotion,
        )
        return SpeechJob(request, output, memo)

    async def _voice(self, name: str | None, field: str) -> Voice:
        if found := await self.presets.find(name):
            return found
        assert name is not None
        key = await self._key(name, field)
        await asyncio.to_thread(self.files.local, key)
        return Voice(name, Path(key))

    async def _key(self, path: str, field: str) -> str:
        try:
            key = workflow_key(path, *self.roots)
            await asyncio.to_thread(self.files.check, key)
        except FileOutside as error:
            raise InvalidRequest(f"{field}: {error}", field) from None
        return key


class WorkflowMessages(Protocol):
    """Translates between the messages of a workflow protocol and jobs."""

    async def parse(self, message: object) -> SpeechJob:
        """Return the payload for a message.

        Raises:
            SpeechServerError: the message is invalid.
        """

    def result(self, job: Job) -> Mapping[str, Any]:
        """Return the result of a completed job."""

    def failure(self, job: Job) -> Mapping[str, Any]:
        """Return the error of a failed job."""

    def refusal(self, error: Exception) -> Mapping[str, Any]:
        """Return the error of a rejected message."""
