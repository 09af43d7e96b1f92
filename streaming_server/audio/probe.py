"""Checks that a file is a complete recording of an allowed format, by decoding all of it, and measures its length."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import BinaryIO

import av
from av.codec import Codec
from av.codec.codec import UnknownCodecError
from av.container import InputContainer

from streaming_server.audio.pcm import amplitude_problem
from streaming_server.errors import RecordingRefused

FORMATS: Mapping[str, str] = {
    "wav": "wav",
    "mp3": "mp3",
    "mov,mp4,m4a,3gp,3g2,mj2": "m4a",
    "flac": "flac",
    "ogg": "ogg",
    "matroska,webm": "webm",
    "aac": "aac",
}
"""Our names of the formats, by FFmpeg's."""
ALL_FORMATS = tuple(FORMATS.values())
BASIC_FORMATS = ALL_FORMATS[:4]
"""Formats whose files show that they are complete."""


def _audio_decoders() -> Iterator[str]:
    for name in sorted(av.codecs_available):
        with suppress(UnknownCodecError):  # FFmpeg only encodes it
            if Codec(name, "r").type == "audio":
                yield name


NO_PICTURES = {"codec_whitelist": ",".join(_audio_decoders())}
"""Options with which FFmpeg decodes no cover picture: a small compressed one can take any amount of memory."""
RATES_HZ = (4000, 384_000)
_MISSING_S = 0.1
"""Allowed difference from the declared length: lossy formats round to their frames."""
_MAX_CHUNKS = 1000
_MAX_CHANNELS = 8
_FLOAT_FORMATS = {"flt", "fltp", "dbl", "dblp"}
"""FFmpeg's names of the sample formats that can hold more than full scale, and what is not a number."""
_UNKNOWN_SIZES = {0, 0xFFFFFFFF}
"""Length in the header of a WAV file that was written as a stream."""


@dataclass(frozen=True, slots=True)
class Recording:
    """The contents of a recording."""

    format: str
    """One of `ALL_FORMATS`."""
    rate_hz: int
    duration_s: float


def probe(file: BinaryIO, longest_s: float, formats: Sequence[str] = ALL_FORMATS) -> Recording:
    """Decode a file to its end, keeping nothing.

    FFmpeg expands the sample table of an MP4 file when it opens it, to as much memory as the file declares, and may
    crash on crafted content. What a client sent is therefore decoded by `jobs.examiner.Examiner` first.

    Args:
        file: its content.
        longest_s: longest duration; decoding stops there, however far a small file would expand.
        formats: the formats that are allowed.

    Raises:
        RecordingRefused: no such format, damaged, cut off (which an MP3 without an index, Ogg, WebM and AAC do not
            show), empty or too long, with samples that are not finite or far beyond full scale, or too large for the
            memory; the sentence says which.
    """
    demuxers = ",".join(name.partition(",")[0] for name, known in FORMATS.items() if known in formats)
    # Only these formats are tried, without protocols: others, such as playlists, would open further files and hosts.
    try:
        with av.open(file, "r", options={"format_whitelist": demuxers} | NO_PICTURES) as container:
            recording = _decoded(container, longest_s)
    except MemoryError:
        raise RecordingRefused("the file needs too much memory to be decoded") from None
    except (av.FFmpegError, ValueError):
        allowed = f"{', '.join(formats[:-1])} or {formats[-1]}"
        raise RecordingRefused(f"the file is not a recording in {allowed}, or it is damaged") from None
    if recording.format == "wav" and (missing := _missing_bytes(file)):
        raise RecordingRefused(f"the file is cut off: {missing} bytes are missing")
    return recording


def _missing_bytes(file: BinaryIO) -> int:
    """The number of sample bytes that a WAV file declares but lacks; FFmpeg ignores the difference."""
    size = file.seek(0, 2)
    position = 12
    for _ in range(_MAX_CHUNKS):
        if position + 8 > size:
            break
        file.seek(position)
        name, length = struct.unpack("<4sI", file.read(8))
        if name == b"data":
            return 0 if length in _UNKNOWN_SIZES else max(0, position + 8 + length - size)
        position += 8 + length + length % 2
    return 0


def _decoded(container: InputContainer, longest_s: float) -> Recording:
    cover = av.stream.Disposition.attached_pic
    if len(container.streams.audio) != 1 or not all(video.disposition & cover for video in container.streams.video):
        raise RecordingRefused("the file is not a recording: one audio track and no video are needed")
    stream = container.streams.audio[0]
    is_flac = container.format.name == "flac"
    if is_flac:  # a frame whose checksum does not fit is then left out, and is missed at the end
        stream.codec_context.options = {"err_detect": "crccheck+explode"}
    rate_hz = getattr(stream, "rate", 0)  # one that nothing here decodes has none
    if not rate_hz:
        raise RecordingRefused("the file is in a coding that cannot be decoded")
    if stream.channels > _MAX_CHANNELS:
        raise RecordingRefused(f"the recording has {stream.channels} channels; at most {_MAX_CHANNELS} are allowed")
    if not RATES_HZ[0] <= rate_hz <= RATES_HZ[1]:
        raise RecordingRefused(f"the sample rate is {rate_hz} Hz; {RATES_HZ[0]} to {RATES_HZ[1]} are allowed")
    announced_s = float(stream.duration * stream.time_base) if stream.duration and stream.time_base else 0.0
    samples = 0
    for frame in container.decode(stream):
        samples += frame.samples
        if samples > longest_s * rate_hz:
            raise RecordingRefused(f"the recording is longer than {longest_s:g} s")
        if frame.format.name in _FLOAT_FORMATS and (problem := amplitude_problem(frame.to_ndarray())):
            raise RecordingRefused(f"the recording {problem}")
    duration_s = samples / rate_hz
    if not samples:
        raise RecordingRefused("the recording is empty")
    if duration_s < announced_s - (1 / rate_hz if is_flac else _MISSING_S):
        message = f"the file is cut off or damaged: {duration_s:.2f} of {announced_s:.2f} s are there"
        raise RecordingRefused(message)
    return Recording(FORMATS[container.format.name], rate_hz, duration_s)
