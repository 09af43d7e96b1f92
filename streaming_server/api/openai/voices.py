"""The voices of the OpenAI dialect: names, uploads, and recordings of consent."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import anyio
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute

from streaming_server.api.http import Body, Dialect, parse_body, parse_query, validated_text
from streaming_server.api.multipart import read_form
from streaming_server.api.openai import voice_schemas as operations
from streaming_server.api.openai.schemas import SHORT_TAG, TAG, VOICES
from streaming_server.api.openai.voice_schemas import (
    MAX_SAMPLE_BYTES,
    MEDIA_TYPES,
    Consent,
    ConsentDeleted,
    ConsentForm,
    ConsentName,
    Consents,
    ConsentsQuery,
    CreatedVoice,
    ListedVoice,
    UploadedVoice,
    VoiceDeleted,
    VoiceForm,
    VoicesQuery,
)
from streaming_server.api.operations import ApiRoute
from streaming_server.domain import Voice
from streaming_server.errors import ForbiddenCharacter, InvalidRequest, VoiceNotFound, VoiceUnknown
from streaming_server.jobs.storage import Storage
from streaming_server.jobs.uploads import Upload
from streaming_server.jobs.voice_store import NameTaken, StoredVoice, VoiceConsent, is_reserved
from streaming_server.speech.voices import VoiceLibrary
from streaming_server.text import forbidden_character

_NUMBERED = {name: f"voice_{number:02}" for number, name in enumerate(VOICES, 1)}
_ALIASES = {"marin": "coral", "cedar": "ash"}
"""Newer names of OpenAI, used if no voice has that name."""
_PIECE_BYTES = 1024 * 1024

F = TypeVar("F", bound=Body)


class VoiceNames:
    """OpenAI's names of voices and the server's names."""

    def __init__(self, voices: VoiceLibrary) -> None:
        self._voices = voices

    async def find(self, name: str, field: str = "voice") -> Voice:
        """Find a voice by id.

        Raises:
            VoiceUnknown: the voice does not exist; the message lists the valid ones.
        """
        known = {voice.name for voice in self._voices.all()}
        own = _ALIASES.get(name, name) if name not in known else name
        voice = await self._voices.find(_NUMBERED[own]) if own in _NUMBERED else None
        voice = voice or await self._voices.find(own)
        if voice is None:
            uploaded = [upload.title for upload in await self._voices.uploaded()]
            raise VoiceUnknown(name, [*self.shipped(), *uploaded], field)
        return voice

    def shipped(self) -> list[str]:
        """Return the names of all voices except uploads, OpenAI's first."""
        known = [voice.name for voice in self._voices.all()]
        named = [name for name, stem in _NUMBERED.items() if stem in known or name in known]
        named += [name for name, other in _ALIASES.items() if other in named or name in known]
        return list(dict.fromkeys([*named, *(name for name in known if name not in _NUMBERED.values())]))

    def is_shipped(self, name: str) -> bool:
        """Whether a voice that is not an upload has the name; `find` prefers it to an upload."""
        return name in self.shipped() or self._voices.built_in(name) is not None


