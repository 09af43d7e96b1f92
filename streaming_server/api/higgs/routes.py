"""The HiggsAudio dialect: ``/info``, ``/voices``, ``/scenes`` and ``/generate*``, for any engine."""

from __future__ import annotations

import base64
import json
import logging
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute

from streaming_server.api import sse
from streaming_server.api.higgs import schemas as operations
from streaming_server.api.higgs.schemas import (
    DONE_MESSAGE,
    FEATURES,
    OWN_FEATURES,
    TAG,
    GenerateBody,
    HiggsError,
    Info,
    PromptVoices,
    Scenes,
    UploadBody,
)
from streaming_server.api.http import Dialect, ErrorShape, parse_body, validated_text
from streaming_server.api.multipart import read_form
from streaming_server.api.operations import ApiRoute
from streaming_server.api.requests import RequestBuilder, voice_names
from streaming_server.api.responses import Connection, SpeechResponse, complete
from streaming_server.audio.encoders import FORMATS, PCM_HZ, wav_header
from streaming_server.domain import Capability, Generation, SpeechRequest, Voice
from streaming_server.errors import (
    InvalidRequest,
    ReaderTooSlow,
    RecordingRefused,
    SpeechServerError,
    VoiceUnknown,
)
from streaming_server.jobs.scratch import Scratch
from streaming_server.jobs.uploads import Uploads
from streaming_server.settings import Settings
from streaming_server.speech.dialogue import Cutting, is_dialogue
from streaming_server.speech.scenes import SceneLibrary
from streaming_server.speech.service import EngineState, SpeechService
from streaming_server.speech.stream import SpeechStream
from streaming_server.speech.voices import VoiceLibrary, names_of
from streaming_server.text import estimated_duration_s

log = logging.getLogger(__name__)
_FILE = "ref_audio_file"
_SHORTEST_S = 0.25
"""Minimum duration of an uploaded recording, in seconds."""


def error_body(status: int, message: str, error: SpeechServerError | None) -> HiggsError:
    """Return an error in the dialect's shape."""
    return {"success": False, "message": message}


ERRORS = ErrorShape(error_body, HiggsError, invalid_status=422)
SHAPES: Mapping[str, ErrorShape] = dict.fromkeys(("/info", "/voices", "/scenes", "/generate*"), ERRORS)


