"""Generates codes with transformers' ``generate`` and passes each frame to a callback."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from streaming_server.domain import Generation
from streaming_server.engines.torch.rows import NOT_FINITE
from streaming_server.engines.torch.sampling import MAX_TEMPERATURE, MIN_TEMPERATURE
from streaming_server.errors import EngineFailed

_DEFAULTS = Generation()
_MODEL_TEMPERATURE, _MODEL_TOP_K = 0.7, 50


@torch.inference_mode()
def draw(model: Any, inputs: dict[str, Tensor], generation: Generation, receive: Callable[[Tensor], None]) -> None:
    """Generate frames until the model ends, or up to the limit of ``generation``.

    A streamer of transformers receives placeholders only. Every frame is embedded before the next one is sampled, so a
    hook on the embedding receives all frames except the last, which ``generate`` returns.

    Args:
        model: the model.
        inputs: from `PromptWriter.write`.
        generation: the sampling parameters. If temperature and top-k have the values of `Generation()`, which are those
            of another model, and no client has chosen them, this model's defaults apply.
        receive: called with each frame, ``(C,)``, on the CPU; an exception stops the generation.
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
    """Hook on the head that fails the request if its logits are not finite.

    On CUDA, sampling would otherwise trigger a device-side assertion, after which the process cannot use the device.
    """
    if not bool(logits.isfinite().all()):
        raise EngineFailed(NOT_FINITE)


def _config(model: Any, generation: Generation) -> Any:
    has_defaults = (generation.temperature, generation.top_k) == (_DEFAULTS.temperature, _DEFAULTS.top_k)
    is_default = has_defaults and not generation.is_sampling_given
    config = copy.deepcopy(model.generation_config)
    config.ras_win_len = generation.ras_window or None
    config.ras_win_max_num_repeat = generation.ras_repeats
    # The delay of the codebooks takes as many frames as there are codebooks.
    config.max_new_tokens = generation.max_mel_tokens + model.config.num_codebooks
    config.max_length = None
    config.do_sample = generation.do_sample
    if generation.do_sample:
        bounded = min(max(generation.temperature, MIN_TEMPERATURE), MAX_TEMPERATURE)
        config.temperature = _MODEL_TEMPERATURE if is_default else bounded
        config.top_k = _MODEL_TOP_K if is_default else generation.top_k
        config.top_p = generation.top_p
    else:
        config.temperature = config.top_k = config.top_p = None
    return config