@dataclass(frozen=True, slots=True)
class VoiceRoutes(Dialect):
    """The routes below ``/v1/audio/voices`` and ``/v1/audio/voice_consents``."""

    voices: VoiceLibrary
    storage: Storage

    def routes(self) -> list[BaseRoute]:
        return [
            route
            for prefix, tag in (("/v1/audio", TAG), ("/audio", SHORT_TAG))
            for route in (
                ApiRoute(f"{prefix}/voices", self.list_voices, tag, operations.LIST),
                ApiRoute(f"{prefix}/voices", self.create, tag, operations.CREATE, methods=["POST"]),
                ApiRoute(f"{prefix}/voices/{{voice_id:path}}", self.delete, tag, operations.DELETE, methods=["DELETE"]),
                ApiRoute(f"{prefix}/voice_consents", self.consents, tag, operations.CONSENTS),
                ApiRoute(f"{prefix}/voice_consents", self.consent_to, tag, operations.CREATE_CONSENT, methods=["POST"]),
                ApiRoute(f"{prefix}/voice_consents/{{consent_id}}", self.consent, tag, operations.CONSENT),
                ApiRoute(
                    f"{prefix}/voice_consents/{{consent_id}}", self.rename, tag, operations.RENAME, methods=["POST"]
                ),
                ApiRoute(
                    f"{prefix}/voice_consents/{{consent_id}}", self.revoke, tag, operations.REVOKE, methods=["DELETE"]
                ),
            )
        ]

    async def list_voices(self, request: Request) -> Response:
        query = parse_query(request, VoicesQuery)
        stored = await anyio.to_thread.run_sync(self.storage.voices.current)
        shipped = VoiceNames(self.voices).shipped()
        if query.legacy:
            return JSONResponse({"voices": [*shipped, *(voice.name for voice in stored)]})
        listed: list[ListedVoice] = [{"id": name, "name": name.capitalize(), "language": "multi"} for name in shipped]
        listed += [{"id": voice.id, "name": voice.name, "language": "multi"} for voice in stored]
        return JSONResponse({"voices": listed, "uploaded_voices": [_uploaded(voice) for voice in stored]})

    async def create(self, request: Request) -> Response:
        async with self._form(request, VoiceForm, "audio_sample") as (form, path):
            said, description = (form.ref_text or "").strip(), (form.speaker_description or "").strip()
            stored = await add_voice(self.voices, self.storage, path, form.name, form.consent, said, description)
        created: CreatedVoice = {
            "id": stored.id,
            "object": "audio.voice",
            "name": stored.name,
            "type": "audio_sample",
            "created_at": int(stored.created_s),
            "success": True,
            "voice": _uploaded(stored),
        }
        return JSONResponse(created)

    async def delete(self, request: Request) -> Response:
        name = request.path_params["voice_id"]
        try:
            gone = await self._run(self.storage.voices.delete, name)
        except VoiceNotFound:
            if not VoiceNames(self.voices).is_shipped(name):
                raise
            message = f"voice {name[:80]!r} is not an upload; only uploads can be deleted"
            raise InvalidRequest(message, "voice_id", "path") from None
        body: VoiceDeleted = {
            "id": gone.id,
            "object": "audio.voice.deleted",
            "deleted": True,
            "success": True,
            "message": f"voice {gone.name!r} deleted",
        }
        return JSONResponse(body)

    async def consent_to(self, request: Request) -> Response:
        async with self._form(request, ConsentForm, "recording") as (form, path):
            upload = await _received(self.storage, path, form.name)
        consent = await self._run(self.storage.voices.add_consent, form.name.strip(), form.language.strip(), upload)
        return JSONResponse(_consent(consent))

    async def consents(self, request: Request) -> Response:
        query = parse_query(request, ConsentsQuery)
        found, has_more = await self._run(self.storage.voices.consents, query.limit, query.after)
        body: Consents = {"object": "list", "data": [_consent(consent) for consent in found], "has_more": has_more}
        return JSONResponse(body)

    async def consent(self, request: Request) -> Response:
        return JSONResponse(_consent(await self._run(self.storage.voices.consent, request.path_params["consent_id"])))

    async def rename(self, request: Request) -> Response:
        body = await parse_body(request, ConsentName)
        consent_id = request.path_params["consent_id"]
        return JSONResponse(
            _consent(await self._run(self.storage.voices.rename_consent, consent_id, body.name.strip()))
        )

    async def revoke(self, request: Request) -> Response:
        consent_id = request.path_params["consent_id"]
        await self._run(self.storage.voices.delete_consent, consent_id)
        body: ConsentDeleted = {"id": consent_id, "object": "audio.voice_consent", "deleted": True}
        return JSONResponse(body)

    @asynccontextmanager
    async def _form(self, request: Request, model: type[F], field: str) -> AsyncIterator[tuple[F, Path]]:
        """Read a form with a recording, whose file is deleted at the end of the ``with``.

        Raises:
            InvalidRequest: a field is missing or invalid.
            UploadTooLarge: the recording exceeds `MAX_SAMPLE_BYTES`.
        """
        async with AsyncExitStack() as files:
            form = await files.enter_async_context(
                read_form(request, field, self.storage.scratch.new(), MAX_SAMPLE_BYTES)
            )
            checked = validated_text(model, form.fields, "body")
            if form.file is None:
                raise InvalidRequest(f"{field} is required: a part of the multipart body with a file name", field)
            yield checked, form.file

    @property
    def _run(self) -> Any:
        return self.storage.request_threads.run


async def add_voice(
    voices: VoiceLibrary,
    storage: Storage,
    path: Path,
    name: str,
    consent: str,
    ref_text: str = "",
    description: str = "",
) -> StoredVoice:
    """Store a recording as a voice.

    Raises:
        NameTaken: another voice has the name.
        ForbiddenCharacter: a text contains a control character or a lone surrogate.
        RecordingRefused: the file is not a recording in an allowed format.
        InvalidRequest, StorageFull, StorageUnavailable: as `VoiceStore.add`.
    """
    texts = {"name": name, "consent": consent, "ref_text": ref_text, "speaker_description": description}
    for field, text in texts.items():
        if found := forbidden_character(text):
            raise ForbiddenCharacter(*found, field)
    name = name.strip()
    if VoiceNames(voices).is_shipped(name) or is_reserved(name):
        raise NameTaken(name)
    upload = await _received(storage, path, name)
    return await storage.request_threads.run(storage.voices.add, name, upload, consent.strip(), ref_text, description)


async def _received(storage: Storage, path: Path, filename: str) -> Upload:
    async def pieces() -> AsyncIterator[bytes]:
        async with await anyio.open_file(path, "rb") as file:
            while piece := await file.read(_PIECE_BYTES):
                yield piece

    upload, _ = await storage.uploads.receive(filename, pieces())
    return upload


def _uploaded(voice: StoredVoice) -> UploadedVoice:
    uploaded: UploadedVoice = {
        "id": voice.id,
        "name": voice.name,
        "consent": voice.consent,
        "created_at": int(voice.created_s),
        "mime_type": MEDIA_TYPES[voice.format],
        "file_size": voice.size,
    }
    if voice.ref_text:
        uploaded["ref_text"] = voice.ref_text
    if voice.description:
        uploaded["speaker_description"] = voice.description
    return uploaded


def _consent(consent: VoiceConsent) -> Consent:
    return {
        "id": consent.id,
        "object": "audio.voice_consent",
        "name": consent.name,
        "language": consent.language,
        "created_at": int(consent.created_s),
    }
