"""Creates the acoustic modules on the meta device, with sizes from the configuration and the weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torch import nn

from streaming_server.engines.indextts.checkpoint import CONFIG, Config
from streaming_server.engines.indextts2.acoustics import S2Mel
from streaming_server.engines.indextts2.codec import Codec, CodecShape, EnhancedCodec, RepCodec
from streaming_server.engines.indextts2.dit import Estimator, EstimatorShape
from streaming_server.engines.indextts2.regulator import LengthRegulator
from streaming_server.engines.torch.vocoder import Generator, GeneratorShape
from streaming_server.engines.torch.weights import Shapes, State, settings_of
from streaming_server.errors import EngineUnavailable

BIGVGAN_CONFIG = "bigvgan/config.json"

REQUIRED_SETTINGS: Mapping[tuple[str, ...], object] = {
    ("s2mel", "length_regulator", "is_discrete"): False,
    ("s2mel", "length_regulator", "f0_condition"): False,
    ("s2mel", "DiT", "style_condition"): True,
    ("s2mel", "DiT", "final_layer_type"): "wavenet",
    ("s2mel", "DiT", "is_causal"): False,
    ("s2mel", "DiT", "long_skip_connection"): True,
    ("s2mel", "DiT", "uvit_skip_connection"): True,
    ("s2mel", "DiT", "time_as_token"): False,
    ("s2mel", "DiT", "style_as_token"): False,
    ("s2mel", "DiT", "f0_condition"): False,
    ("s2mel", "wavenet", "style_condition"): True,
    ("bigvgan", "resblock"): "1",
    ("bigvgan", "activation"): "snakebeta",
}
"""Settings for which this runtime supports one value only, the published one."""

UNUSED = (
    "cfm.estimator.input_pos",
    "cfm.estimator.x_embedder.",
    "cfm.estimator.cond_embedder.",
    "cfm.estimator.content_mask_embedder.",
    "length_regulator.embedding.",
    "length_regulator.mask_token",
)
"""Prefixes of keys of ``s2mel`` that only training or other configurations of the network use."""


def unneeded(config: Config, enhanced: bool, state: str) -> Callable[[str], bool]:
    """Return a predicate for the keys of ``s2mel``, ``codec`` or ``bigvgan`` that are not used."""
    middle = config["s2mel"]["DiT"]["depth"] // 2
    idle = tuple(f"cfm.estimator.transformer.layers.{layer}.skip_in_linear." for layer in range(middle + 1))
    beginnings = {
        "s2mel": (*UNUSED, *idle, *(("gpt_layer.",) if enhanced else ())),
        "codec": ("encoder.", "down.", "quantizer.quantizers.0.in_project.") if enhanced else ("decoder.",),
        "bigvgan": (),
    }[state]
    return lambda key: key.startswith(beginnings) or key.endswith(".freqs")


def assemble_acoustics(config: Config, states: Mapping[str, State], enhanced: bool) -> tuple[S2Mel, Codec, Generator]:
    """Create the modules of ``Acoustics``.

    Args:
        config: Contains the sections ``s2mel``, ``semantic_codec`` and ``bigvgan``.
        states: ``s2mel`` and ``codec``, for sizes that the configuration does not define; weight norm folded or not.
        enhanced: Whether the codec is that of 2.5.

    Raises:
        EngineUnavailable: a setting has an unsupported value.
        Misfit: a setting of BigVGAN is missing or invalid.
        KeyError: another setting is missing.
    """
    for path, known in REQUIRED_SETTINGS.items():
        *sections, setting = path
        section = config
        for name in sections:
            section = section[name]
        value = section.get(setting, known)
        if str(value) != str(known):
            raise EngineUnavailable(f"{CONFIG} has {'.'.join(path)}: {value}; this runtime supports only {known}")
    s2mel = assemble_s2mel(config["s2mel"], Shapes(states["s2mel"]), with_latents=not enhanced)
    codec = assemble_codec(config["semantic_codec"], Shapes(states["codec"]), enhanced)
    with settings_of(BIGVGAN_CONFIG):
        return s2mel, codec, assemble_generator(config["bigvgan"])


def assemble_s2mel(c: Config, shapes: Shapes, with_latents: bool) -> S2Mel:
    dit, wavenet, regulator = c["DiT"], c["wavenet"], c["length_regulator"]
    layer = "cfm.estimator.transformer.layers.0."
    shape = EstimatorShape(
        bands=dit["in_channels"],
        content_width=dit["content_dim"],
        style_width=c["style_encoder"]["dim"],
        width=dit["hidden_dim"],
        heads=dit["num_heads"],
        depth=dit["depth"],
        inner=shapes.size(layer + "feed_forward.w1.weight", 0, 1536),
        time_frequencies=shapes.size("cfm.estimator.t_embedder.mlp.0.weight", 1, 256),
        wave_width=wavenet["hidden_dim"],
        wave_layers=wavenet["num_layers"],
        wave_kernel=wavenet["kernel_size"],
        wave_dilation=wavenet["dilation_rate"],
    )
    if any(ratio != 1 for ratio in regulator["sampling_ratios"]):
        raise EngineUnavailable(
            f"{CONFIG} has s2mel.length_regulator.sampling_ratios: {regulator['sampling_ratios']};"
            " this runtime supports only ones"
        )
    length_regulator = LengthRegulator(
        content_width=regulator["in_channels"],
        width=regulator["channels"],
        kernel=shapes.size("length_regulator.model.0.weight", 2, 3),
        blocks=len(regulator["sampling_ratios"]),
    )
    return S2Mel(Estimator(shape), length_regulator, assemble_gpt_layer(shapes) if with_latents else None)


def assemble_gpt_layer(shapes: Shapes) -> nn.Sequential:
    """A sequence of linear layers without activations."""
    published = ((1280, 256), (256, 128), (128, 1024))
    keys = [f"gpt_layer.{layer}.weight" for layer in range(len(published))]
    return nn.Sequential(
        *(
            nn.Linear(shapes.size(key, 1, inputs), shapes.size(key, 0, outputs))
            for key, (inputs, outputs) in zip(keys, published, strict=True)
        )
    )


def assemble_codec(c: Config, shapes: Shapes, enhanced: bool) -> Codec:
    backbone = "decoder.0." if enhanced else "encoder.0."
    shape = CodecShape(
        content_width=c["hidden_size"],
        code_width=c["codebook_dim"],
        codes=c["codebook_size"],
        width=c["vocos_dim"],
        inner=c["vocos_intermediate_dim"],
        blocks=c["vocos_num_layers"],
        kernel=shapes.size(backbone + "embed.weight", 2, 7),
        block_kernel=shapes.size(backbone + "convnext.0.dwconv.weight", 2, 7),
        up_kernel=shapes.size("up.weight", 2, 3),
    )
    return EnhancedCodec(shape) if enhanced else RepCodec(shape)


def assemble_generator(c: Config) -> Generator:
    return Generator(
        GeneratorShape.read(c, frame_width=c["num_mels"]),
        bound="tanh" if c.get("use_tanh_at_final", True) else "clamp",
        last_bias=c.get("use_bias_at_final", True),
    )