@dataclass(frozen=True, slots=True)
class HiggsDialect(Dialect):
    """The HiggsAudio routes of one service."""

    service: SpeechService
    prompts: VoiceLibrary
    """Voices of this dialect only, listed first."""
    voices: VoiceLibrary
    scenes: SceneLibrary
    scratch: Scratch
    uploads: Uploads
    """Examines recordings, but stores none of this dialect."""
    requests: RequestBuilder
    settings: Settings
    shapes: ClassVar = SHAPES

    def routes(self) -> list[BaseRoute]:
        return [
            ApiRoute("/info", self.info, TAG, operations.INFO),
            ApiRoute("/voices", self.list_voices, TAG, operations.VOICES),
            ApiRoute("/scenes", self.list_scenes, TAG, operations.SCENES),
            ApiRoute("/generate", self.generate, TAG, operations.GENERATE, methods=["POST"]),
            ApiRoute("/generate-stream", self.generate_stream, TAG, operations.GENERATE_STREAM, methods=["POST"]),
            ApiRoute("/generate-upload", self.generate_upload, TAG, operations.GENERATE_UPLOAD, methods=["POST"]),
        ]

    async def info(self, request: Request) -> Response:
        info = self.service.engine.info
        body: Info = {
            "model_name": info.model_dir or info.name,
            "device": info.device,
            "is_loaded": self.service.state is EngineState.READY,
            "max_new_tokens": self.settings.max_new_tokens,
            "supported_features": [
                feature for name, feature in FEATURES.items() if name in OWN_FEATURES or name in info.capabilities
            ],
        }
        return JSONResponse(body)

    async def list_voices(self, request: Request) -> Response:
        voices = [voice for voice in self._all_voices() if not voice.is_preset]
        body: PromptVoices = {
            "voices": [
                {"name": voice.name, "file": voice.path.as_posix(), "type": voice.path.suffix[1:].lower()}
                for voice in voices
            ],
            "count": len(voices),
        }
        return JSONResponse(body)

    async def list_scenes(self, request: Request) -> Response:
        scenes = self.scenes.list()
        body: Scenes = {
            "scenes": [{"name": scene.name, "content": scene.text, "file": scene.path.as_posix()} for scene in scenes],
            "count": len(scenes),
        }
        return JSONResponse(body)

    async def generate(self, request: Request) -> WholeResponse:
        return WholeResponse(self, await self._speech(await parse_body(request, GenerateBody)))

    async def generate_stream(self, request: Request) -> EventResponse:
        return EventResponse(self, await self._speech(await parse_body(request, GenerateBody)))

    async def generate_upload(self, request: Request) -> WholeResponse:
        path, limit = self.scratch.new(), self.settings.upload_max_mb * 1024 * 1024
        async with AsyncExitStack() as files:
            form = await files.enter_async_context(read_form(request, _FILE, path, limit))
            # A browser sends the inputs that were left blank too.
            filled = {name: value for name, value in form.fields.items() if value or name == "text"}
            given = validated_text(UploadBody, filled, "body").model_dump(exclude_unset=True)
            uploaded = None
            if form.file is not None:
                uploaded = Voice("upload", form.file)
                try:
                    recording = await self.uploads.examine(form.file)
                except RecordingRefused as error:
                    raise InvalidRequest(f"{_FILE}: {error}", _FILE) from None
                if recording.duration_s < _SHORTEST_S:
                    raise InvalidRequest(f"{_FILE}: the recording is shorter than {_SHORTEST_S} s", _FILE)
            speech = await self._speech(GenerateBody(**given), uploaded)
            return WholeResponse(self, speech, files.pop_all())
        raise AssertionError("unreachable")

    async def _speech(self, body: GenerateBody, uploaded: Voice | None = None) -> SpeechRequest:
        """Build the request of a body.

        Raises:
            HTTPException: 404 if a voice or a scene does not exist.
            InvalidRequest: the text cannot be synthesised, or the number of voices does not match its speakers.
        """
        given = [uploaded] if uploaded else await self._given(body.ref_audio or "")
        if len(given) > 1 and not is_dialogue(body.text):
            message = f"ref_audio names {len(given)} voices, but a text without [SPEAKERn] tags is spoken by one"
            raise InvalidRequest(message, "ref_audio")
        cast = given or self._all_voices()
        if not cast:
            raise HTTPException(404, "no voices: the voice folders contain no recordings")
        return self.requests.build(
            body.text,
            cast,
            self._generation(body),
            None,
            cutting=Cutting(body.chunk_method, body.chunk_max_word_num, body.chunk_max_num_turns),
            scene=self._scene(body),
            own_voices=not given,
        )

    def _generation(self, body: GenerateBody) -> Generation:
        max_codes = body.max_new_tokens if "max_new_tokens" in body.model_fields_set else self.settings.max_new_tokens
        return Generation(
            do_sample=body.temperature > 0,
            top_p=body.top_p,
            top_k=body.top_k or 0,
            temperature=body.temperature,
            max_mel_tokens=max_codes,
            seed=body.seed,
            ras_window=max(body.ras_win_len, 0),
            ras_repeats=body.ras_win_max_num_repeat,
            context_pieces=body.generation_chunk_buffer_size,
            is_sampling_given=True,
        )

    def _all_voices(self) -> list[Voice]:
        """Return the prompts, the reference recordings and the engine's presets; of equal names only the first."""
        found: dict[str, Voice] = {}
        for voice in (*self._prompts(), *self.voices.all()):
            found.setdefault(voice.name, voice)
        return list(found.values())

    def _prompts(self) -> list[Voice]:
        return [replace(voice, index=None) for voice in self.prompts.list()]

    async def _given(self, names: str) -> Sequence[Voice]:
        voices = self._all_voices()
        given = []
        for name in voice_names(names, "ref_audio") if names.strip() else ():
            listed = next((voice for voice in (*self._prompts(), *voices) if name in names_of(voice)), None)
            voice = listed or await self.voices.find(name)
            if voice is None:
                raise HTTPException(404, str(VoiceUnknown(name, [voice.name for voice in voices], "ref_audio")))
            given.append(voice)
        return given

    def _scene(self, body: GenerateBody) -> str:
        scene = self.scenes.find(body.scene_prompt) if body.scene_prompt else None
        # The default scene may be missing: the client did not ask for it.
        if scene is None and body.scene_prompt and "scene_prompt" in body.model_fields_set:
            known = ", ".join(scene.name for scene in self.scenes.list())
            raise HTTPException(404, f"unknown scene_prompt {body.scene_prompt[:80]!r}; the scenes are: {known}")
        return scene.text if scene else ""


