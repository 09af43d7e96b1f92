"""The command line: ``streaming-server serve | say | voices | jobs``.

Knows arguments and the terminal; what it starts is built by `app`.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from tqdm import tqdm

from streaming_server import __version__, logs
from streaming_server.app import create_service, create_storage
from streaming_server.audio.encoders import AudioEncoder, OggOpusEncoder, PcmEncoder, WavEncoder
from streaming_server.core.storage import Storage
from streaming_server.core.voices import VoiceLibrary
from streaming_server.domain import SpeechRequest
from streaming_server.errors import InvalidRequest, SpeechServerError
from streaming_server.settings import Settings
from streaming_server.text import estimated_duration_s, forbidden_character

_ENCODERS: dict[str, type[AudioEncoder]] = {
    ".ogg": OggOpusEncoder,
    ".opus": OggOpusEncoder,
    ".wav": WavEncoder,
    ".pcm": PcmEncoder,
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; the exit status."""
    parser = _parser()
    options = parser.parse_args(arguments)
    try:
        settings = Settings.from_env(os.environ)
        given = {
            item.name: value for item in fields(Settings) if (value := getattr(options, item.name, None)) is not None
        }
        status: int = options.command(replace(settings, **given), options)
        return status
    except (SpeechServerError, OSError) as error:
        print(f"streaming-server: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="streaming-server", description="A streaming text-to-speech server.", allow_abbrev=False
    )
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(required=True, metavar="command")

    model = argparse.ArgumentParser(add_help=False)
    model.add_argument("--engine", choices=["auto", "espeak", "indextts"], help="what speaks (ENGINE, else auto)")
    model.add_argument("--model_dir", "--model-dir", type=Path, help="the model's folder (MODEL_DIR, else checkpoints)")
    model.add_argument(
        "--device", choices=["auto", "cuda", "mps", "cpu"], help="where the model runs (DEVICE, else auto)"
    )
    precision = model.add_mutually_exclusive_group()
    for name in ("fp16", "bf16", "fp32"):
        precision.add_argument(
            f"--{name}", dest="precision", action="store_const", const=name, help=f"compute in {name}"
        )

    serve = commands.add_parser("serve", parents=[model], allow_abbrev=False, help="start the HTTP server")
    serve.add_argument("--host", help="address to listen on (HOST, else 0.0.0.0)")
    serve.add_argument("--port", type=_port, help="port to listen on (PORT, else 8000)")
    for flag, sentence in _REFUSED.items():
        serve.add_argument(flag, action=_Refuse, nargs=0, sentence=sentence, help=argparse.SUPPRESS)
    serve.add_argument("--workers", type=_one, help="1: one server serves one device")
    serve.set_defaults(command=_serve)

    say = commands.add_parser("say", parents=[model], allow_abbrev=False, help="speak a text into a file")
    say.add_argument("text", help="what to say; - reads standard input")
    say.add_argument(
        "-o", "--output", required=True, help=f"a file ({', '.join(_ENCODERS)}), or - for Ogg on standard output"
    )
    say.add_argument("-v", "--voice", type=int, default=0, help="index of a reference recording, see `voices` (0)")
    say.set_defaults(command=_say)

    voices = commands.add_parser("voices", help="list the reference recordings")
    voices.set_defaults(command=_voices)

    jobs = commands.add_parser("jobs", allow_abbrev=False, help="list, cancel or clear the tasks")
    what = jobs.add_mutually_exclusive_group()
    what.add_argument("--cancel", metavar="ID", nargs="+", help="end these, pending or running")
    what.add_argument("--clear", action="store_true", help="forget all that have ended, and their audio")
    jobs.add_argument("--limit", type=_count, default=50, help="most to list, the newest first (50)")
    jobs.set_defaults(command=_jobs)
    return parser


_REFUSED = {
    "--deepspeed": "there is no DeepSpeed in here; --fp16 or --bf16 makes a model faster",
    "--cuda_kernel": "the runtime records its own CUDA graphs, and there is no other kernel to choose",
    "--reload": "a server that starts anew would load its model anew; restart it, or let `watchfiles` do so",
}


