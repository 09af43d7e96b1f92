"""Kyutai's ``pocket_tts`` package: loading from local files, voice states and streaming of frames."""

from __future__ import annotations

import logging
import tempfile
import threading
from collections.abc import Generator, Iterator
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import yaml
from pocket_tts import TTSModel
from pocket_tts.modules.stateful_module import init_states
from pocket_tts.modules.text_conditioner import build_tokenizer
from pocket_tts.utils.config import CONFIGS_DIR, Config, load_config

from streaming_server.domain import FloatSamples
from streaming_server.engines.pocket.folder import LanguageFolder
from streaming_server.engines.threads import Cancelled
from streaming_server.errors import EngineFailed, EngineUnavailable

VoiceState = dict[str, dict[str, torch.Tensor]]
"""The package's state of a voice, by module name."""

_MAX_CAUSE_CHARACTERS = 200


def read_config(files: LanguageFolder) -> Config:
    """Return the configuration of a model with the paths of local files.

    Raises:
        EngineUnavailable: the configuration is invalid, or there is none for this language.
    """
    path = files.config if files.config.is_file() else CONFIGS_DIR / f"{files.name}.yaml"
    if not path.is_file():
        known = ", ".join(sorted(file.stem for file in CONFIGS_DIR.glob("*.yaml")))
        raise EngineUnavailable(
            f"{files.config} is missing, and pocket-tts {version('pocket-tts')} has no language {files.name!r}; "
            f"it has {known}"
        )
    try:
        config: Config = load_config(path)
    except Exception as error:  # of YAML, of pydantic, of the file system, or a TypeError
        raise EngineUnavailable(f"{path} is not a configuration of Pocket TTS: {_cause(error)}") from error
    table = config.flow_lm.lookup_table
    table.tokenizer_path = str(files.tokenizer.absolute())
    table.tokenizer = "tokenizers" if files.tokenizer.suffix == ".json" else "sentencepiece"
    config.weights_path = str(files.weights.absolute())
    config.weights_path_without_voice_cloning = config.flow_lm.weights_path = config.mimi.weights_path = None
    return config


class PocketModel:
    """A loaded model. Only one thread may use it: the package's model is not thread-safe."""

    def __init__(self, files: LanguageFolder, config: Config) -> None:
        """
        Raises:
            EngineUnavailable: a file is damaged, or does not fit the configuration.
        """
        logging.getLogger("pocket_tts").setLevel(logging.WARNING)  # the package logs several lines per sentence
        self._model = _load(files, config)
        # One frame per call: otherwise their number, and thus the last bits of the samples, would depend on timing.
        self._model.max_decoder_frames_per_call = 1
        self._stop = threading.Event()
        self._generating = threading.current_thread()
        for module in self._model.mimi.modules():
            module.register_forward_pre_hook(self._check)
        self._model.flow_lm.register_forward_pre_hook(self._note_thread)

    def clone(self, samples: FloatSamples, stop: threading.Event) -> VoiceState:
        """Return the state of the voice of a recording at the model's sample rate.

        Raises:
            Cancelled: ``stop`` was set.
        """
        self._stop = stop
        state: VoiceState = self._model.get_state_for_audio_prompt(torch.from_numpy(samples)[None])
        return state

    def read_voice(self, path: Path) -> VoiceState:
        """Return the state of a prepared voice.

        Raises:
            EngineFailed: the file is damaged, or belongs to another model.
        """
        try:
            state: VoiceState = self._model.get_state_for_audio_prompt(path)
        except Exception as error:  # of safetensors, of the file system, or a ValueError of the package
            raise EngineFailed(f"the voice {path.stem} cannot be read from {path.name}: {_cause(error)}") from error
        needed = init_states(self._model.flow_lm, batch_size=1, sequence_length=1)
        if _shapes(state) != _shapes(needed):
            raise EngineFailed(f"the voice {path.stem} in {path.name} belongs to another model")
        return state

    def speak(
        self, texts: Iterator[str], voice: VoiceState, seed: int | None, stop: threading.Event
    ) -> Generator[FloatSamples, None, None]:
        """Yield frames of 80 ms. Closing it, or setting ``stop``, ends the synthesis within a frame.

        Raises:
            Cancelled: ``stop`` was set.
        """
        self._stop = stop
        if seed is None:
            torch.seed()
        else:
            torch.manual_seed(seed)
        for text in texts:
            frames = self._model.generate_audio_stream(voice, text, stop=stop)
            try:
                for frame in frames:
                    yield frame.numpy()
            except BaseException:
                self._settle(frames)
                raise
            if stop.is_set():
                raise Cancelled

    def _settle(self, frames: Iterator[torch.Tensor]) -> None:
        """Stop the package's threads and wait for them, so that none draws from the generator of the next request."""
        self._stop.set()
        with suppress(Exception):
            for _ in frames:
                pass
        if self._generating is not threading.current_thread():
            self._generating.join()

    def _check(self, *_: object) -> None:
        if self._stop.is_set():
            raise Cancelled

    def _note_thread(self, *_: object) -> None:
        self._generating = threading.current_thread()


def _load(files: LanguageFolder, config: Config) -> Any:
    table = config.flow_lm.lookup_table
    try:
        build_tokenizer(table.n_bins, table.tokenizer_path, table.tokenizer)
    except Exception as error:  # the tokenizers' libraries raise Exception itself
        raise EngineUnavailable(f"{files.tokenizer} cannot be loaded: {_cause(error)}") from error
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "config.yaml"
        path.write_text(yaml.safe_dump(config.model_dump(mode="json")))
        try:
            return TTSModel.load_model(config=path)
        except Exception as error:  # of safetensors, of torch, of the file system
            raise EngineUnavailable(f"{files.weights} cannot be loaded: {_cause(error)}") from error


def _shapes(state: VoiceState) -> dict[str, tuple[int, ...]]:
    """Return the number and width of heads by module; the number of positions differs between voices."""
    return {name: tuple(tensors["cache"].shape[3:]) for name, tensors in state.items() if "cache" in tensors}


def _cause(error: Exception) -> str:
    """Return the first lines of an error in one line."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= _MAX_CAUSE_CHARACTERS else f"{text[:_MAX_CAUSE_CHARACTERS]}…"
