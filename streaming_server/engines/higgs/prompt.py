"""Builds the model's prompt from system message, scene, voices, previous pieces and the new piece of text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from streaming_server.domain import Turn
from streaming_server.engines.higgs.codes import delayed

# The system prompts of the training data.
_SINGLE = "Generate audio following instruction."
_SEVERAL = (
    "You are an AI assistant designed to convert text into speech.\n"
    "If the user's message includes a [SPEAKER*] tag, do not read out the tag and generate speech for the following "
    "text, using the specified voice.\n"
    "If no speaker tag is present, select a suitable voice on your own."
)
_OWN_VOICES = ("feminine", "masculine")
"""Descriptions of speakers without a voice, used alternately so that their voices differ."""


@dataclass(frozen=True, slots=True)
class AnalysedVoice:
    """The codes of a recording and its transcript."""

    codes: Tensor
    """``(C, F)``"""
    transcript: str
    """The text of the recording; empty if unknown."""


@dataclass(frozen=True, slots=True)
class Said:
    """A piece that has been synthesised."""

    text: str
    codes: Tensor
    """``(C, F)``"""


class PromptWriter:
    """Writes prompts for one model."""

    def __init__(self, tokenizer: Any, config: Any, device: torch.device) -> None:
        self._tokenizer = tokenizer
        self._config = config
        self._device = device

    def write(
        self,
        piece: Sequence[Turn],
        speakers: Sequence[int | None],
        voices: Mapping[int | None, AnalysedVoice],
        scene: str,
        before: Sequence[Said],
    ) -> dict[str, Tensor]:
        """Build the inputs of ``generate``.

        Args:
            piece: the turns to synthesise.
            speakers: all speakers of the script; None is the speaker of a text that is not a dialogue.
            voices: by speaker; the model chooses a voice for the others.
            scene: a description, or empty.
            before: the previous pieces.
        """
        codes: list[Tensor] = []
        setting: list[dict[str, str]] = [_text(scene)] if scene else []
        examples: list[dict[str, Any]] = []
        for number, speaker in enumerate(speakers):
            voice = voices.get(speaker)
            if voice is None:
                if speaker is not None:
                    setting.append(_text(f"SPEAKER{speaker}: {_OWN_VOICES[number % 2]}"))
            elif not voice.transcript:
                setting += [_text(f"SPEAKER{speaker or 0}:"), {"type": "audio"}]
                codes.append(voice.codes)
            else:
                examples += _exchange(_tagged(voice.transcript, speaker))
        codes += [voice.codes for voice in map(voices.get, speakers) if voice and voice.transcript]
        for said in before:
            examples += _exchange(said.text)
            codes.append(said.codes)
        conversation = [
            {"role": "system", "content": [_text(_SINGLE if None in speakers else _SEVERAL)]},
            *([{"role": "scene", "content": setting}] if setting else []),
            *examples,
            {"role": "user", "content": [_text(text_of(piece))]},
        ]
        return self._inputs(conversation, codes)

    def _inputs(self, conversation: list[dict[str, Any]], codes: list[Tensor]) -> dict[str, Tensor]:
        config = self._config
        text = self._tokenizer.apply_chat_template(conversation, tokenize=False, add_generation_prompt=True)
        frames = [delayed(part, config.audio_stream_bos_id, config.audio_stream_eos_id) for part in codes]
        waiting = iter(frames)
        ids: list[int] = []
        for token in self._tokenizer(text, add_special_tokens=False)["input_ids"]:
            if token != config.audio_token_id:
                ids.append(token)
                continue
            length, trailing = next(waiting).shape[0], config.num_codebooks - 1
            ids += [config.audio_token_id] * (length - trailing) + [config.audio_delay_token_id] * trailing
        inputs = {"input_ids": torch.tensor([ids]), "attention_mask": torch.ones(1, len(ids), dtype=torch.long)}
        if frames:
            audio = torch.cat(frames)[None]  # (1, frames, C)
            inputs |= {"audio_input_ids": audio, "audio_input_ids_mask": torch.ones(audio.shape[:2], dtype=torch.bool)}
        return {name: tensor.to(self._device) for name, tensor in inputs.items()}


def text_of(piece: Sequence[Turn]) -> str:
    """The text of the turns with speaker tags."""
    return "\n".join(_tagged(turn.text, turn.speaker) for turn in piece)


def _tagged(text: str, speaker: int | None) -> str:
    return text.strip() if speaker is None else f"[SPEAKER{speaker}] {text.strip()}"


def _text(text: str) -> dict[str, str]:
    # Escape special tokens: a client's text must not end its message or announce audio.
    return {"type": "text", "text": text.replace("<|", "< |")}


def _exchange(text: str) -> list[dict[str, Any]]:
    return [{"role": "user", "content": [_text(text)]}, {"role": "assistant", "content": [{"type": "audio"}]}]
