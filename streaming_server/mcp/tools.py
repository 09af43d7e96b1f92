"""The tools, whatever they are called through: ``speak``, ``list_voices`` and ``clone_voice``."""

from __future__ import annotations

import asyncio
import itertools
import os
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Annotated, Any, Literal

import anyio
from mcp.server.mcpserver import Context, MCPServer
from mcp.server.mcpserver.exceptions import ToolError, UnexpectedToolError
from pydantic import BaseModel, Field, ValidationError
from starlette.requests import Request

from streaming_server import __version__
from streaming_server.api.openai.voice_schemas import VoiceTitle
from streaming_server.api.openai.voices import VoiceNames, add_voice
from streaming_server.api.record import DISCONNECTED, RequestRecord
from streaming_server.api.references import Reference
from streaming_server.api.requests import Description, Name, RequestBuilder
from streaming_server.audio.encoders import FORMATS, complete_header
from streaming_server.audio.stretch import SPEED_MAX, SPEED_MIN
from streaming_server.domain import Capability, Emotion, Generation, SpeechRequest
from streaming_server.errors import SpeechServerError
from streaming_server.jobs.file_store import storage_errors
from streaming_server.jobs.storage import Storage

SUFFIXES = {"mp3": "mp3", "wav": "wav", "opus": "ogg", "flac": "flac"}
"""By the name of a format, that of its encoder and of its files."""
WAIT_REPORT_S = 10.0
"""Time between two reports of a call whose speech has not begun."""
_RECORDING = "A recording: base64, a data: URL, a URL the server allows, or (over standard input) a file's path"
Deliver = Callable[[Path, str, Request | None], Awaitable[str]]
"""Moves a finished file, with a suffix, to where its caller can get it; returns its URL or path. The request is that
of a call over HTTP."""


class Speech(BaseModel):
    """Synthesised speech."""

    audio: str
    """URL or path of the audio file."""
    media_type: str
    duration_s: float
    voice: str
    ignored_settings: list[str]
    """What the loaded engine cannot honour."""


class ListedVoice(BaseModel):
    name: str
    title: str
    languages: list[str]


class ClonedVoice(BaseModel):
    id: str
    name: str
    is_cloned: bool
    """False if the loaded engine does not clone; it answers with its own voice nearest in pitch."""


def create_tools(requests: RequestBuilder, storage: Storage, deliver: Deliver, *, reads_files: bool) -> MCPServer:
    """The server of the tools.

    Args:
        requests: builds the requests.
        storage: keeps voices, and audio until it is delivered.
        deliver: as `Deliver`.
        reads_files: ``clone_voice`` takes the path of a file, since the caller is a user of this machine.
    """
    server: MCPServer = _Server("streaming-server", version=__version__)
    tools = _Tools(requests, storage, deliver, reads_files=reads_files)
    server.add_tool(tools.speak)
    server.add_tool(tools.list_voices)
    server.add_tool(tools.clone_voice)
    return server


class _Server(MCPServer):
    async def call_tool(self, name: str, arguments: dict[str, Any], context: Context | None = None) -> Any:
        """As the base class, whose error for invalid arguments is Pydantic's report with its types and links."""
        try:
            return await super().call_tool(name, arguments, context)
        except ToolError as error:
            cause = error.__cause__
            if isinstance(error, UnexpectedToolError) or not isinstance(cause, ValidationError):
                raise
            problems = [f"{'.'.join(map(str, problem['loc']))}: {problem['msg']}" for problem in cause.errors()]
            raise ToolError(f"Error executing tool {name}: {'; '.join(problems)}") from cause


