"""The routes of the dialect, and the shape of its errors."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Literal

from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Match, Route, WebSocketRoute
from starlette.types import Scope
from starlette.websockets import WebSocket

from streaming_server.api.channel import open_session
from streaming_server.api.elevenlabs import schemas as operations
from streaming_server.api.elevenlabs.alignment import seconds
from streaming_server.api.elevenlabs.errors import ERRORS
from streaming_server.api.elevenlabs.formats import DEFAULT_FORMAT, encoder_of
from streaming_server.api.elevenlabs.schemas import (
    TAG,
    ElevenLabsModel,
    ElevenLabsVoice,
    ElevenLabsVoices,
    Subscription,
    TextToSpeechBody,
    TimedSpeech,
    VoicePage,
    VoicePageQuery,
)
from streaming_server.api.elevenlabs.session import ElevenLabsSession
from streaming_server.api.elevenlabs.settings import delivery
from streaming_server.api.http import Dialect, ErrorShape, check_text, parse_body, parse_query
from streaming_server.api.operations import ApiRoute, ignored_header
from streaming_server.api.requests import RequestBuilder
from streaming_server.api.responses import SpeechResponse
from streaming_server.api.timed import TimedSpeechResponse
from streaming_server.audio.encoders import AudioEncoder
from streaming_server.domain import SpeechRequest, Voice
from streaming_server.settings import Settings
from streaming_server.speech.inline_tags import without_tags
from streaming_server.speech.service import SpeechService
from streaming_server.speech.timeline import Passage, precision_of
from streaming_server.speech.voices import VoiceLibrary

_MODELS = ("eleven_flash_v2_5", "eleven_turbo_v2_5", "eleven_multilingual_v2")
_LANGUAGES = {"en": "English", "zh": "Chinese", "ja": "Japanese", "ko": "Korean"}
_UNLIMITED = 2**31 - 1


class KeyHeaderRoute(Route):
    """A route for requests with the header ``xi-api-key`` alone: other dialects have the same path."""

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        if scope["type"] != "http" or "xi-api-key" not in Headers(scope=scope):
            return Match.NONE, {}
        return super().matches(scope)


@dataclass(frozen=True, slots=True)
class ElevenLabsDialect(Dialect):
    """The routes over one service."""

    service: SpeechService
    voices: VoiceLibrary
    requests: RequestBuilder
    settings: Settings
    shapes: ClassVar[Mapping[str, ErrorShape]] = {
        "/v1/text-to-speech": ERRORS,
        "/v1/text-to-dialogue": ERRORS,
        "/v1/voices": ERRORS,
        "/v2/voices": ERRORS,
        "/v1/user": ERRORS,
    }

    def routes(self) -> list[BaseRoute]:
        speech = "/v1/text-to-speech/{voice_id}"
        return [
            ApiRoute(speech, self.speech, TAG, operations.SPEECH, methods=["POST"]),
            ApiRoute(f"{speech}/stream", self.speech, TAG, operations.SPEECH, methods=["POST"]),
            ApiRoute(f"{speech}/with-timestamps", self.timed, TAG, operations.TIMED, methods=["POST"]),
            ApiRoute(f"{speech}/stream/with-timestamps", self.timed, TAG, operations.TIMED_STREAM, methods=["POST"]),
            WebSocketRoute(f"{speech}/stream-input", self.single_session),
            WebSocketRoute(f"{speech}/multi-stream-input", self.multi_session),
            ApiRoute("/v1/voices", self.list_voices, TAG, operations.VOICES),
            ApiRoute("/v1/voices/{voice_id}", self.voice, TAG, operations.VOICE),
            ApiRoute("/v2/voices", self.voice_pages, TAG, operations.VOICE_PAGES),
            ApiRoute("/v1/user/subscription", self.subscription, TAG, operations.SUBSCRIPTION),
            KeyHeaderRoute("/v1/models", self.models),
        ]

    async def speech(self, request: Request) -> SpeechResponse:
        speech, encoder, headers = await self._parsed(request)
        return SpeechResponse(self.service, speech, encoder, headers, self.settings.send_timeout_s)

    async def timed(self, request: Request) -> TimedSpeechResponse:
        speech, encoder, headers = await self._parsed(request)
        return TimedSpeechResponse(
            self.service,
            speech,
            encoder,
            headers,
            self.settings.send_timeout_s,
            compose=_timed,
            is_whole=not request.url.path.endswith("/stream/with-timestamps"),
        )

    async def single_session(self, websocket: WebSocket) -> None:
        await self._session(websocket, is_multi=False)

    async def multi_session(self, websocket: WebSocket) -> None:
        await self._session(websocket, is_multi=True)

    async def _session(self, websocket: WebSocket, *, is_multi: bool) -> None:
        find_voice = partial(self.voices.require, websocket.path_params["voice_id"], "voice_id")
        session = ElevenLabsSession(websocket, self.requests, find_voice, is_multi=is_multi)
        with open_session(websocket, "elevenlabs"):
            await session.run()

    async def list_voices(self, request: Request) -> Response:
        body: ElevenLabsVoices = {"voices": await self._voices(str(request.base_url))}
        return JSONResponse(body)

    async def voice(self, request: Request) -> Response:
        voice_id, base_url = request.path_params["voice_id"], str(request.base_url)
        found = await self.voices.require(voice_id, "voice_id")
        if found.index is not None and self.voices.built_in(found.name) != found:
            return JSONResponse(_listed(found, base_url) | {"voice_id": found.path.name})
        voices = await self._voices(base_url)
        listed = {voice["name"]: voice for voice in voices} | {voice["voice_id"]: voice for voice in voices}
        # An upload with a name is found by that and by its id, and listed by one of them.
        return JSONResponse(listed.get(found.name) or listed.get(found.title) or _listed(found, base_url))

    async def voice_pages(self, request: Request) -> Response:
        query = parse_query(request, VoicePageQuery)
        wanted = request.query_params.getlist("voice_ids")[: operations.MAX_PAGE]
        languages = [*filter(None, request.query_params.getlist("language")[: operations.MAX_PAGE])]
        found = [
            voice
            for voice in await self._voices(str(request.base_url))
            if (not query.search or query.search.lower() in f"{voice['voice_id']} {voice['name']}".lower())
            and (not query.category or query.category == voice["category"])
            and (not query.gender or query.gender.lower() == voice["labels"].get("gender"))
            and (not languages or "language" not in voice["labels"] or _speaks(voice, languages))
            and (not wanted or voice["voice_id"] in wanted)
        ]
        if query.sort == "name":
            found.sort(key=lambda voice: voice["name"].lower())
        if query.sort_direction == "desc":
            found.reverse()
        first = int(query.next_page_token or 0)
        end = first + query.page_size
        has_more = end < len(found)
        body: VoicePage = {
            "voices": found[first:end],
            "has_more": has_more,
            "total_count": len(found),
            "next_page_token": str(end) if has_more else None,
        }
        return JSONResponse(body)

    async def models(self, request: Request) -> Response:
        names = [self.service.engine.info.name, *_MODELS]
        return JSONResponse([_model(name, self.settings.max_text_characters) for name in names])

    async def subscription(self, request: Request) -> Response:
        body: Subscription = {
            "tier": "self_hosted",
            "character_count": 0,
            "character_limit": _UNLIMITED,
            "max_character_limit_extension": None,
            "can_extend_character_limit": False,
            "allowed_to_extend_character_limit": False,
            "voice_slots_used": 0,
            "professional_voice_slots_used": 0,
            "voice_limit": len(self.voices.all()),
            "voice_add_edit_counter": 0,
            "professional_voice_limit": 0,
            "can_extend_voice_limit": False,
            "can_use_instant_voice_cloning": False,
            "can_use_professional_voice_cloning": False,
            "status": "active",
            "has_open_invoices": False,
            "open_invoices": [],
        }
        return JSONResponse(body)

    async def _parsed(self, request: Request) -> tuple[SpeechRequest, AudioEncoder, dict[str, str]]:
        """The request, its encoder, and the headers that name what is not honoured.

        Raises:
            InvalidRequest: a field, the format or the voice.
        """
        encoder = encoder_of(request.query_params.get("output_format", DEFAULT_FORMAT))
        voice = await self.voices.require(request.path_params["voice_id"], "voice_id")
        body = await parse_body(request, TextToSpeechBody)
        how = delivery(self.service.engine.info.capabilities, body.voice_settings, body.seed)
        text, pronunciations = without_tags(check_text(body.text, self.settings.max_text_characters))
        speech = self.requests.build(
            text,
            [voice],
            how.generation,
            None,
            speed=how.speed,
            language=body.language_code or "",
            pronunciations=pronunciations,
        )
        return speech, encoder, ignored_header([*how.ignored, *self.requests.ignored(speech, "language_code")])

    async def _voices(self, base_url: str) -> list[ElevenLabsVoice]:
        """All voices; uploads that have a name count as cloned."""
        uploaded = [_listed(voice, base_url, "cloned") for voice in await self.voices.uploaded()]
        return [*(_listed(voice, base_url) for voice in self.voices.all()), *uploaded]


def _timed(audio: bytes, passages: Sequence[Passage]) -> Mapping[str, Any]:
    alignment = seconds(passages)
    body: TimedSpeech = {
        "audio_base64": base64.b64encode(audio).decode(),
        "alignment": alignment,
        "normalized_alignment": alignment,
    }
    if passages:
        body["alignment_precision"] = precision_of(passages)
    return body


def _speaks(voice: ElevenLabsVoice, languages: Sequence[str]) -> bool:
    """Whether a voice speaks one of the languages; ``en`` includes ``en-US``."""
    known = voice["labels"]["language"].split(", ")
    return any(f"{one}-".lower().startswith(f"{wanted}-".lower()) for one in known for wanted in languages)


def _listed(voice: Voice, base_url: str, category: Literal["premade", "cloned"] = "premade") -> ElevenLabsVoice:
    has_sample = voice.index is not None and voice.path.is_file()
    labels = {"language": ", ".join(voice.languages), "gender": voice.gender or ""}
    return {
        "voice_id": voice.name,
        "name": voice.title or voice.name,
        "category": category,
        "labels": {name: value for name, value in labels.items() if value},
        "description": None,
        "preview_url": f"{base_url}download_reference_audio/{voice.index}" if has_sample else None,
        "settings": {"speed": 1.0},
    }


def _model(name: str, max_characters: int) -> ElevenLabsModel:
    return {
        "model_id": name,
        "name": name,
        "description": "The loaded model.",
        "can_do_text_to_speech": True,
        "can_do_voice_conversion": False,
        "can_use_style": False,
        "can_use_speaker_boost": False,
        "can_be_finetuned": False,
        "serves_pro_voices": False,
        "token_cost_factor": 0.0,
        "requires_alpha_access": False,
        "max_characters_request_free_user": max_characters,
        "max_characters_request_subscribed_user": max_characters,
        "maximum_text_length_per_request": max_characters,
        "languages": [{"language_id": code, "name": language} for code, language in _LANGUAGES.items()],
    }
