"""Emotions: their arithmetic, and descriptions read by a classifier or by words."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers

from streaming_server.domain import EMOTIONS
from streaming_server.engines.indextts2.description import Classifier, Words, describer, scores_of
from streaming_server.engines.indextts2.emotion import EmotionMatrix, capped, weakened
from streaming_server.engines.torch.torchaudio import settle_torchaudio
from streaming_server.errors import EngineUnavailable

CPU = torch.device("cpu")
HAPPY = (1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0)


def test_the_web_pages_bias_and_cap() -> None:
    assert capped((0.2, 0, 0, 0, 0, 0, 0.4, 0)) == pytest.approx([0.1875, 0, 0, 0, 0, 0, 0.275, 0])
    strong = capped((1, 1, 0, 0, 0, 0, 0, 1))
    assert sum(strong) == pytest.approx(0.8)
    assert strong[0] / strong[7] == pytest.approx(0.9375 / 0.5625)


def test_the_weight_cuts_to_four_places() -> None:
    assert weakened((0.33333, 0.5), 0.65) == [0.2166, 0.325]
    assert weakened((0.33333, 0.5), 1.0) == [0.33333, 0.5]


@pytest.fixture
def matrix() -> EmotionMatrix:
    generator = torch.Generator().manual_seed(0)
    return EmotionMatrix(
        torch.randn(9, 5, generator=generator), torch.randn(9, 4, generator=generator), (1, 2, 1, 1, 1, 1, 1, 1)
    )


def test_a_vector_is_a_blend_with_the_voices_own(matrix: EmotionMatrix) -> None:
    base, rows = torch.ones(4), torch.zeros(8, dtype=torch.long)
    blend = matrix.vector([0.25, 0.5, 0, 0, 0, 0, 0, 0], rows, base)
    torch.testing.assert_close(blend, 0.25 * matrix.vectors[0] + 0.5 * matrix.vectors[1] + 0.25 * base)
    second = matrix.vector([0, 1, 0, 0, 0, 0, 0, 0], torch.tensor([0, 1, 0, 0, 0, 0, 0, 0]), base)
    torch.testing.assert_close(second, matrix.vectors[2])
    assert torch.equal(matrix.vector([0] * 8, rows, base), base)


def test_the_nearest_row_is_that_of_the_likest_speaker(matrix: EmotionMatrix) -> None:
    assert matrix.nearest(3 * matrix.styles[2]).tolist()[1] == 1
    assert matrix.nearest(matrix.styles[1]).tolist()[1] == 0


def test_drawn_rows_are_inside_their_groups_and_come_again_with_their_seed() -> None:
    matrix = EmotionMatrix(torch.zeros(73, 2), torch.zeros(73, 2), (3, 17, 2, 8, 4, 5, 10, 24))
    draws = [matrix.drawn(torch.Generator().manual_seed(seed)).tolist() for seed in (1, 1, *range(2, 40))]
    assert draws[0] == draws[1]
    assert len({tuple(draw) for draw in draws}) > 30
    for size, rows in zip(matrix.sizes, zip(*draws, strict=True), strict=True):
        assert 0 <= min(rows) <= max(rows) < size


def vector_of(**parts: float) -> tuple[float, ...]:
    return tuple(parts.get(name, 0.0) for name in EMOTIONS)


@pytest.mark.parametrize(
    ("answer", "vector"),
    [
        ('<think>愤怒: 0.9</think>\n{"高兴": 0.7, "惊讶": 0.2}', vector_of(happy=0.7, surprised=0.2)),
        ('{"愤怒": 1.5, "悲伤": -1}', vector_of(angry=1.0)),
        ('{"emotion": "恐惧"}', vector_of(afraid=1.0)),
        ('{"情绪": "低落", "反感": "0.5"}', vector_of(melancholic=1.0, disgusted=0.5)),
        ("高兴：0.4，自然: 0.3 and so on", vector_of(happy=0.4, calm=0.3)),
        ('{"高兴": "very", "愤怒": NaN, "自然": null}', vector_of(calm=1.0)),
        ("[1, 2]", vector_of(calm=1.0)),
        ("", vector_of(calm=1.0)),
        ('{"高兴": 0, "other": 3}', vector_of(calm=1.0)),
    ],
)
def test_what_the_classifier_answers_becomes_a_vector(answer: str, vector: tuple[float, ...]) -> None:
    assert scores_of(answer, "whatever") == pytest.approx(vector)


@pytest.mark.parametrize("description", ["感到低落", "a GLOOMY day", "depression"])
def test_what_the_classifier_takes_for_sadness_is_melancholy(description: str) -> None:
    assert scores_of('{"悲伤": 0.8, "低落": 0.1}', description) == vector_of(sad=0.1, melancholic=0.8)


def test_words_know_some_and_take_the_rest_for_calm() -> None:
    assert Words().read("happy") == HAPPY
    assert Words().read("xyzzy") == vector_of(calm=1.0)


TEMPLATE = (
    "{% for message in messages %}{{ message.role }} {{ message.content }} {% endfor %}"
    "{% if not enable_thinking %}quiet{% endif %}{% if add_generation_prompt %} assistant{% endif %}"
)


@pytest.fixture(scope="module")
def classifier_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny chat model with random weights, whose tokenizer knows the words of an answer."""
    settle_torchaudio()
    from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

    folder = tmp_path_factory.mktemp("classifier")
    words = ["<unk>", "<eos>", "system", "user", "quiet", "assistant", "文本情感分类", "高兴", ":", "0.5", "{", "}"]
    words += ["happy", "sad"]
    core = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, unk_token="<unk>", eos_token="<eos>")
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=len(words), hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, head_dim=8, eos_token_id=1, bos_token_id=None,
    )  # fmt: skip
    Qwen3ForCausalLM(config).save_pretrained(folder)
    return folder


def test_the_classifier_is_asked_where_its_folder_is(classifier_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read = describer(classifier_folder, CPU)
    assert isinstance(read, Classifier)
    assert read.name == "classifier"
    prompts: list[str] = []
    generate = read._model.generate

    def watched(input_ids: torch.Tensor, **how: object) -> torch.Tensor:
        prompts.append(read._tokenizer.decode(input_ids[0]))
        assert how["do_sample"] is False
        ids: torch.Tensor = generate(input_ids=input_ids, **how)
        return ids

    monkeypatch.setattr(read._model, "generate", watched)
    assert read.read("happy") == read.read("happy")
    checks: list[None] = []
    read.read("sad", lambda: checks.append(None))
    assert len(checks) > 1  # between tokens, so that others have a turn
    prompts.pop()
    assert prompts == ["system 文本情感分类 user happy quiet assistant"]  # asked once, and told not to think


def test_without_its_folder_the_words_are(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        assert describer(None, CPU).name == "words"
    assert "use the word list" in caplog.text


def test_a_broken_classifier_is_refused_in_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "qwen3"}))
    with pytest.raises(EngineUnavailable, match="contains no emotion classifier"):
        describer(tmp_path, CPU)