class _HiggsResponse(SpeechResponse):
    """24 kHz PCM of a request, in the dialect's JSON."""

    def __init__(self, dialect: HiggsDialect, request: SpeechRequest, files: AsyncExitStack | None = None) -> None:
        """``files``: closed at the end of the response."""
        timeout_s = dialect.settings.send_timeout_s
        pcm = FORMATS["pcm"].create()
        super().__init__(dialect.service, request, pcm, {}, timeout_s, keep=False, resources=files)
        capabilities = dialect.service.engine.info.capabilities
        self._seed_ignored = request.generation.seed is not None and Capability.SEED not in capabilities

    def facts(self, size: int) -> dict[str, Any]:
        """Return the final fields of both responses; ``size`` is the number of PCM bytes."""
        duration_s = round(size / 2 / PCM_HZ, 3)
        facts = {"sampling_rate": PCM_HZ, "duration": duration_s, "generated_text": self.request.text}
        return facts | ({"seed_ignored": True} if self._seed_ignored else {})


class WholeResponse(_HiggsResponse):
    """One JSON object with a WAV file, written while the stream is read."""

    async def respond(self, stream: SpeechStream, connection: Connection) -> None:
        size = await complete(stream)
        body = {"success": True, "message": DONE_MESSAGE, "audio_base64": "", **self.facts(size)}
        content = json.dumps(body, ensure_ascii=False).encode()
        headers = {"Content-Type": "application/json"}
        await connection.write_json(headers, content, stream, size, wav_header(PCM_HZ, size // 2))


class EventResponse(_HiggsResponse):
    """Server-sent events: progress and audio as it is generated, then the end or an error."""

    async def respond(self, stream: SpeechStream, connection: Connection) -> str | None:
        piece = await stream.buffer.read(0)
        headers = {"Content-Type": f"{sse.MEDIA_TYPE}; charset=utf-8", **sse.HEADERS}
        await self.announce(stream, connection, **headers)
        try:
            await self._events(stream, connection, piece)
        except ReaderTooSlow:
            raise
        except SpeechServerError as error:
            log.warning("event stream failed: %s", error)
            await connection.write(sse.event({"type": "error", "success": False, "message": str(error)}))
            return error.code
        return None

    async def _events(self, stream: SpeechStream, connection: Connection, piece: bytes) -> None:
        position, index = 0, 0
        expected_s = max(estimated_duration_s(self.request.text), 0.1)
        while piece:
            progress = round(min(position / 2 / PCM_HZ / expected_s, 0.99), 3)
            audio = base64.b64encode(piece).decode()
            await connection.write(
                sse.event({"type": "progress", "progress": progress, "message": "音频生成中"})
                + sse.event({"type": "audio", "index": index, "audio_base64": audio, "sampling_rate": PCM_HZ})
            )
            position, index = position + len(piece), index + 1
            piece = await sse.kept_alive(stream.buffer.read(position), connection.write)
        await connection.write(
            sse.event({"type": "progress", "progress": 1.0, "message": DONE_MESSAGE})
            + sse.event({"type": "done", "success": True, **self.facts(position)})
        )
