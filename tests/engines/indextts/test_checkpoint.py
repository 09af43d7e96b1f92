"""Checkpoint folders: the published sizes, and an error message for each defect."""

from __future__ import annotations

import gzip
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from streaming_server.engines.indextts.checkpoint import CONFIG, GPT, TEXT_MODEL, VOCODER, Checkpoint, build
from streaming_server.errors import EngineUnavailable
from tests.engines.indextts.parity import DATA
from tests.engines.indextts.tiny import train_vocabulary

CPU = torch.device("cpu")
HOW = "streaming-server download indextts-1.5"


def published_shapes(name: str) -> dict[str, torch.Tensor]:
    """The keys and shapes of the real 1.5, without memory."""
    lines = gzip.decompress((DATA / f"state_dict_{name}.tsv.gz").read_bytes()).decode().splitlines()
    pairs = (line.split("\t") for line in lines)
    return {
        key: torch.empty([int(n) for n in shape.strip("()").split(",") if n], device="meta") for key, shape in pairs
    }


def test_the_real_checkpoint_fits_the_real_sizes() -> None:
    config = yaml.safe_load((DATA / "config_1.5.yaml").read_text())
    runtime = build(config, published_shapes("gpt"), published_shapes("bigvgan"), device="meta")
    gpt = sum(p.numel() for p in runtime.gpt.parameters())
    assert gpt == pytest.approx(583.0e6, abs=0.05e6)
    assert sum(p.numel() for p in runtime.gpt.gpt.parameters()) == pytest.approx(472.3e6, abs=0.05e6)
    assert runtime.vocoder.shape.reach == 31
    assert runtime.samples_per_code == 1024


@pytest.mark.parametrize("key", ["final_norm.weight", "perceiver_encoder.layers.1.1.2.bias", "gpt.h.23.mlp.c_fc.bias"])
def test_a_real_checkpoint_without_a_key_does_not_fit(key: str) -> None:
    config = yaml.safe_load((DATA / "config_1.5.yaml").read_text())
    shapes = published_shapes("gpt")
    del shapes[key]
    with pytest.raises(EngineUnavailable, match=f"gpt.pth .* {key} is missing"):
        build(config, shapes, published_shapes("bigvgan"), device="meta")


def change(folder: Path, file: str, how: Callable[[dict[str, Any]], object]) -> None:
    content = torch.load(folder / file, weights_only=True)
    how(content.get("generator", content))
    torch.save(content, folder / file)


def configure(folder: Path, section: str, **settings: object) -> None:
    config = yaml.safe_load((folder / CONFIG).read_text())
    config[section] |= settings
    (folder / CONFIG).write_text(yaml.safe_dump(config))


def truncate(path: Path) -> None:
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size // 2)


@pytest.mark.parametrize(
    ("damage", "file", "what"),
    [
        (lambda f: (f / GPT).unlink(), GPT, "is missing"),
        (lambda f: (f / TEXT_MODEL).unlink(), TEXT_MODEL, "is missing"),
        (lambda f: (f / CONFIG).unlink(), CONFIG, "is missing"),
        (lambda f: truncate(f / GPT), GPT, "is truncated or not a checkpoint"),
        (lambda f: truncate(f / VOCODER), VOCODER, "is truncated or not a checkpoint"),
        (lambda f: (f / VOCODER).write_bytes(b""), VOCODER, "is truncated or not a checkpoint"),
        (lambda f: torch.save([1], f / GPT), GPT, "does not contain a state dict"),
        (lambda f: change(f, GPT, lambda s: s.pop("gpt.ln_f.bias")), GPT, "the key gpt.ln_f.bias is missing"),
        (lambda f: change(f, VOCODER, lambda s: s.pop("ups.2.0.weight_g")), VOCODER, "ups.2.0.weight_g is missing"),
        (lambda f: change(f, VOCODER, lambda s: s.pop("conv_pre.weight_v")), VOCODER, "conv_pre.weight is missing"),
        (
            lambda f: change(f, GPT, lambda s: s.update({"mel_head.bias": torch.zeros(3)})),
            GPT,
            r"mel_head.bias has the shape \[3\] instead of \[258\]",
        ),
        (
            lambda f: change(f, VOCODER, lambda s: s.update({"ups.0.0.weight_g": torch.ones(1, 64, 1)})),
            VOCODER,
            r"ups.0.0.weight_g has the shape \[1, 64, 1\]",
        ),
        (lambda f: change(f, GPT, lambda s: s.update(extra=torch.zeros(1))), GPT, "the key extra is unknown"),
        (lambda f: configure(f, "gpt", layers=3), GPT, r"the key gpt.h.2.*is missing"),
        (lambda f: configure(f, "gpt", model_dim=128), GPT, r"has the shape \[.*\] instead of"),
        (lambda f: configure(f, "bigvgan", feat_upsample=True), CONFIG, "bigvgan.feat_upsample"),
        (lambda f: configure(f, "gpt", condition_module={}), CONFIG, "output_size"),
        (lambda f: (f / CONFIG).write_text("gpt: {}"), CONFIG, "no section `bigvgan`"),
        (lambda f: (f / CONFIG).write_text("gpt: ["), CONFIG, "is not valid YAML"),
    ],
)  # fmt: skip
def test_a_wrong_folder_is_refused_in_a_sentence(
    checkpoint: Path, tmp_path: Path, damage: Callable[[Path], object], file: str, what: str
) -> None:
    folder = Path(shutil.copytree(checkpoint, tmp_path / "copy"))
    damage(folder)
    with pytest.raises(EngineUnavailable, match=what) as refused:
        Checkpoint.open(folder)
    assert file in str(refused.value)
    assert "\n" not in str(refused.value)
    assert HOW in str(refused.value) or "this runtime supports only" in str(refused.value)


