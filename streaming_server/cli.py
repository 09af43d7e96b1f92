"""The command line: ``streaming-server serve | worker | mcp | say | voices | jobs | test | calibrate | download``."""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import sys
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from streaming_server import client, logs
from streaming_server.audio.encoders import AudioEncoder, OggOpusEncoder, PcmEncoder, WavEncoder, complete_header
from streaming_server.domain import SpeechRequest, Voice
from streaming_server.downloads import MODELS, download
from streaming_server.engines import registry
from streaming_server.engines.base import Calibrating
from streaming_server.environment import InvalidSetting, meaning
from streaming_server.errors import (
    DeviceFailed,
    EngineUnavailable,
    InvalidRequest,
    SpeechServerError,
    StorageUnavailable,
    VoiceIndexOutOfRange,
)
from streaming_server.ops.debug import dump_stacks_on_signal
from streaming_server.settings import Settings, warn_of_removed
from streaming_server.speech.voices import VoiceLibrary
from streaming_server.startup import check_addresses, check_recordings, check_writable, version
from streaming_server.text import estimated_duration_s, forbidden_character

if TYPE_CHECKING:  # commands without a database start faster without SQLAlchemy
    from streaming_server.jobs.storage import Storage

CALIBRATION_TEXT = (
    "The first train leaves at six, and whoever wants to see the sea before the others do must not be late for it."
)