class _Refuse(argparse.Action):
    """A flag of other servers that means nothing here, and says what to use."""

    def __init__(self, *args: Any, sentence: str, **options: Any) -> None:
        super().__init__(*args, **options)
        self._sentence = sentence

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        parser.error(f"{self.option_strings[0]}: {self._sentence}")


def _one(text: str) -> int:
    if text != "1":
        raise argparse.ArgumentTypeError(
            f"{text} is not possible, as a server serves one device: run one server a GPU behind a balancer"
        )
    return 1


def _count(text: str) -> int:
    if not text.isdecimal() or not 0 < int(text) <= 1_000_000:
        raise argparse.ArgumentTypeError(f"{text} is not from 1 to 1000000")
    return int(text)


def _port(text: str) -> int:
    if not text.isdecimal() or int(text) > 65535:
        raise argparse.ArgumentTypeError(f"{text} is not from 0 to 65535")
    return int(text)


def _serve(settings: Settings, options: argparse.Namespace) -> int:
    from streaming_server.server import serve

    sys.setswitchinterval(0.0005)
    logs.configure()
    serve(settings)
    return 0


def _say(settings: Settings, options: argparse.Namespace) -> int:
    logging.basicConfig(level=logging.WARNING)
    text = sys.stdin.read() if options.text == "-" else options.text
    if not text.strip():
        raise InvalidRequest("there is no text to say", "text")
    if found := forbidden_character(text):
        raise InvalidRequest(f"the text has {found[0]} at position {found[1]}, which cannot be spoken", "text")
    suffix = ".ogg" if options.output == "-" else Path(options.output).suffix.lower()
    if suffix not in _ENCODERS:
        raise InvalidRequest(f"{options.output}: the file must end in one of {', '.join(_ENCODERS)}", "output")
    request = SpeechRequest(text, VoiceLibrary(settings.reference_audio_dir).get(options.voice))
    asyncio.run(_write_speech(settings, request, _ENCODERS[suffix](), options.output))
    return 0


async def _write_speech(settings: Settings, request: SpeechRequest, encoder: AudioEncoder, output: str) -> None:
    service = create_service(settings)
    partial = None if output == "-" else Path(output + ".part")
    try:
        await service.warm()
        with (
            tqdm(total=round(estimated_duration_s(request.text), 1), unit="s", desc="speech") as progress,
            partial.open("wb") if partial else os.fdopen(sys.stdout.fileno(), "wb", closefd=False) as sink,
        ):
            async with service.open(request, encoder) as stream:
                position = 0
                while piece := await stream.buffer.read(position):
                    sink.write(piece)
                    position += len(piece)
                    progress.update(round(stream.stats.audio_s, 1) - progress.n)
                progress.total = progress.n
                progress.refresh()
        if partial:
            partial.replace(output)
    finally:
        if partial:
            partial.unlink(missing_ok=True)
        await service.aclose()


def _voices(settings: Settings, options: argparse.Namespace) -> int:
    voices = VoiceLibrary(settings.reference_audio_dir).list()
    for voice in voices:
        print(f"{voice.index:>3}  {voice.name}  {voice.path}")
    if not voices:
        print(f"no recordings in {settings.reference_audio_dir}", file=sys.stderr)
    return 0


def _jobs(settings: Settings, options: argparse.Namespace) -> int:
    storage = create_storage(settings)
    try:
        if options.cancel:
            return max(_cancel(storage, job_id) for job_id in options.cancel)
        if options.clear:
            print(f"{storage.clear()} forgotten")
            return 0
        jobs, total = storage.jobs.page(options.limit)
        for job in jobs:
            began = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(job.created_s))
            print(f"{job.id}  {job.state:<9}  {job.progress:>4.0%}  {began}  {job.message}")
        print(f"{len(jobs)} of {total}", file=sys.stderr)
        return 0
    finally:
        storage.close()


def _cancel(storage: Storage, job_id: str) -> int:
    job = storage.jobs.cancel(job_id)
    print(f"{job_id}  {job.state if job else 'there is no such task'}", file=sys.stdout if job else sys.stderr)
    return 0 if job else 1


if __name__ == "__main__":
    sys.exit(main())
