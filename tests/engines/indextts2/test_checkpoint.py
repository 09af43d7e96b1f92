"""Checkpoint folders: the published sizes, and an error message for each defect."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from streaming_server.engines.indextts2.checkpoint import build
from streaming_server.engines.indextts2.folder import Checkpoint
from streaming_server.engines.indextts2.runtime import Runtime
from streaming_server.engines.registry import create_engine
from streaming_server.engines.torch.weights import settings_of
from streaming_server.errors import EngineUnavailable
from tests.engines.indextts2 import published
from tests.engines.indextts2.acoustic_parity import normal

CPU = torch.device("cpu")


def published_states(version: str) -> dict[str, Any]:
    states: dict[str, Any] = {
        name: {key: torch.empty(shape, device="meta") for key, shape in shapes.items()}
        for name, shapes in published.shapes(version).items()
    }
    return states | {"feat1": torch.empty(73, 192, device="meta"), "feat2": torch.empty(73, 1280, device="meta")}


def parameters(module: torch.nn.Module) -> float:
    """In millions."""
    return sum(p.numel() for p in module.parameters()) / 1e6


@pytest.mark.parametrize(("version", "gpt", "codec"), [("2.0", 850.6, 22.2), ("2.5", 734.8, 25.3)])
def test_the_real_checkpoints_fit_the_real_sizes(version: str, gpt: float, codec: float) -> None:
    runtime = build(published.config(version), published_states(version), device="meta")
    assert parameters(runtime.gpt) == pytest.approx(gpt, abs=0.05)
    assert parameters(runtime.gpt.gpt) == pytest.approx(472.3, abs=0.05)
    assert parameters(runtime.hearing.campplus) == pytest.approx(6.85, abs=0.01)
    assert parameters(runtime.hearing.w2vbert) == pytest.approx(411.2, abs=0.05)  # 17 of 24 layers
    assert parameters(runtime.acoustics.codec) == pytest.approx(codec, abs=0.05)
    assert parameters(runtime.acoustics.vocoder) == pytest.approx(112.2, abs=0.05)


@pytest.mark.parametrize(
    ("state", "key"),
    [
        ("gpt", "emo_perceiver_encoder.norm.gamma"),
        ("gpt", "speed_emb.weight"),
        ("s2mel", "cfm.estimator.transformer.layers.12.skip_in_linear.weight"),
        ("s2mel", "gpt_layer.2.bias"),
        ("codec", "quantizer.quantizers.0.codebook.weight"),
        ("campplus", "xvector.block2.tdnnd24.cam_layer.linear2.bias"),
        ("bigvgan", "conv_post.weight_v"),
        ("w2vbert", "encoder.layers.16.self_attn.distance_embedding.weight"),
    ],
)
def test_a_real_checkpoint_without_a_needed_key_does_not_fit(state: str, key: str) -> None:
    states = published_states("2.0")
    del states[state][key]
    with pytest.raises(EngineUnavailable, match=key.replace("weight_v", "weight").replace(".", r"\.")):
        build(published.config("2.0"), states, device="meta")


@pytest.mark.parametrize(
    ("state", "key"),
    [
        ("gpt", "text_head.weight"),
        ("s2mel", "cfm.estimator.transformer.layers.5.skip_in_linear.weight"),
        ("codec", "decoder.0.embed.weight"),
        ("w2vbert", "encoder.layers.17.ffn1_layer_norm.weight"),
    ],
)
def test_what_is_not_needed_may_be_missing(state: str, key: str) -> None:
    states = published_states("2.0")
    del states[state][key]
    build(published.config("2.0"), states, device="meta")


def test_more_layers_than_the_configuration_says_are_refused() -> None:
    config = published.config("2.0")
    config["gpt"]["layers"] = 23
    with pytest.raises(EngineUnavailable, match=r"gpt.pth .*the key gpt\.h\.23\.ln_1\.weight is unknown"):
        build(config, published_states("2.0"), device="meta")


def test_a_key_like_no_other_is_passed_over() -> None:
    states = published_states("2.5")
    states["codec"]["discriminator.weight"] = torch.empty(3, device="meta")
    build(published.config("2.5"), states, device="meta")


def test_where_the_configuration_is_silent_the_weights_tell_the_version() -> None:
    for version in published.VERSIONS:
        config = {key: value for key, value in published.config(version).items() if key != "version"}
        runtime = build(config, published_states(version), device="meta")
        assert runtime.gpt.conditions_on_style == (version == "2.5")


@pytest.mark.parametrize("version", published.VERSIONS)
def test_state_dicts_may_be_wrapped_nested_and_prefixed(folders: dict[str, Path], version: str) -> None:
    """The folder has them so; flat and bare they are the same model."""
    checkpoint = Checkpoint.open(folders[version])
    states = checkpoint.states()
    bare = {name: states[name] for name in ("feat1", "feat2", "stats", "campplus", "w2vbert")}
    bare |= {name: states[name].get("model", states[name]) for name in ("gpt", "codec")}
    bare["bigvgan"] = states["bigvgan"]["generator"]
    parts = states["s2mel"]["net"]
    bare["s2mel"] = {
        f"{part}.{key.removeprefix('module.')}": value for part, of in parts.items() for key, value in of.items()
    }
    assert any(key.startswith("module.") for key in parts["cfm"])
    one, other = checkpoint.load(CPU, torch.float32), build(checkpoint.config, bare)
    mel = normal(1, 80, 12)
    assert torch.equal(one.wav(mel), other.wav(mel))
    assert torch.equal(one.acoustics.s2mel.estimator.conv1.weight, other.acoustics.s2mel.estimator.conv1.weight)


def test_features_are_normalised_by_the_statistics(folders: dict[str, Path]) -> None:
    checkpoint = Checkpoint.open(folders["2.0"])
    wav = normal(2, 16_000) / 10
    plain = build(checkpoint.config, {k: v for k, v in checkpoint.states().items() if k != "stats"}).features(wav)
    stats = checkpoint.states()["stats"]
    wanted = (plain - stats["mean"]) / stats["var"].sqrt()
    torch.testing.assert_close(checkpoint.load(CPU, torch.float32).features(wav), wanted)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_what_listens_keeps_its_precision(folders: dict[str, Path], dtype: torch.dtype) -> None:
    def heard(runtime: Runtime) -> torch.Tensor:
        return runtime.emo(runtime.features(normal(2, 16_000) / 10))

    checkpoint = Checkpoint.open(folders["2.0"])
    half = checkpoint.load(CPU, dtype)
    assert half.dtype == dtype
    assert torch.equal(heard(half), heard(checkpoint.load(CPU, torch.float32)))


def change(path: Path, how: Callable[[dict[str, Any]], object]) -> None:
    content = torch.load(path, weights_only=True)
    how(content.get("model", content.get("net", content)))
    torch.save(content, path)


def configure(folder: Path, **settings: object) -> None:
    config = yaml.safe_load((folder / "config.yaml").read_text())
    (folder / "config.yaml").write_text(yaml.safe_dump({**config, **settings}))


def set_gpt(folder: Path, **settings: object) -> None:
    config = yaml.safe_load((folder / "config.yaml").read_text())
    configure(folder, gpt=config["gpt"] | settings)


def adapt(folder: Path, model: str, **settings: object) -> None:
    path = folder / CACHE / model / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))


def truncate(path: Path) -> None:
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size // 2)


CACHE = "hf_cache"


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        *[
            (lambda f, name=name: (f / name).unlink(), rf"{name} is missing; download .*indextts-2`")
            for name in ("bpe.model", "gpt.pth", "s2mel.pth", "feat1.pt", "feat2.pt", "wav2vec2bert_stats.pt")
        ],
        (lambda f: shutil.rmtree(f / CACHE / "w2v-bert-2.0"), "facebook/w2v-bert-2.0 .* set INDEXTTS2_EXT"),
        (lambda f: shutil.rmtree(f / CACHE / "bigvgan"), "nvidia/bigvgan_v2_22khz_80band_256x .* set INDEXTTS2_EXT"),
        (lambda f: (f / CACHE / "campplus_cn_common.bin").unlink(), "funasr/campplus .* set INDEXTTS2_EXT"),
        (
            lambda f: (f / CACHE / "semantic_codec_model.safetensors").unlink(),
            "amphion/MaskGCT .* set INDEXTTS2_EXT",
        ),
        (lambda f: truncate(f / "gpt.pth"), r"gpt\.pth is truncated or not a checkpoint"),
        (lambda f: truncate(f / CACHE / "w2v-bert-2.0" / "model.safetensors"), r"truncated or not a safetensors file"),
        (lambda f: (f / CACHE / "bigvgan" / "config.json").write_text("{"), r"config\.json is not valid JSON; get it"),
        (lambda f: (f / CACHE / "bigvgan" / "config.json").write_text("[]"), r"config\.json is not a JSON object; get"),
        (lambda f: adapt(f, "bigvgan", num_mels="80"), r"bigvgan/config\.json: missing or invalid setting"),
        (lambda f: adapt(f, "bigvgan", num_mels=81), r"generator\.pt does not fit bigvgan/config\.json: conv_pre"),
        (lambda f: adapt(f, "w2v-bert-2.0", hidden_size="x"), r"w2v-bert-2\.0/config\.json: .*'hidden_size'"),
        (lambda f: set_gpt(f, heads=None), r"config\.yaml: missing or invalid setting 'heads': None; download"),
        (lambda f: change(f / "gpt.pth", lambda s: s.pop("emo_layer.bias")), "the key emo_layer.bias is missing"),
        (
            lambda f: change(f / "s2mel.pth", lambda s: s["length_regulator"].pop("model.0.bias")),
            r"s2mel.pth .*the key length_regulator\.model\.0\.bias is missing",
        ),
        (
            lambda f: change(f / "gpt.pth", lambda s: s.update({"mel_head.bias": torch.zeros(3)})),
            r"mel_head.bias has the shape \[3\] instead of \[130\]",
        ),
        (lambda f: configure(f, version=3.0), "version: 3.0; this runtime supports only 2.0 and 2.5"),
        (lambda f: configure(f, s2mel=None), "no section `s2mel`"),
        (lambda f: configure(f, emo_num=None), "config.yaml: missing or invalid setting"),
        (lambda f: (f / "config.yaml").write_text("gpt: ["), "is not valid YAML"),
        (lambda f: torch.save({"model": Path("code")}, f / "gpt.pth"), r"gpt\.pth is truncated or not a checkpoint"),
    ],
)  # fmt: skip
def test_a_wrong_folder_is_refused_in_a_sentence(
    folders: dict[str, Path], tmp_path: Path, damage: Callable[[Path], object], sentence: str
) -> None:
    folder = Path(shutil.copytree(folders["2.0"], tmp_path / "copy"))
    damage(folder)
    with pytest.raises(EngineUnavailable, match=sentence) as refused:
        Checkpoint.open(folder)
    assert "\n" not in str(refused.value)


def test_25_wants_its_own_files(folders: dict[str, Path], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(folders["2.5"], tmp_path / "copy"))
    vocabulary = folder / "multilingual_zh_ja_yue_char_del.tiktoken"
    vocabulary.write_text("no ranks here")
    with pytest.raises(EngineUnavailable, match=r"tiktoken is truncated or not a vocabulary; .*indextts-2\.5"):
        Checkpoint.open(folder).reader(None)
    more = b"AAAAAA== 256\nAAAAAQ== 257\n"
    vocabulary.write_bytes((folders["2.5"] / vocabulary.name).read_bytes() + more)
    with pytest.raises(EngineUnavailable, match=r"does not fit config\.yaml: it has 1931 tokens"):
        Checkpoint.open(folder).reader(None)
    (folder / "codec.pth").unlink()
    with pytest.raises(EngineUnavailable, match=r"codec\.pth is missing; get it with .*IndexTTS-2\.5 codec\.pth"):
        Checkpoint.open(folder)


def test_external_models_may_lie_elsewhere(folders: dict[str, Path], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(folders["2.0"], tmp_path / "model"))
    elsewhere = Path(shutil.move(folder / CACHE, tmp_path / "elsewhere"))
    with pytest.raises(EngineUnavailable, match="INDEXTTS2_EXTERNAL_MODELS_DIR"):
        Checkpoint.open(folder)
    Checkpoint.open(folder, elsewhere).load(CPU, torch.float32)


def test_the_semantic_codec_may_lie_where_its_download_puts_it(folders: dict[str, Path], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(folders["2.0"], tmp_path / "model"))
    (folder / CACHE / "semantic_codec").mkdir()
    shutil.move(
        folder / CACHE / "semantic_codec_model.safetensors", folder / CACHE / "semantic_codec" / "model.safetensors"
    )
    Checkpoint.open(folder)


def test_layers_that_are_not_needed_are_not_loaded(folders: dict[str, Path], tmp_path: Path) -> None:
    """A published w2v-BERT has 24 layers, 17 of which are needed."""
    folder = Path(shutil.copytree(folders["2.0"], tmp_path / "model"))
    w2vbert = folder / CACHE / "w2v-bert-2.0"
    weights = load_file(w2vbert / "model.safetensors")
    wav = normal(2, 16_000) / 10
    wanted = Checkpoint.open(folder).load(CPU, torch.float32).features(wav)
    more = {
        key.replace("layers.0.", f"layers.{layer}."): value.clone()
        for layer in range(3, 20) for key, value in weights.items() if "layers.0." in key
    }  # fmt: skip
    save_file(weights | more | {"masked_spec_embed": torch.zeros(48)}, w2vbert / "model.safetensors")
    config = json.loads((w2vbert / "config.json").read_text())
    (w2vbert / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 20}))
    runtime = Checkpoint.open(folder).load(CPU, torch.float32)
    assert runtime.hearing.w2vbert.layers == len(runtime.hearing.w2vbert.model.encoder.layers) == 17
    assert not torch.allclose(runtime.features(wav), wanted)


def test_the_configuration_decides_which_runtime_it_is(
    folders: dict[str, Path], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        engine = create_engine("auto", {"MODEL_DIR": str(folders["2.5"]), "DEVICE": "cpu"})
    assert (engine.info.name, engine.info.model_type) == ("indextts", "IndexTTS2")
    assert (engine.info.model_version, engine.info.sample_rate_hz) == ("2.5.0", 22_050)


def test_a_package_that_is_not_installed_is_no_wrong_setting() -> None:
    with pytest.raises(ImportError, match="transformers"), settings_of("config.json"):
        raise ImportError("No module named 'transformers'")