_ENCODERS: dict[str, type[AudioEncoder]] = {
    ".ogg": OggOpusEncoder,
    ".opus": OggOpusEncoder,
    ".wav": WavEncoder,
    ".pcm": PcmEncoder,
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status."""
    parser = _parser()
    options = parser.parse_args(arguments)
    try:
        settings = Settings.from_env(os.environ)
        given = {name: value for name in Settings.model_fields if (value := getattr(options, name, None)) is not None}
        chosen = {name: value for name in registry.variables() if (value := getattr(options, name, None)) is not None}
        settings = settings.model_copy(update={**given, "engine_options": {**settings.engine_options, **chosen}})
        status: int = options.command(settings, options)
        return status
    except (InvalidSetting, InvalidRequest, EngineUnavailable) as error:
        print(f"streaming-server: {error}", file=sys.stderr)
        return 2
    except DeviceFailed as error:
        print(f"streaming-server: {error}", file=sys.stderr)
        return DeviceFailed.exit_status
    except (SpeechServerError, OSError) as error:
        print(f"streaming-server: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="streaming-server", description="A streaming text-to-speech server.", allow_abbrev=False
    )
    parser.add_argument("--version", action=_Version, nargs=0, help="print the version and exit")
    commands = parser.add_subparsers(required=True, metavar="command")

    model = argparse.ArgumentParser(add_help=False)
    _add_engine_arguments(model)

    serve = argparse.ArgumentParser(add_help=False, parents=[model])
    serve.add_argument("--host", help="address to listen on (HOST, else 0.0.0.0)")
    serve.add_argument("--port", type=_port, help="port to listen on (PORT, else 8000)")
    for flag, sentence in _REFUSED.items():
        serve.add_argument(flag, action=_Refuse, nargs=0, sentence=sentence, help=argparse.SUPPRESS)
    serve.add_argument("--workers", type=_one, help="must be 1: a server uses one device")
    serve.add_argument("--max-new-tokens", type=_tokens, help="maximum number of audio codes per piece of text (2048)")
    serve.add_argument("--voice-prompts-dir", type=Path, help="folder of additional voices (examples/voice_prompts)")
    serve.add_argument("--scene-prompts-dir", type=Path, help="folder of scenes (examples/scene_prompts)")
    serve.add_argument("--reload", action="store_true", help="restart when the server's code changes, for development")
    for name, command, purpose in (
        ("serve", _serve, "start the HTTP server"),
        ("extras", _extras, "print the extras that `serve` requires with these arguments, for scripts/install"),
    ):
        starting = commands.add_parser(name, parents=[serve], allow_abbrev=False, help=purpose)
        starting.set_defaults(command=command)

    say = commands.add_parser("say", parents=[model], allow_abbrev=False, help="synthesise a text to a file")
    say.add_argument("text", help="the text; - reads standard input")
    say.add_argument(
        "-o", "--output", required=True, help=f"output file ({', '.join(_ENCODERS)}), or - for Ogg on standard output"
    )
    say.add_argument("-v", "--voice", type=int, default=0, help="index of a reference recording, see `voices` (0)")
    say.set_defaults(command=_say)

    mcp = commands.add_parser(
        "mcp", parents=[model], allow_abbrev=False, help="serve the Model Context Protocol on standard input and output"
    )
    mcp.add_argument("--output", type=Path, default=Path(), help="folder of the audio files (the current folder)")
    mcp.set_defaults(command=_mcp)

    worker = commands.add_parser(
        "worker", parents=[model], allow_abbrev=False, help="process tasks from CELERY_BROKER_URL"
    )
    worker.set_defaults(command=_worker)
    calibrate = commands.add_parser(
        "calibrate",
        parents=[model],
        allow_abbrev=False,
        help="measure the streaming modes of IndexTTS and recommend settings",
    )
    calibrate.add_argument("--text", default=CALIBRATION_TEXT, help="text to synthesise, a sentence of several seconds")
    calibrate.add_argument(
        "-v", "--voice", type=int, default=0, help="index of a reference recording, see `voices` (0)"
    )
    calibrate.set_defaults(command=_calibrate)

    get = commands.add_parser("download", allow_abbrev=False, help="download a model with all required files")
    get.add_argument("model", choices=list(MODELS), help="the model")
    get.add_argument("--variant", help="kokoro: int8 (default), fp16 or fp32; pocket: a language (default: english)")
    get.add_argument("--dir", type=Path, help="target folder (a folder in checkpoints)")
    get.set_defaults(command=_download)

    voices = commands.add_parser("voices", help="list the reference recordings")
    voices.set_defaults(command=_voices)

    jobs = commands.add_parser("jobs", allow_abbrev=False, help="list, cancel or delete tasks")
    what = jobs.add_mutually_exclusive_group()
    what.add_argument("--cancel", metavar="ID", nargs="+", help="cancel these pending or running tasks")
    what.add_argument("--clear", action="store_true", help="delete all finished tasks and their audio")
    jobs.add_argument("--limit", type=_count, default=50, help="maximum number of tasks to list, newest first (50)")
    jobs.set_defaults(command=_jobs)
    test = commands.add_parser("test", allow_abbrev=False, help="test a running server through its HiggsAudio dialect")
    test.add_argument("--test", choices=list(client.TESTS), help="run only this test (all)")
    test.add_argument("--url", default="http://localhost:8000", help="URL of the server (http://localhost:8000)")
    test.add_argument("--api-key", help="API key of the server (the first of API_KEYS, if any)")
    test.set_defaults(command=_test)
    return parser


def _add_engine_arguments(parser: argparse.ArgumentParser) -> None:
    """Add ``--engine`` and a flag for each option of each engine, stored under the name of its variable."""
    titles = ", ".join(f"{spec.name}: {spec.title}" for spec in registry.engines().values())
    parser.add_argument(
        "--engine", choices=registry.names(), help=f"the engine (ENGINE, else auto); {titles}".replace("%", "%%")
    )
    precision = parser.add_mutually_exclusive_group()
    for name in ("fp16", "bf16", "fp32"):
        precision.add_argument(
            f"--{name}", dest="PRECISION", action="store_const", const=name, help=f"compute in {name}"
        )
    for variable, option in registry.variables().items():
        flag = "--" + variable.lower()
        text = f"{meaning(option)} ({variable}, else {'none' if option.default is None else option.default})"
        (precision if variable == "PRECISION" else parser).add_argument(
            *dict.fromkeys([flag.replace("_", "-"), flag]),
            dest=variable,
            metavar="VALUE",
            help=text.replace("%", "%%"),
        )


_REFUSED = {
    "--deepspeed": "DeepSpeed is not supported; use --fp16 or --bf16 for speed",
    "--cuda_kernel": "custom CUDA kernels are not supported; the runtime always uses CUDA graphs",
}


class _Version(argparse.Action):
    """Prints the version, which is looked up only then."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        print(version())
        parser.exit()


class _Refuse(argparse.Action):
    """A flag of other servers that is not supported; the error names the alternative."""

    def __init__(self, *args: Any, sentence: str, **options: Any) -> None:
        super().__init__(*args, **options)
        self._sentence = sentence

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        parser.error(f"{self.option_strings[0]}: {self._sentence}")


def _one(text: str) -> int:
    if text != "1":
        raise argparse.ArgumentTypeError(
            f"must be 1, not {text}: a server uses one device; run one server per GPU behind a load balancer"
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


def _tokens(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= 4096:
        raise argparse.ArgumentTypeError(f"{text} is not from 1 to 4096")
    return int(text)


def _serve(settings: Settings, options: argparse.Namespace) -> int:
    from streaming_server.server import serve

    optional = {"AGENT_PORT": settings.agent_port, "WYOMING_PORT": settings.wyoming_port}
    check_addresses(settings.host, {"PORT": settings.port} | {name: port for name, port in optional.items() if port})
    check_writable(settings.data_dir)
    check_recordings(settings.reference_audio_dir)
    serve(settings, reload=options.reload)
    return 0


def _extras(settings: Settings, options: argparse.Namespace) -> int:
    spec = registry.choose(settings.engine, settings.engine_options).spec
    needed = {
        **dict.fromkeys((spec.extra, *spec.companions), True),
        "celery": bool(settings.celery_broker_url),
        "postgresql": settings.database_url.startswith("postgres"),
        "wyoming": bool(settings.wyoming_port),
        "mcp": settings.mcp,
        "s3": settings.files_url.startswith("s3:"),
    }
    print(*(extra for extra, is_needed in needed.items() if extra and is_needed))
    return 0


def _mcp(settings: Settings, options: argparse.Namespace) -> int:
    from streaming_server.app import create_requests
    from streaming_server.components import create_worker

    try:
        from streaming_server.mcp.stdio import run_stdio
    except ModuleNotFoundError as error:
        raise EngineUnavailable(f"mcp requires {error.name}: run scripts/install mcp") from error
    if not options.output.is_dir():
        raise InvalidSetting(f"--output {options.output}: the folder does not exist")
    check_writable(settings.data_dir)
    logging.basicConfig(level=logging.WARNING)  # to standard error: standard output belongs to the protocol

    async def run() -> None:
        worker = create_worker(settings)
        try:
            await worker.service.warm()
            number = await run_stdio(create_requests(settings, worker), worker.storage, options.output)
        finally:
            await worker.aclose()
        if number:
            os._exit(128 + number)  # a thread waits for input

    asyncio.run(run())
    return 0


def _worker(settings: Settings, options: argparse.Namespace) -> int:
    if not settings.celery_broker_url:
        raise StorageUnavailable("CELERY_BROKER_URL is not set: without a broker the server processes the tasks")
    try:
        from streaming_server.api.workflows.messages import Messages
        from streaming_server.scale.celery_worker import run_worker
    except ModuleNotFoundError as error:
        raise StorageUnavailable(f"a worker requires {error.name}: run scripts/install celery") from error
    sys.setswitchinterval(0.0005)
    check_writable(settings.data_dir)
    check_recordings(settings.reference_audio_dir)
    logs.configure(form=settings.log_format, level=settings.log_level)
    warn_of_removed(os.environ)
    dump_stacks_on_signal()
    run_worker(settings, partial(Messages.for_worker, max_characters=settings.max_text_characters))
    return 0


def _say(settings: Settings, options: argparse.Namespace) -> int:
    logging.basicConfig(level=logging.WARNING)
    try:
        text = sys.stdin.buffer.read().decode() if options.text == "-" else options.text
    except UnicodeDecodeError as error:
        raise InvalidRequest(f"text is not valid UTF-8 at byte {error.start}", "text") from None
    if not text.strip():
        raise InvalidRequest("text is empty", "text")
    if found := forbidden_character(text):
        raise InvalidRequest(f"text contains {found[0]} at position {found[1]}, which is not allowed", "text")
    suffix = ".ogg" if options.output == "-" else Path(options.output).suffix.lower()
    if suffix not in _ENCODERS:
        raise InvalidRequest(f"{options.output}: the suffix must be one of {', '.join(_ENCODERS)}", "output")
    request = SpeechRequest(text, _voice(settings, options.voice))
    asyncio.run(_write_speech(settings, request, _ENCODERS[suffix](), options.output))
    return 0


async def _write_speech(settings: Settings, request: SpeechRequest, encoder: AudioEncoder, output: str) -> None:
    from streaming_server.components import create_service

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
                if partial and (header := complete_header(encoder, position)):
                    sink.seek(0)
                    sink.write(header)
                progress.total = progress.n
                progress.refresh()
        if partial:
            partial.replace(output)
    finally:
        if partial:
            partial.unlink(missing_ok=True)
        await service.aclose()


def _voice(settings: Settings, index: int) -> Voice:
    check_recordings(settings.reference_audio_dir)
    library = VoiceLibrary(settings.reference_audio_dir)
    try:
        return library.get(index)
    except VoiceIndexOutOfRange:
        count = len(library.list())
        folder = settings.reference_audio_dir
        valid = f"from 0 to {count - 1}" if count else f"none: REFERENCE_AUDIO_DIR={folder} has no recordings"
        raise InvalidSetting(f"--voice {index}: the voice does not exist; valid: {valid}") from None


def _calibrate(settings: Settings, options: argparse.Namespace) -> int:
    logging.basicConfig(level=logging.WARNING)
    voice = _voice(settings, options.voice)
    asyncio.run(_calibrate_modes(settings, voice, options.text))
    return 0


async def _calibrate_modes(settings: Settings, voice: Voice, text: str) -> None:
    engine = registry.create_engine(settings.engine, settings.engine_options)
    try:
        if not isinstance(engine, Calibrating):
            raise EngineUnavailable("calibrate requires an IndexTTS model; set --model-dir to its folder")
        await engine.warm()
        advice = await engine.calibrate(voice.path, text, _print_now)
        print(f"\n{advice}")
    finally:
        await engine.aclose()


def _print_now(line: str) -> None:
    print(line, flush=True)


def _download(settings: Settings, options: argparse.Namespace) -> int:
    model = MODELS[options.model]
    folder = options.dir or Path(model.folder)
    download(model.parts_of(options.variant), folder, lambda line: print(line, flush=True))
    print(f"{options.model} is complete; start the server with: ./start_api.sh {model.start.format(folder=folder)}")
    return 0


def _voices(settings: Settings, options: argparse.Namespace) -> int:
    check_recordings(settings.reference_audio_dir)
    voices = VoiceLibrary(settings.reference_audio_dir).list()
    for voice in voices:
        print(f"{voice.index:>3}  {voice.name}  {voice.path}")
    if not voices:
        print(f"no recordings in {settings.reference_audio_dir}", file=sys.stderr)
    return 0


def _jobs(settings: Settings, options: argparse.Namespace) -> int:
    from streaming_server.components import create_storage

    storage = create_storage(settings)
    try:
        if options.cancel:
            return max(_cancel(storage, job_id) for job_id in options.cancel)
        if options.clear:
            print(f"{storage.clear()} tasks deleted")
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
    print(f"{job_id}  {job.state if job else 'task not found'}", file=sys.stdout if job else sys.stderr)
    return 0 if job else 1


def _test(settings: Settings, options: argparse.Namespace) -> int:
    server = client.Server(options.url.rstrip("/"), options.api_key or next(iter(settings.api_keys), ""))
    for name in [options.test] if options.test else client.TESTS:
        for line in client.run(name, server):
            print(line)
    return 0


if __name__ == "__main__":
    sys.exit(main())
