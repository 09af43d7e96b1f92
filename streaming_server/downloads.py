"""Downloads of model folders from a Hugging Face hub: resumable, with progress, verified by checksum."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path

from streaming_server.errors import SpeechServerError

Report = Callable[[str], None]


class DownloadFailed(SpeechServerError):
    """A model could not be downloaded completely; the message names the repository and the cause."""

    code = "download_failed"


@dataclass(frozen=True, slots=True)
class Part:
    """Files of one hub repository."""

    repository: str
    folder: str = "."
    """Target folder of the repository's root, relative to the model's folder."""
    files: tuple[str, ...] = ("*",)
    """Glob patterns of repository paths; a pattern without ``*`` is a file that must exist."""
    revision: str | None = None
    """Commit; None for the newest."""


@dataclass(frozen=True, slots=True)
class Model:
    """All files that an engine needs."""

    parts: tuple[Part, ...]
    folder: str = "checkpoints"
    start: str = "--model_dir {folder}"
    """The arguments of ``start_api.sh`` that load the model."""
    variants: Mapping[str, tuple[Part, ...]] = field(default_factory=dict)
    """Additional files by variant; the first variant is the default."""

    def parts_of(self, variant: str | None) -> tuple[Part, ...]:
        """Return all files, including those of a variant.

        Raises:
            DownloadFailed: there is no such variant.
        """
        if not self.variants and variant is None:
            return self.parts
        variant = variant or next(iter(self.variants))
        if variant not in self.variants:
            known = ", ".join(self.variants) or "none"
            raise DownloadFailed(f"--variant {variant}: this model has no such variant; it has {known}")
        return *self.parts, *self.variants[variant]


_EXTERNAL = (
    Part("facebook/w2v-bert-2.0", "hf_cache/w2v-bert-2.0", ("config.json", "model.safetensors")),
    Part("funasr/campplus", "hf_cache", ("campplus_cn_common.bin",)),
    Part("nvidia/bigvgan_v2_22khz_80band_256x", "hf_cache/bigvgan", ("config.json", "bigvgan_generator.pt")),
)
_V2_FILES = ("config.yaml", "gpt.pth", "s2mel.pth", "feat1.pt", "feat2.pt", "wav2vec2bert_stats.pt")
_V1_FILES = ("config.yaml", "bpe.model", "gpt.pth", "bigvgan_generator.pth")
_CLASSIFIER = "qwen0.6bemo4-merge/*"

_KOKORO = "onnx-community/Kokoro-82M-v1.0-ONNX"
_KOKORO_MODELS = {"int8": "model_quantized", "fp16": "model_fp16", "fp32": "model"}

_POCKET_REVISIONS = {
    "english": ("db04f0e653473e5c7333c69686ac92b7460b0c1d", "00eac05ed3d16bdc3f6b5d598874019c34a89214"),
    "french": ("3e82814a68665eec246ff649b14c71331f955c06", "8843db76457a91db32077edf8dfcd1c0e3e755fd"),
    "french_24l": ("3e82814a68665eec246ff649b14c71331f955c06", "8843db76457a91db32077edf8dfcd1c0e3e755fd"),
    "german": ("3e82814a68665eec246ff649b14c71331f955c06", "4e1e0a3e611c51c0b4ed8174fc10f32a54644303"),
    "german_24l": ("2dd944b099d06bb9edbd221fef138685711d9bf0", "4e1e0a3e611c51c0b4ed8174fc10f32a54644303"),
    "portuguese": ("3e82814a68665eec246ff649b14c71331f955c06", "4e1e0a3e611c51c0b4ed8174fc10f32a54644303"),
    "portuguese_24l": ("2dd944b099d06bb9edbd221fef138685711d9bf0", "4e1e0a3e611c51c0b4ed8174fc10f32a54644303"),
    "italian": ("3e82814a68665eec246ff649b14c71331f955c06", "4e1e0a3e611c51c0b4ed8174fc10f32a54644303"),
    "italian_24l": ("3e82814a68665eec246ff649b14c71331f955c06", "4e1e0a3e611c51c0b4ed8174fc10f32a54644303"),
    "spanish": ("3e82814a68665eec246ff649b14c71331f955c06", "4e1e0a3e611c51c0b4ed8174fc10f32a54644303"),
    "spanish_24l": ("2dd944b099d06bb9edbd221fef138685711d9bf0", "4e1e0a3e611c51c0b4ed8174fc10f32a54644303"),
    "dutch": ("3e82814a68665eec246ff649b14c71331f955c06", "4e1e0a3e611c51c0b4ed8174fc10f32a54644303"),
    "dutch_24l": ("2dd944b099d06bb9edbd221fef138685711d9bf0", "4e1e0a3e611c51c0b4ed8174fc10f32a54644303"),
}
"""Commits of the weights and of the tokenizer: those that the configurations of pocket-tts 4.0.1 name."""
_POCKET_VOICES = "a7056f505a4a8ca72d8b5fb1440071d6f1a35739"


def _pocket(language: str) -> tuple[Part, ...]:
    weights, tokenizer = _POCKET_REVISIONS[language]
    public, folder = "kyutai/pocket-tts-without-voice-cloning", f"languages/{language}"
    return (
        Part("kyutai/pocket-tts", files=(f"{folder}/model.safetensors",), revision=weights),
        Part(public, files=(f"{folder}/tokenizer.json",), revision=tokenizer),
        Part(public, files=(f"{folder}/embeddings/*.safetensors",), revision=_POCKET_VOICES),
    )


MODELS: Mapping[str, Model] = {
    "indextts-1.5": Model((Part("IndexTeam/IndexTTS-1.5", files=_V1_FILES),)),
    "indextts-1.0": Model((Part("IndexTeam/Index-TTS", files=_V1_FILES),)),
    "indextts-2": Model(
        (
            Part("IndexTeam/IndexTTS-2", files=(*_V2_FILES, "bpe.model", _CLASSIFIER)),
            *_EXTERNAL,
            Part("amphion/MaskGCT", "hf_cache", ("semantic_codec/model.safetensors",)),
        )
    ),
    "indextts-2.5": Model(
        (
            Part(
                "IndexTeam/IndexTTS-2.5",
                files=(*_V2_FILES, "multilingual_zh_ja_yue_char_del.tiktoken", "codec.pth", _CLASSIFIER),
            ),
            *_EXTERNAL,
        )
    ),
    "higgs": Model(
        (
            Part("bosonai/higgs-audio-v2-generation-3B-base", "model"),
            Part("bosonai/higgs-audio-v2-tokenizer", "tokenizer"),
        ),
        folder="checkpoints/higgs-audio-v2",
        start="--model-path {folder}/model --audio-tokenizer-path {folder}/tokenizer",
    ),
    "kokoro": Model(
        (Part(_KOKORO, files=("voices/*.bin",)),),
        folder="checkpoints/kokoro",
        variants={name: (Part(_KOKORO, files=(f"onnx/{file}.onnx",)),) for name, file in _KOKORO_MODELS.items()},
    ),
    "pocket": Model(
        (), folder="checkpoints/pocket", variants={language: _pocket(language) for language in _POCKET_REVISIONS}
    ),
}


def download(parts: Sequence[Part], folder: Path, report: Report) -> None:
    """Download missing or damaged files to ``folder``.

    The next call resumes an interrupted download. As for all clients of the hub, ``HF_ENDPOINT`` names another hub or a
    mirror and ``HF_TOKEN`` an access token.

    Args:
        parts: the files of the model.
        folder: created as needed.
        report: called with one line per repository.

    Raises:
        DownloadFailed: the hub cannot be reached, a file does not exist, or a checksum is wrong.
    """
    endpoint = os.environ.get("HF_ENDPOINT", "")
    if not endpoint:
        os.environ.pop("HF_ENDPOINT", None)  # the client takes an empty value for an address
    elif not endpoint.startswith(("http://", "https://")):
        raise DownloadFailed(f"HF_ENDPOINT={endpoint}: must begin with http:// or https://")
    from huggingface_hub import constants
    from huggingface_hub.errors import GatedRepoError

    for part in parts:
        try:
            _fetch(part, folder / part.folder, report)
        except DownloadFailed:
            raise
        except GatedRepoError as error:
            raise DownloadFailed(
                f"{part.repository}: accept the publisher's terms at {constants.ENDPOINT}/{part.repository}, then run "
                "the same command again with HF_TOKEN set to an access token of that account."
            ) from error
        except Exception as error:  # there is no common base class of what the client raises
            raise DownloadFailed(
                f"{part.repository}: download from {constants.ENDPOINT} failed: {error}. Run the same command again to "
                "resume, or set HF_ENDPOINT to a mirror."
            ) from error


def _fetch(part: Part, folder: Path, report: Report) -> None:
    from huggingface_hub import HfApi, snapshot_download

    report(f"{part.repository} -> {folder}")
    snapshot_download(part.repository, revision=part.revision, local_dir=folder, allow_patterns=list(part.files))
    damaged, missing = _problems(part, folder, HfApi())
    if damaged:
        report(f"{part.repository}: checksum mismatch, downloading again: {', '.join(damaged)}")
        snapshot_download(
            part.repository, revision=part.revision, local_dir=folder, allow_patterns=damaged, force_download=True
        )
        damaged, missing = _problems(part, folder, HfApi())
    if damaged or missing:
        wrong = [f"{name} (wrong checksum)" for name in damaged] + [f"{name} (missing)" for name in missing]
        raise DownloadFailed(f"{part.repository}: incomplete after the download: {', '.join(wrong)}")


def _problems(part: Part, folder: Path, hub: object) -> tuple[list[str], list[str]]:
    """Return the paths that are missing or whose checksums differ from the hub's."""
    found = hub.verify_repo_checksums(part.repository, revision=part.revision, local_dir=folder)  # type: ignore[attr-defined]
    damaged = [problem["path"] for problem in found.mismatches if _wanted(part, problem["path"])]
    missing = [path for path in found.missing_paths if _wanted(part, path)]
    named = [name for name in part.files if "*" not in name]
    return damaged, sorted({*missing, *(name for name in named if not (folder / name).is_file())})


def _wanted(part: Part, path: str) -> bool:
    return any(fnmatch(path, pattern) for pattern in part.files)
