"""Sampling, batches and beams."""

from __future__ import annotations

import itertools
from collections.abc import Generator, Sequence
from typing import Any

import numpy as np
import pytest
import torch

from streaming_server.engines.indextts.runtime import Runtime
from streaming_server.engines.torch import decoding
from streaming_server.engines.torch.beams import Sentence
from streaming_server.engines.torch.codes import DecodedBatch
from streaming_server.engines.torch.decoding import Decoder
from streaming_server.engines.torch.sampling import Sampling, Warp
from streaming_server.errors import EngineFailed
from tests.engines.indextts import parity

TEXTS = [[5, 9, 30, 7], [44, 3], [8, 8, 61, 100, 23, 4, 19, 2, 70], [90]]


def finish(steps: DecodedBatch) -> list[tuple[list[int], torch.Tensor]]:
    while True:
        try:
            next(steps)
        except StopIteration as end:
            result: list[tuple[list[int], torch.Tensor]] = end.value
            return result


def seeded(count: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(100 + index) for index in range(count)]


@pytest.fixture(scope="module")
def stopping() -> Runtime:
    """The fixtures' model, but one that stops after some codes, differently for each text."""
    runtime = parity.build_runtime()
    bias = runtime.gpt.mel_head.bias.data.clone()  # the weights themselves belong to the other runtimes too
    bias[65] = 0.4
    runtime.gpt.mel_head.bias.data = bias
    return runtime


def warped(sampling: Sampling, logits: Any, ids: Any) -> torch.Tensor:
    warp = Warp(torch.device("cpu"))
    warp.set(sampling)
    rows = torch.as_tensor(logits)
    seen = torch.zeros_like(rows, dtype=torch.bool).scatter_(1, torch.as_tensor(ids), True)
    return warp.truncate(warp.penalise(rows, seen)).softmax(-1)


def test_probabilities_are_the_published_ones() -> None:
    with np.load(parity.DATA / "sampling.npz") as data:
        probabilities = warped(Sampling(True, 0.8, 30, 0.8, 10.0), data["logits"], data["ids"])
        np.testing.assert_allclose(probabilities, data["probs"], atol=1e-6)


def test_each_parameter_cuts_what_it_should() -> None:
    logits, none = [[4.0, 3.0, 2.0, 1.0, 0.0, -1.0]], torch.zeros(1, 0, dtype=torch.long)
    plain = torch.tensor(logits).softmax(-1)
    torch.testing.assert_close(warped(Sampling(True, 1.0, 0, 1.0, 1.0), logits, none), plain)
    assert warped(Sampling(True, 1.0, 2, 1.0, 1.0), logits, none).count_nonzero() == 2
    assert warped(Sampling(True, 1.0, 99, 1.0, 1.0), logits, none).count_nonzero() == 6
    assert warped(Sampling(True, 0.7, 0, 1.0, 1.0), logits, none).count_nonzero() == 2
    assert warped(Sampling(True, 0.0, 0, 1.0, 1.0), logits, none).count_nonzero() == 1
    assert warped(Sampling(True, 1.0, 0, 0.1, 1.0), logits, none)[0, 0] > 0.999
    assert warped(Sampling(True, 1.0, 0, 0.0, 1.0), logits, none)[0, 0] == 1.0
    pushed = warped(Sampling(True, 1.0, 0, 1.0, 2.0), logits, [[0, 5]])
    torch.testing.assert_close(pushed, torch.tensor([[2.0, 3.0, 2.0, 1.0, 0.0, -2.0]]).softmax(-1))


def test_draws_follow_the_probabilities() -> None:
    warp = Warp(torch.device("cpu"))
    warp.set(Sampling(True, 1.0, 0, 1.0, 1.0))
    rows = 20_000
    logits = torch.tensor([0.5, 0.3, 0.2]).log().expand(rows, 3)
    noise = torch.empty(rows, 3).exponential_(generator=torch.Generator().manual_seed(1))
    drawn = warp.draw(logits, torch.zeros(rows, 3, dtype=torch.bool), noise).bincount(minlength=3) / rows
    torch.testing.assert_close(drawn, torch.tensor([0.5, 0.3, 0.2]), atol=0.015, rtol=0)


