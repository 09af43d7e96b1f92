"""The files of a Pocket TTS model: one folder ``languages/NAME`` per language, as on the hub.

It holds ``model.safetensors``, ``tokenizer.json`` or ``tokenizer.model``, and optionally voices in
``embeddings/*.safetensors``. A model that the package does not know adds its ``config.yaml``.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

AUTO = "auto"
DEFAULT = "english"
CODES = {
    "english": "en",
    "french": "fr",
    "german": "de",
    "portuguese": "pt",
    "italian": "it",
    "spanish": "es",
    "dutch": "nl",
}
"""BCP 47 codes of the published languages; a name may continue with ``_``, as ``french_24l``."""
_TOKENIZERS = ("tokenizer.json", "tokenizer.model")


@dataclass(frozen=True, slots=True)
class LanguageFolder:
    """The files of one language."""

    path: Path

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def code(self) -> str:
        """BCP 47 code; empty for other languages."""
        return CODES.get(self.name.partition("_")[0], "")

    @property
    def weights(self) -> Path:
        return self.path / "model.safetensors"

    @property
    def tokenizer(self) -> Path:
        files = (self.path / name for name in _TOKENIZERS)
        return next((file for file in files if file.is_file()), self.path / _TOKENIZERS[0])

    @property
    def config(self) -> Path:
        """The model's configuration file; without it the package's configuration of that name is used."""
        return self.path / "config.yaml"

    @property
    def voices(self) -> dict[str, Path]:
        """Return the files of prepared voices by name."""
        return {file.stem: file for file in sorted(self.path.glob("embeddings/*.safetensors"))}


def find_languages(model_dir: Path) -> dict[str, LanguageFolder]:
    """Return the languages of a model folder by name."""
    weights = sorted(model_dir.glob("languages/*/model.safetensors"))
    return {file.parent.name: LanguageFolder(file.parent) for file in weights}


def choose_language(model_dir: Path, language: str) -> LanguageFolder | None:
    """Select a language; ``auto`` selects English, or the first language if there is no English."""
    found = find_languages(model_dir)
    if language == AUTO:
        return found.get(DEFAULT) or next(iter(found.values()), None)
    return found.get(language)


def problem(model_dir: Path, language: str) -> str:
    """Return what is missing and the command that downloads it; empty if nothing is missing."""
    chosen = choose_language(model_dir, language)
    name = chosen.name if chosen else DEFAULT if language == AUTO else language
    if chosen is None:
        missing = f"languages/{name}/model.safetensors"
        if found := ", ".join(find_languages(model_dir)):
            missing += f" (it has {found})"
    elif not chosen.tokenizer.is_file():
        missing = f"languages/{name}/{chosen.tokenizer.name}"
    else:
        return ""
    sentence = f'MODEL_DIR "{model_dir}" has no {missing}'
    if name.partition("_")[0] not in CODES:
        return sentence
    variant = "" if name == DEFAULT else f" --variant {name}"
    return f"{sentence}; run: .venv/bin/streaming-server download pocket{variant} --dir {model_dir}"