class _Tools:
    def __init__(self, requests: RequestBuilder, storage: Storage, deliver: Deliver, *, reads_files: bool) -> None:
        self._requests = requests
        self._storage = storage
        self._deliver = deliver
        self._reads_files = reads_files

    async def speak(
        self,
        ctx: Context,
        text: Annotated[str, Field(description="The text to say; [pause 0.5s] in it is silence")],
        voice: Annotated[Name, Field(description="A name of list_voices")] = "alloy",
        audio_format: Annotated[Literal["mp3", "wav", "opus", "flac"], Field(description="Format of the file")] = "mp3",
        speed: Annotated[float, Field(ge=SPEED_MIN, le=SPEED_MAX, description="Speaking rate")] = 1.0,
        instructions: Annotated[Description | None, Field(description="An emotion or style in words")] = None,
        ssml: Annotated[bool, Field(description="The text is SSML")] = False,
        language: Annotated[Name, Field(description="Language tag, if the text does not show it")] = "",
    ) -> Speech:
        """Say a text aloud: synthesise it to an audio file and return where the file is."""
        request = _request(ctx)
        try:
            find = VoiceNames(self._requests.voices).find
            speech = self._requests.build(
                await self._requests.ssml(text, find) if ssml else text,
                [await find(voice)],
                Generation(),
                None,
                with_tags=True,
                emotion=Emotion(text=instructions) if (instructions or "").strip() else None,
                speed=speed,
                language=language,
            )
            media_type, duration_s, audio = await self._spoken(speech, SUFFIXES[audio_format], ctx)
        except SpeechServerError as error:
            _note(request, error.code)
            raise ToolError(str(error)) from None
        ignored = self._requests.ignored(speech)
        return Speech(
            audio=audio,
            media_type=media_type,
            duration_s=round(duration_s, 3),
            voice=voice,
            ignored_settings=ignored,
        )

    async def list_voices(self) -> list[ListedVoice]:
        """List the voices that speak can use."""
        voices = self._requests.voices
        uploaded = {voice.title: voice for voice in await voices.uploaded()}
        known = {voice.name: voice for voice in voices.all()} | uploaded
        names = [*VoiceNames(voices).shipped(), *uploaded]
        return [
            ListedVoice(
                name=name,
                title=known[name].title or name if name in known else name.capitalize(),
                languages=list(known[name].languages) if name in known else [],
            )
            for name in names
        ]

    async def clone_voice(
        self,
        ctx: Context,
        name: Annotated[VoiceTitle, Field(description="The name of the new voice")],
        audio: Annotated[Reference, Field(description=_RECORDING)],
        consent: Annotated[str, Field(min_length=1, max_length=1024, description="How the speaker has consented")],
        transcript: Annotated[Description | None, Field(description="What the recording says")] = None,
    ) -> ClonedVoice:
        """Add a voice from a recording; speak can use it at once by its name."""
        try:
            said = (transcript or "").strip()
            # pathlib's own is_file raises an OSError for a name as long as a recording in base64
            if self._reads_files and await anyio.to_thread.run_sync(os.path.isfile, audio):
                stored = await add_voice(self._requests.voices, self._storage, Path(audio), name, consent, said)
            else:
                async with self._requests.references.voice(audio, field="audio") as voice:
                    stored = await add_voice(self._requests.voices, self._storage, voice.path, name, consent, said)
        except SpeechServerError as error:
            _note(_request(ctx), error.code)
            raise ToolError(str(error)) from None
        is_cloned = Capability.VOICE_CLONING in self._requests.service.engine.info.capabilities
        return ClonedVoice(id=stored.id, name=stored.name, is_cloned=is_cloned)

    async def _spoken(self, speech: SpeechRequest, suffix: str, ctx: Context) -> tuple[str, float, str]:
        """Media type, length and place of the audio.

        A caller that asks for progress gets the seconds of speech so far, about once a second of speech, and a sign of
        life while there is none; many clients give up on a call that has been silent for a minute.

        Raises:
            SpeechServerError: it cannot be made or stored.
        """
        request = _request(ctx)
        if request is not None:
            record = RequestRecord.of(request.scope)
            record.voice, record.characters = speech.voice.name, len(speech.text)
        path, encoder = self._storage.scratch.new(), FORMATS[suffix].create()
        waiting = asyncio.create_task(_report_wait(ctx))
        try:
            async with self._requests.service.open(speech, encoder) as stream:
                position, reported_s = 0, 0.0
                try:
                    with storage_errors():
                        async with await anyio.open_file(path, "xb") as file:
                            while piece := await stream.buffer.read(position):
                                await file.write(piece)
                                position += len(piece)
                                waiting.cancel()
                                if stream.duration_s >= reported_s + 1:
                                    reported_s = round(stream.duration_s, 3)
                                    await ctx.report_progress(reported_s, message=f"{reported_s:.0f} s of speech")
                            if header := complete_header(encoder, position):
                                await file.seek(0)
                                await file.write(header)
                finally:
                    if request is not None:
                        record.add(stream.stats)
            return stream.media_type, stream.stats.audio_s, await self._deliver(path, suffix, request)
        except asyncio.CancelledError:  # also at a shutdown, which the middleware then records
            _note(request, DISCONNECTED)
            raise
        finally:
            waiting.cancel()
            self._storage.scratch.remove(path)


async def _report_wait(ctx: Context) -> None:
    """Report that a call waits until this is cancelled, by values that increase, as they must, and stay below one."""
    for count in itertools.count(1):
        await asyncio.sleep(WAIT_REPORT_S)
        await ctx.report_progress(count / 1000, message="waiting for the first audio")


def _request(ctx: Context) -> Request | None:
    """The HTTP request of a call, if it is one."""
    request = ctx.request_context.request
    return request if isinstance(request, Request) else None


def _note(request: Request | None, outcome: str) -> None:
    """Record the outcome of a call that fails or is cut off: its HTTP status is 200."""
    if request is not None:
        RequestRecord.of(request.scope).outcome = outcome
