"""The player's routes: its voices, speech with the options of the page, and the times of a stream's words."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute

from streaming_server.api.http import Dialect, parse_body
from streaming_server.api.openai.voices import VoiceNames
from streaming_server.api.operations import ApiRoute, ignored_header
from streaming_server.api.player import schemas as operations
from streaming_server.api.player.schemas import (
    TAG,
    PlayerSpeechBody,
    PlayerVoice,
    PlayerVoices,
    PlayerWord,
    PlayerWords,
    VoiceKind,
)
from streaming_server.api.requests import EmotionFields, RequestBuilder, voice_names
from streaming_server.api.responses import SpeechResponse
from streaming_server.audio.encoders import FORMATS, PcmEncoder
from streaming_server.domain import Capability, Emotion, Voice
from streaming_server.errors import InvalidRequest
from streaming_server.settings import Settings
from streaming_server.speech.dialogue import PLAIN, is_dialogue
from streaming_server.speech.service import SpeechService
from streaming_server.speech.timeline import Passage
from streaming_server.speech.voices import VoiceLibrary


@dataclass(frozen=True, slots=True)
class PlayerDialect(Dialect):
    """The routes over one service."""

    service: SpeechService
    voices: VoiceLibrary
    requests: RequestBuilder
    settings: Settings

    def routes(self) -> list[BaseRoute]:
        return [
            ApiRoute("/player/voices", self.list_voices, TAG, operations.VOICES),
            ApiRoute("/player/speech", self.speech, TAG, operations.SPEECH, methods=["POST"]),
            ApiRoute("/player/streams/{stream_id}/words", self.words, TAG, operations.WORDS),
        ]

    async def list_voices(self, request: Request) -> Response:
        voices = self.voices.all()
        presets = [voice for voice in voices if voice.is_preset]
        if presets and Capability.VOICE_CLONING not in self.service.engine.info.capabilities:
            kinds: list[tuple[Voice, VoiceKind]] = [(voice, "preset") for voice in presets]
        else:
            kinds = [(voice, "upload") for voice in await self.voices.uploaded()]
            kinds += [(voice, "preset" if voice.is_preset else "recording") for voice in voices]
        listed = [_listed(voice, kind, request.scope.get("root_path", "")) for voice, kind in kinds]
        body: PlayerVoices = {"voices": listed}
        return JSONResponse(body)

    async def speech(self, request: Request) -> SpeechResponse:
        body = await parse_body(request, PlayerSpeechBody)
        dialogue = is_dialogue(body.text)
        names = [] if body.voice is None else voice_names(body.voice, "voice") if dialogue else [body.voice]
        find = VoiceNames(self.voices).find
        speech = self.requests.build(
            body.text,
            [await find(name) for name in names] or [self.voices.default],
            body.generation(),
            body.granularity,
            max_codes_field="max_mel_tokens" if "max_mel_tokens" in body.model_fields_set else None,
            cutting=PLAIN if dialogue else None,
            emotion=await self._emotion(body),
            speed=body.speed,
            verbose=body.verbose,
            language=body.language or "",
        )
        rate_hz = self.service.engine.info.sample_rate_hz
        opus = {"bitrate_bps": body.opus_bitrate, "complexity": body.opus_complexity}
        encoder = (
            PcmEncoder()
            if body.format == "pcm"
            else FORMATS[body.format].create(**(opus if body.format in {"ogg", "webm"} else {}))
        )
        headers = {
            "X-Sample-Rate": str(rate_hz),
            "Cache-Control": "no-store",
            "X-Accel-Buffering": "no",
            "Content-Disposition": f"attachment; filename=speech.{body.format}",
            **ignored_header(self.requests.ignored(speech, description_field="emo_text")),
        }
        return SpeechResponse(self.service, speech, encoder, headers, self.settings.send_timeout_s)

    async def words(self, request: Request) -> Response:
        async with self.service.resume(request.path_params["stream_id"]) as stream:
            passages = [*stream.passages]
            is_complete, duration_s = stream.buffer.ended, stream.duration_s
        is_measured = bool(passages) and all(passage.precision == "engine" for passage in passages)
        body: PlayerWords = {
            "complete": is_complete,
            "duration": round(duration_s, 3),
            "precision": "engine" if is_measured else "segment",
            "words": [word for passage in passages for word in _timed(passage)],
        }
        return JSONResponse(body)

    async def _emotion(self, body: PlayerSpeechBody) -> Emotion | None:
        """
        Raises:
            InvalidRequest: more than one source of an emotion.
        """
        fields = EmotionFields(
            ("emo_audio", body.emo_audio), ("emo_vector", body.emo_vector), ("emo_text", body.emo_text), body.emo_weight
        )
        given = fields.given()
        if len(given) > 1:
            raise InvalidRequest(f"only one of {' and '.join(given)} may be given", given[1])
        return await self.requests.emotion(fields, given[0] if given else None, VoiceNames(self.voices).find)


def _timed(passage: Passage) -> Iterator[PlayerWord]:
    words = passage.words()
    for word, following in zip(words, [*words[1:], None], strict=True):
        yield {
            "text": word.text,
            "start": round(word.start_s, 3),
            "end": round(word.end_s, 3),
            "space": None if following is None else following.begin > word.begin + len(word.text),
        }


def _listed(voice: Voice, kind: VoiceKind, root_path: str) -> PlayerVoice:
    available = kind != "recording" or voice.path.is_file()
    has_file = available and kind == "recording"
    return {
        "name": voice.name,
        "title": voice.title or voice.name,
        "languages": [*voice.languages],
        "gender": voice.gender,
        "kind": kind,
        "index": voice.index,
        "available": available,
        "sample_url": f"{root_path}/download_reference_audio/{voice.index}" if has_file else None,
    }