@pytest.mark.parametrize(
    ("damage", "what"),
    [
        (
            lambda f: (f / TEXT_MODEL).write_bytes(b"no vocabulary"),
            "bpe.model is truncated or not a sentencepiece model",
        ),
        (lambda f: truncate(f / TEXT_MODEL), "bpe.model is truncated or not a sentencepiece model"),
        (lambda f: train_vocabulary(f / TEXT_MODEL, 190), r"bpe.model does not fit config.yaml: it has 1\d\d tokens"),
    ],
)
def test_a_wrong_vocabulary_is_refused(
    checkpoint: Path, tmp_path: Path, damage: Callable[[Path], object], what: str
) -> None:
    folder = Path(shutil.copytree(checkpoint, tmp_path / "copy"))
    damage(folder)
    with pytest.raises(EngineUnavailable, match=what):
        Checkpoint.open(folder).frontend()


def test_what_the_public_program_leaves_behind_is_ignored(checkpoint: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(checkpoint, tmp_path / "copy"))
    leftovers = {
        "gpt.wte.weight": torch.zeros(1, 64),
        "inference_model.lm_head.0.weight": torch.zeros(64),
        "gpt.h.0.attn.bias": torch.ones(1, 1, 8, 8),
        "gpt.h.0.attn.masked_bias": torch.tensor(-1e4),
        "logit_scale": torch.tensor(1.0),
        "conditioning_encoder.embed.pos_enc.pe": torch.zeros(1, 5000, 32),
    }
    change(folder, GPT, lambda state: state.update(leftovers))
    change(folder, VOCODER, lambda s: s.update({"activation_post.upsample.filter": torch.zeros(1, 1, 12)}))
    assert Checkpoint.open(folder).load(CPU, torch.float32).samples_per_code == 1024


def test_state_dicts_may_be_nested_or_bare(checkpoint: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(checkpoint, tmp_path / "copy"))
    torch.save({"model": torch.load(folder / GPT, weights_only=True)}, folder / GPT)
    torch.save(torch.load(folder / VOCODER, weights_only=True)["generator"], folder / VOCODER)
    torch.save(torch.load(folder / GPT, weights_only=True), folder / GPT, _use_new_zipfile_serialization=False)
    Checkpoint.open(folder).load(CPU, torch.float32)


def test_a_checkpoint_that_would_run_code_is_refused(checkpoint: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(checkpoint, tmp_path / "copy"))
    torch.save({"model": Path("surprise")}, folder / GPT)
    with pytest.raises(EngineUnavailable, match=r"gpt\.pth is truncated or not a checkpoint"):
        Checkpoint.open(folder)


@pytest.mark.parametrize(("written", "version"), [(1.5, "1.5.0"), (None, "1.0.0"), ("1.5.2", "1.5.2")])
def test_the_version_is_the_configurations(tmp_path: Path, written: object, version: str) -> None:
    config = {} if written is None else {"version": written}
    assert Checkpoint(tmp_path, config).version == version
