"""Draws codes with transformers' ``generate`` and hands over each frame as soon as it is drawn."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from streaming_server.domain import Generation
from streaming_server.engines.torch.decoding import NOT_FINITE
from streaming_server.errors import EngineFailed

_USUAL = Generation()
_OWN_TEMPERATURE, _OWN_TOP_K = 0.7, 50


@torch.inference_mode()
def draw(model: Any, inputs: dict[str, Tensor], generation: Generation, receive: Callable[[Tensor], None]) -> None:
    """Draw frames until the model ends, or as many as ``generation`` allows.

    A streamer of transformers is given placeholders only. But every frame is embedded before the next is drawn, so a
    hook on that embedding sees them all, bar the last, which ``generate`` returns.

    Args:
        model: the model.
        inputs: of `PromptWriter.write`.
        generation: how. Where temperature and top-k are as if nobody had named any, the model's own are taken: the
            usual ones are those of another model.
        receive: takes each frame, ``(C,)``, on the CPU; may raise, which ends the drawing.
    """
    prompt = inputs["audio_input_ids"].shape[1] if "audio_input_ids" in inputs else 0
    prompt_pending = prompt > 0
    received = 0

    def before_embedding(_: Any, arguments: tuple[Tensor, ...]) -> None:
        nonlocal prompt_pending, received
        if prompt_pending:
            prompt_pending = False
            return
        received += 1
        receive(arguments[0][0, -1].cpu())

    if generation.seed is None:
        torch.seed()
    else:
        torch.manual_seed(generation.seed)
    hooks = (
        model.model.embed_audio_tokens.register_forward_pre_hook(before_embedding),
        model.audio_lm_head.register_forward_hook(require_finite),
    )
    try:
        drawn = model.generate(  # (1, prompt + frames, C)
            **inputs, generation_config=_config(model, generation)
        )
    finally:
        for hook in hooks:
            hook.remove()
    for frame in drawn[0, prompt + received :].cpu():
        receive(frame)


def require_finite(_module: Any, _inputs: Any, logits: Tensor) -> None:
    """A hook on the head that ends the request if no code can be drawn from its logits.

    On CUDA the draw would fail an assertion on the device, after which the process cannot use it any more.
    """
    if not bool(logits.isfinite().all()):
        raise EngineFailed(NOT_FINITE)


_COLDEST = 1e-4
"""Colder than that and the logits overflow."""


def _config(model: Any, generation: Generation) -> Any:
    unnamed = (generation.temperature, generation.top_k) == (_USUAL.temperature, _USUAL.top_k)
    config = copy.deepcopy(model.generation_config)
    config.ras_win_len = generation.ras_window or None
    config.ras_win_max_num_repeat = generation.ras_repeats
    config.max_new_tokens = generation.max_mel_tokens
    config.max_length = None
    config.do_sample = generation.do_sample
    if generation.do_sample:
        config.temperature = _OWN_TEMPERATURE if unnamed else max(generation.temperature, _COLDEST)
        config.top_k = _OWN_TOP_K if unnamed else generation.top_k
        config.top_p = generation.top_p
    else:
        config.temperature = config.top_k = config.top_p = None
    return config
