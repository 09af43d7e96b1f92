"""A description of an emotion as eight numbers: by the classifier beside the model, else by words.

The classifier is a small chat model (Qwen) that was taught to answer with scores in JSON. This module does not know
recordings, emotion vectors of the model's, or requests.
"""

from __future__ import annotations

import json
import logging
import math
import re
from pathlib import Path
from typing import Any, Literal, Protocol

import torch

from streaming_server.domain import EMOTIONS, EmotionVector
from streaming_server.engines.content_cache import LruCache
from streaming_server.engines.emotion_words import vector_from_words
from streaming_server.engines.indextts2.emotion import of_scores
from streaming_server.engines.torch.torchaudio import settle_torchaudio
from streaming_server.errors import EngineUnavailable

logger = logging.getLogger(__name__)

TASK = "文本情感分类"
KEYS = ("高兴", "愤怒", "悲伤", "恐惧", "反感", "低落", "惊讶", "自然")
"""What the classifier calls ``EMOTIONS``."""
ALIASES = ("emotion", "label", "情感", "情绪")
"""Keys under which it sometimes names one emotion instead."""
THOUGHT_END = "</think>"
MOST_TOKENS = 256
MELANCHOLY = re.compile("低落|melancholy|melancholic|depression|depressed|gloomy", re.IGNORECASE)
"""Words that the classifier takes for sadness."""
REMEMBERED = 256

Reading = Literal["classifier", "words"]


class Describer(Protocol):
    @property
    def name(self) -> Reading: ...

    def read(self, description: str) -> EmotionVector: ...


class Words:
    """The list of words: knows some, and takes any other description for calm."""

    name: Reading = "words"

    def read(self, description: str) -> EmotionVector:
        return vector_from_words(description) or of_scores([0.0] * len(EMOTIONS), swap=False)


class Classifier:
    """The chat model of a folder.

    Raises:
        EngineUnavailable: the folder holds no model that transformers can load.
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
                f"{folder} holds no model that reads emotions ({error}); get it again, or remove the folder: "
                "descriptions are then read by a list of words"
            ) from error
        self._model = model.eval()
        self._model.to(device)
        self._device = device
        self._known = LruCache[str, EmotionVector](REMEMBERED)

    def read(self, description: str) -> EmotionVector:
        return self._known.get(description, lambda: self._read(description))

    def _read(self, description: str) -> EmotionVector:
        messages = [{"role": "system", "content": TASK}, {"role": "user", "content": description}]
        prompt = self._tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=True, enable_thinking=False
        )
        inputs = self._tokenizer(prompt, return_tensors="pt").to(self._device)
        # The likeliest answer, so that a request with a seed sounds the same again.
        with torch.inference_mode():
            ids = self._model.generate(
                input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"], max_new_tokens=MOST_TOKENS,
                do_sample=False, temperature=None, top_p=None, top_k=None,
            )  # fmt: skip
        answer: str = self._tokenizer.decode(ids[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        return scores_of(answer, description)


def scores_of(answer: str, description: str) -> EmotionVector:
    """The classifier's answer as a vector; what it does not name counts nothing, and nothing at all is calm."""
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
    """The classifier where its folder is there, else the words."""
    if folder is None:
        logger.info("descriptions of emotions are read by a list of words: the classifier's folder is not there")
        return Words()
    return Classifier(folder, device)