def test_the_decoding_ends_at_stop_or_at_the_models_bound(runtime: Runtime, stopping: Runtime) -> None:
    conditioning = parity.numbers()["cond"]
    assert len(list(runtime.decode(conditioning, TEXTS[0], 10_000))) == parity.config()["gpt"]["max_mel_tokens"]
    lengths = {len(list(stopping.decode(conditioning, TEXTS[0], 200, generator=g))) for g in seeded(8)}
    assert len(lengths) > 2
    assert max(lengths) < 200


def test_codes_that_are_read_late_are_the_same(
    runtime: Runtime, stopping: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a GPU the host reads a code some steps after it was sampled."""

    def decoded() -> list[list[int]]:
        conditioning = parity.numbers()["cond"]
        one = [code for code, _ in stopping.decode(conditioning, TEXTS[0], 200, generator=seeded(1)[0])]
        batch = finish(stopping.decode_batch(conditioning, TEXTS, 30, Sampling(do_sample=False)))
        return [one, *(codes for codes, _ in batch)]

    at_once = decoded()
    monkeypatch.setitem(decoding.LAG, "cpu", 3)
    assert decoded() == at_once
    parity.check_greedy(runtime)
    assert len(list(runtime.decode(parity.numbers()["cond"], TEXTS[0], 10_000))) == 200


def test_more_text_than_the_model_has_positions_for_is_refused(runtime: Runtime) -> None:
    with pytest.raises(ValueError, match="61 text tokens; the model takes at most 60"):
        runtime.decode(parity.numbers()["cond"], [5] * 61, 10)


def test_decodings_side_by_side_do_not_disturb_each_other(runtime: Runtime) -> None:
    def decoding() -> Generator[tuple[int, torch.Tensor], None, None]:
        return runtime.decode(parity.numbers()["cond"], parity.numbers()["text"], 20, do_sample=False)

    pairs = list(zip(decoding(), decoding(), strict=True))
    expected = parity.numbers()["codes_greedy_aligned"][:20].tolist()
    assert [(a, b) for (a, _), (b, _) in pairs] == [(code, code) for code in expected]


def same(one: Sequence[tuple[list[int], torch.Tensor]], other: Sequence[tuple[list[int], torch.Tensor]]) -> None:
    assert [codes for codes, _ in one] == [codes for codes, _ in other]
    for (_, latents), (_, others) in zip(one, other, strict=True):
        torch.testing.assert_close(latents, others, atol=1e-4, rtol=0)


@pytest.mark.parametrize("num_beams", [1, 3])
@pytest.mark.parametrize("do_sample", [True, False])
def test_a_batch_gives_what_its_sentences_give_alone(stopping: Runtime, num_beams: int, do_sample: bool) -> None:
    conditioning, sampling = parity.numbers()["cond"], Sampling(do_sample=do_sample)

    def decoded(texts: Sequence[list[int]], chances: list[torch.Generator]) -> list[tuple[list[int], torch.Tensor]]:
        return finish(stopping.decode_batch(conditioning, texts, 40, sampling, num_beams, 1.0, chances))

    together = decoded(TEXTS, seeded(len(TEXTS)))
    alone = [
        decoded([text], [chance])[0] for text, chance in zip(TEXTS, seeded(len(TEXTS)), strict=True)
    ]  # fmt: skip
    same(together, alone)
    assert len({tuple(codes) for codes, _ in together}) > 2
    for codes, latents in together:
        assert len(codes) == len(latents)
        assert 65 not in codes


def test_one_row_of_a_batch_is_the_stream(stopping: Runtime) -> None:
    conditioning = parity.numbers()["cond"]
    [batch] = finish(stopping.decode_batch(conditioning, TEXTS[:1], 60, Sampling(), generators=seeded(1)))
    pairs = list(stopping.decode(conditioning, TEXTS[0], 60, generator=seeded(1)[0]))
    same([batch], [([code for code, _ in pairs], torch.stack([latent for _, latent in pairs]))])


def test_beams_find_the_best_sequence(runtime: Runtime) -> None:
    """With as many beams as codes, two steps are searched exhaustively; compared with trying every first code."""
    numbers, vocabulary = parity.numbers(), 66
    decoder = Decoder(runtime.gpt, vocabulary, 200, 3)
    prompt = runtime.gpt.prompt(torch.from_numpy(numbers["cond"]), torch.from_numpy(numbers["text"]))
    decoder.start([prompt] * vocabulary, Sampling(do_sample=False, repetition_penalty=1.0))
    first = decoder.logits[0].log_softmax(-1)
    decoder.code.copy_(torch.arange(vocabulary))
    decoder.advance_once()
    totals = first[:, None] + decoder.logits.log_softmax(-1)
    best = divmod(int(totals.argmax()), vocabulary)
    sampling = Sampling(do_sample=False, repetition_penalty=1.0)
    [(codes, latents)] = finish(runtime.decode_batch(numbers["cond"], [numbers["text"]], 2, sampling, vocabulary))
    assert tuple(codes) == best
    torch.testing.assert_close(latents[1], decoder.latents[best[0], 1], atol=1e-4, rtol=0)


def test_more_beams_find_likelier_codes(runtime: Runtime) -> None:
    conditioning, text = parity.numbers()["cond"], parity.numbers()["text"]

    def likelihood(num_beams: int) -> float:
        sampling = Sampling(do_sample=False, repetition_penalty=1.0)
        [(codes, latents)] = finish(runtime.decode_batch(conditioning, [text], 12, sampling, num_beams))
        chances = runtime.gpt.mel_head(latents).log_softmax(-1)
        return float(chances[range(12), codes].sum())

    assert likelihood(1) < likelihood(4)


def test_the_length_penalty_decides_between_short_and_long() -> None:
    latents = torch.zeros(20, 1)
    for penalty, winner in ((0.0, 2), (2.0, 20)):
        sentence = Sentence(beams=3, length_penalty=penalty, running=[])
        for score, length in ((-3.0, 2), (-9.0, 20), (-40.0, 5)):
            sentence.finish(score, [7] * length, latents[:length])
        assert len(sentence.finished[0].codes) == winner


def test_the_latents_are_known_before_the_code_is_drawn(runtime: Runtime) -> None:
    """Two continuations share the latents up to the code in which they differ, that one included."""
    conditioning, text = parity.numbers()["cond"], parity.numbers()["text"]
    one, two = (list(runtime.decode(conditioning, text, 30, generator=g)) for g in seeded(2))
    shared = len(list(itertools.takewhile(lambda pair: pair[0][0] == pair[1][0], zip(one, two, strict=True))))
    assert shared < 29
    for (_, latent), (_, other) in zip(one[: shared + 1], two[: shared + 1], strict=True):
        torch.testing.assert_close(latent, other)
    assert (one[shared + 1][1] - two[shared + 1][1]).abs().max() > 0.1


@pytest.mark.parametrize("num_beams", [1, 2])
def test_a_prompt_that_is_not_finite_ends_alone(runtime: Runtime, num_beams: int) -> None:
    """Cache contents do not affect the next decoding, shorter or longer."""
    conditioning, text = parity.numbers()["cond"], parity.numbers()["text"]

    def decoded(voice: Any, ids: Any) -> list[int]:
        if num_beams > 1:
            [(codes, _)] = finish(runtime.decode_batch(voice, [ids], 12, Sampling(do_sample=False), num_beams))
            return codes
        return [code for code, _ in runtime.decode(voice, ids, 12, do_sample=False)]

    before = decoded(conditioning, text[:3])
    with pytest.raises(EngineFailed, match="not finite"):
        decoded(np.full_like(conditioning, np.nan), text)
    assert decoded(conditioning, text[:3]) == before


def test_a_value_that_overflows_while_decoding_ends_alone(runtime: Runtime) -> None:
    conditioning, text = torch.from_numpy(parity.numbers()["cond"]), torch.from_numpy(parity.numbers()["text"])
    decoder = Decoder(runtime.gpt, 1, 200, 20)

    def decoded(codes: int) -> list[list[int]]:
        prompt = runtime.gpt.prompt(conditioning, text[:3])
        return list(decoder.run([prompt], codes, Sampling(do_sample=False), [None]))

    before = decoded(8)
    decoded(20)
    decoder.cache.layers[:, :, :, :, : decoder.used] = torch.nan
    assert decoded(8) == before
