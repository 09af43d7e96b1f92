"""Converts a description of an emotion to an emotion vector, with the model's classifier or a word list.

The classifier is a small chat model (Qwen) fine-tuned to answer with scores in JSON.
"""

from __future__ import annotations

import json
import logging
import math
import re
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from streaming_server.domain import EMOTIONS, EmotionVector
from streaming_server.engines.content_cache import LruCache
from streaming_server.engines.emotion_words import vector_from_words
from streaming_server.engines.indextts2.emotion import of_scores
from streaming_server.engines.threads import Check, never_cancelled
from streaming_server.engines.torch.torchaudio import settle_torchaudio
from streaming_server.errors import EngineUnavailable

logger = logging.getLogger(__name__)

TASK = "文本情感分类"
KEYS = ("高兴", "愤怒", "悲伤", "恐惧", "反感", "低落", "惊讶", "自然")
"""The classifier's names of ``EMOTIONS``."""
ALIASES = ("emotion", "label", "情感", "情绪")
"""Keys with which the classifier sometimes names a single emotion instead."""
THOUGHT_END = "</think>"
MAX_TOKENS = 256
MELANCHOLY = re.compile("低落|melancholy|melancholic|depression|depressed|gloomy", re.IGNORECASE)
"""Words that the classifier misclassifies as sadness."""
CACHED_DESCRIPTIONS = 256

Reading = Literal["classifier", "words"]


class Describer(Protocol):
    @property
    def name(self) -> Reading: ...

    def read(self, description: str, check: Check = never_cancelled) -> EmotionVector:
        """The vector of a description; ``check`` is called between pieces of work that take long."""


class Words:
    """Reads descriptions with a word list; a description without a known word means calm."""

    name: Reading = "words"

    def read(self, description: str, check: Check = never_cancelled) -> EmotionVector:
        return vector_from_words(description) or of_scores([0.0] * len(EMOTIONS), swap=False)


class Classifier:
    """Reads descriptions with the chat model in a folder.

    Raises:
        EngineUnavailable: transformers cannot load the model.
    """

    name: Reading = "classifier"

    def __init__(self, folder: Path, device: torch.device) -> None:
        settle_torchaudio()
        from transformers import AutoModelForCausalLM, AutoTokenizer

        dtype = torch.float32 if device.type == "cpu" else torch.float16
        try:
            self._tokenizer: Any = AutoTokenizer.from_pretrained(folder, local_files_only=True)
            model: Any = AutoModelForCausalLM.from_pretrained(folder, local_files_only=True, dtype=dtype)
        except Exception as error:  # each of the libraries has errors of its own for a broken file
            raise EngineUnavailable(
                f"{folder} contains no emotion classifier ({error}); download it again, or remove the folder to "
                "use a word list instead"
            ) from error
        self._model = model.eval()
        self._model.to(device)
        self._device = device
        self._known = LruCache[str, EmotionVector](CACHED_DESCRIPTIONS)

    def read(self, description: str, check: Check = never_cancelled) -> EmotionVector:
        return self._known.get(description, lambda: self._read(description, check))

    def _read(self, description: str, check: Check) -> EmotionVector:
        def goes_on(ids: Tensor, _: Tensor, **__: Any) -> Tensor:
            """Called after each token; whether each row is complete."""
            check()
            return torch.zeros(len(ids), dtype=torch.bool, device=ids.device)

        messages = [{"role": "system", "content": TASK}, {"role": "user", "content": description}]
        prompt = self._tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=True, enable_thinking=False
        )
        inputs = self._tokenizer(prompt, return_tensors="pt").to(self._device)
        # Greedy decoding, so that a request with a seed is reproducible.
        with torch.inference_mode():
            ids = self._model.generate(
                input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"], max_new_tokens=MAX_TOKENS,
                do_sample=False, temperature=None, top_p=None, top_k=None, stopping_criteria=[goes_on],
            )  # fmt: skip
        answer: str = self._tokenizer.decode(ids[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        return scores_of(answer, description)


def scores_of(answer: str, description: str) -> EmotionVector:
    """Convert the classifier's answer to a vector; emotions without a score are 0, and no scores at all mean calm."""
    answer = answer.rpartition(THOUGHT_END)[2]
    scores = dict.fromkeys(KEYS, 0.0)
    try:
        content = json.loads(answer)
    except ValueError:
        content = {key: number for key in KEYS for number in re.findall(rf"{key}\W{{0,4}}(\d+(?:\.\d+)?)", answer)[:1]}
    if isinstance(content, dict):
        for key, value in content.items():
            named = str(value).strip()
            if key in ALIASES and named in scores:
                scores[named] = 1.0
            elif key in scores:
                scores[key] = number_of(value)
    return of_scores([scores[key] for key in KEYS], swap=bool(MELANCHOLY.search(description)))


def number_of(value: object) -> float:
    try:
        number = float(str(value))
    except ValueError:
        return 0.0
    return number if math.isfinite(number) else 0.0


def describer(folder: Path | None, device: torch.device) -> Describer:
    """Return the classifier if its folder exists, else the word list."""
    if folder is None:
        logger.info("emotion descriptions use the word list: no classifier folder")
        return Words()
    return Classifier(folder, device)
