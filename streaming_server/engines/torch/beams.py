"""Beam search and beam sampling over a batch of sentences; the result is available only at the end.

Each beam follows the distribution that a single beam would sample from. The score of a hypothesis is the sum of its
log-probabilities divided by its length to the power of the length penalty.
"""

from __future__ import annotations

import math
from collections.abc import Generator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from streaming_server.engines.torch.decoding import Decoder
from streaming_server.engines.torch.sampling import Sampling


@dataclass(frozen=True, slots=True)
class Hypothesis:
    """Codes without STOP and their latents ``(codes, width)``."""

    score: float
    codes: list[int]
    latents: Tensor


MAX_LENGTH_PENALTY = 50.0


@dataclass(slots=True)
class Sentence:
    """The running beams and the finished hypotheses of one sentence."""

    beams: int
    length_penalty: float
    running: list[list[int]]
    finished: list[Hypothesis] = field(default_factory=list)
    done: bool = False

    def normalised(self, score: float, length: int) -> float:
        # The bound prevents overflow at any length; at the bound only the length decides.
        exponent = min(max(self.length_penalty, -MAX_LENGTH_PENALTY), MAX_LENGTH_PENALTY)
        return score / math.pow(max(1, length), exponent)

    def finish(self, score: float, codes: list[int], latents: Tensor) -> None:
        self.finished.append(Hypothesis(self.normalised(score, len(codes)), codes, latents.clone()))
        self.finished.sort(key=lambda hypothesis: -hypothesis.score)
        del self.finished[self.beams :]

    def choose(
        self, values: list[float], ids: list[int], decoder: Decoder, first_row: int, length: int
    ) -> list[tuple[float, int, int]]:
        """Split candidates, best first, into finished hypotheses and the next beams ``(score, decoder row, code)``.

        The sentence is done when no running beam, scored at its current length, can enter the finished hypotheses.
        """
        if self.done:
            return [(-math.inf, first_row + beam, 0) for beam in range(self.beams)]
        shape = decoder.gpt.shape
        chosen: list[tuple[float, int, int]] = []
        for rank, (value, candidate) in enumerate(zip(values, ids, strict=True)):
            beam, code = divmod(candidate, shape.mel_codes)
            if code != shape.stop_mel:
                chosen.append((value, beam, code))
            elif rank < self.beams and value > -math.inf:
                self.finish(value, self.running[beam], decoder.latents[first_row + beam, :length])
        del chosen[self.beams :]
        self.running = [[*self.running[beam], code] for _, beam, code in chosen]
        best = chosen[0][0]
        full = len(self.finished) == self.beams
        self.done = best == -math.inf or (full and self.finished[-1].score >= self.normalised(best, length + 1))
        return [(value, first_row + beam, code) for value, beam, code in chosen]

    def best(self, scores: list[float], latents: Tensor) -> Hypothesis:
        """Return the best hypothesis, including the running beams if the limit of codes was reached."""
        if not self.done:
            for score, codes, row in zip(scores, self.running, latents, strict=True):
                if score > -math.inf:
                    self.finish(score, codes, row)
        return self.finished[0]


def search(
    decoder: Decoder, prompts: Sequence[Tensor], beams: int, max_codes: int, sampling: Sampling, length_penalty: float,
    generators: Sequence[torch.Generator | None],
) -> Generator[None, None, list[Hypothesis]]:  # fmt: skip
    """Return the best hypothesis of each sentence; yields after every code, so that the caller can stop.

    The decoder has ``len(prompts) · beams`` rows. There is one generator per sentence; only sampling uses them.
    """
    device, vocabulary = decoder.device, decoder.gpt.shape.mel_codes
    decoder.start([prompt for prompt in prompts for _ in range(beams)], sampling)
    decoder.require_finite()
    sentences = [Sentence(beams, length_penalty, [[] for _ in range(beams)]) for _ in prompts]
    scores = torch.full((len(prompts), beams), -math.inf, device=device)
    scores[:, 0] = 0.0  # the beams of a sentence are identical at the start, so only one of them counts
    noise = torch.ones(len(prompts), beams * vocabulary, device=device)
    for length in range(max_codes):
        logits = decoder.warp.penalise(decoder.logits, decoder.seen)
        if sampling.do_sample:
            logits = decoder.warp.truncate(logits)
            for row, generator in zip(noise, generators, strict=True):
                row.exponential_(generator=generator)
        totals = (logits.log_softmax(-1).view(len(prompts), beams, -1) + scores[..., None]).flatten(1)
        candidates = pick(totals, noise, 2 * beams)  # (sentences, 2 beams)
        values, ids = totals.gather(1, candidates).tolist(), candidates.tolist()
        chosen: list[tuple[float, int, int]] = []
        for index, sentence in enumerate(sentences):
            chosen += sentence.choose(values[index], ids[index], decoder, index * beams, length)
        best = [score for score, _, _ in chosen]
        yield
        if all(sentence.done for sentence in sentences):
            break
        scores = torch.tensor(best, device=device).view(len(prompts), beams)
        rows = [row for _, row, _ in chosen]
        decoder.follow(torch.tensor(rows, device=device), torch.tensor([code for *_, code in chosen], device=device))
        if length + 1 < max_codes:
            decoder.advance_once()
    return [
        sentence.best(best[index * beams :][:beams], decoder.latents[index * beams :][:beams, :max_codes])
        for index, sentence in enumerate(sentences)
    ]


def pick(totals: Tensor, noise: Tensor, count: int) -> Tensor:
    """Indices of ``count`` candidates per row, best first, sampled without replacement with exponential noise.

    With noise of ones these are the candidates with the highest totals.
    """
    drawn = (totals - noise.log()).topk(min(count, totals.shape[1]), dim=1).indices
    order = totals.gather(1, drawn).argsort(dim=1, descending=True, stable=True)
    return drawn.gather(1, order)
