"""The byte-pair vocabulary of 2.5: the file of ranks, and the special tokens that the file does not list."""

from __future__ import annotations

import base64
import binascii
from pathlib import Path

import tiktoken

LANGUAGES = (
    "en zh de es ru ko fr ja pt tr pl ca nl ar sv it id hi fi vi he uk el ms cs ro da hu ta no th ur hr bg lt la mi ml "
    "cy sk te fa lv bn sr az sl kn et mk br eu is hy ne mn bs kk sq sw gl mr pa si km sn yo so af oc ka be tg sd gu am "
    "yi lo uz fo ht ps tk nn mt sa lb my bo tl mg as tt haw ln ha ba jw su"
)
SPECIAL_NAMES = (
    "endoftext", "startoftranscript", *LANGUAGES.split(),
    "ASR", "AED", "SER", "Speech", "/Speech", "BGM", "/BGM", "Laughter", "/Laughter", "Applause", "/Applause",
    "HAPPY", "SAD", "ANGRY", "NEUTRAL",
    "translate", "transcribe", "startoflm", "startofprev", "nospeech", "notimestamps",
    *(f"SPECIAL_TOKEN_{number}" for number in range(1, 31)),
    "TTS/B", "TTS/O", "TTS/Q", "TTS/A", "TTS/CO", "TTS/CL", "TTS/H",
    *(f"TTS/SP{number:02d}" for number in range(1, 14)),
    *(f"{step * 0.02:.2f}" for step in range(1501)),
)  # fmt: skip
"""Tokens that the vocabulary file does not list; their ids follow those of the file, in this order."""

SPLIT = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
"""GPT-2's pre-tokenisation pattern."""


def read_vocabulary(path: Path) -> tiktoken.Encoding:
    """Read a file with one base64 token and its rank per line, and append the special tokens.

    Raises:
        ValueError: the file has another format.
    """
    try:
        lines = (line.split() for line in path.read_bytes().splitlines() if line)
        ranks = {base64.b64decode(token, validate=True): int(rank) for token, rank in lines}
    except (ValueError, binascii.Error) as error:
        raise ValueError(f"{path} is not a tiktoken vocabulary") from error
    special = {f"<|{name}|>": len(ranks) + index for index, name in enumerate(SPECIAL_NAMES)}
    return tiktoken.Encoding(path.stem, pat_str=SPLIT, mergeable_ranks=ranks, special_tokens=special)
