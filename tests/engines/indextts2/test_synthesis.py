"""Audio of chunked synthesis compared with synthesis at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import islice, pairwise
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from streaming_server.engines.indextts2 import chunks
from streaming_server.engines.indextts2.acoustics import Acoustics
from streaming_server.engines.indextts2.chunks import CHUNK, SEGMENT, MelChunk, MelStream, Pace
from streaming_server.engines.indextts2.flow import Flow, Noise, Reference
from streaming_server.engines.indextts2.synthesis import Synthesis, record, solved_lengths
from streaming_server.engines.torch.pieces import result_of
from streaming_server.engines.torch.vocoder import Generator, GeneratorShape
from tests.engines.indextts.weights import state
from tests.engines.indextts2 import acoustic_parity as parity

STEPS = 2
CODES = 60
QUICK = Pace((10, 20), look_ahead=8, past=20, code_look_ahead=2)


def build(enhanced: bool) -> Acoustics:
    """The published fixtures' model with a vocoder that takes less time."""
    acoustics = parity.build(enhanced)
    shape = GeneratorShape(80, 16, (16, 16), (32, 32), (3,), ((1, 3),))
    vocoder = Generator(shape, bound="clamp", last_bias=False)
    vocoder.load_state_dict(state({key: list(value.shape) for key, value in vocoder.state_dict().items()}))
    return Acoustics(acoustics.s2mel, acoustics.codec, vocoder.requires_grad_(requires_grad=False))


@pytest.fixture(scope="module", params=[False, True], ids=["2.0", "2.5"])
def acoustics(request: pytest.FixtureRequest) -> Acoustics:
    return build(request.param)


def some_codes(count: int = CODES, seed: int = 7) -> tuple[Tensor, Tensor]:
    """Codes and, for 2.0, their latents."""
    random = np.random.RandomState(seed)
    return torch.from_numpy(random.randint(0, 64, count)), torch.from_numpy(parity.normal(seed, count, 1280))


def synthesis(acoustics: Acoustics, pace: Pace, **others: Any) -> Synthesis:
    settings = {"steps": STEPS, "seed": 1} | others
    return Synthesis(acoustics, MelStream(acoustics, parity.reference(), pace, **settings))


def spoken(
    acoustics: Acoustics, pace: Pace, cuts: Sequence[int] = (), count: int = CODES, seed: int = 1,
    duration_factor: float = 1.0,
) -> Tensor:  # fmt: skip
    codes, latents = some_codes(count)
    speech = synthesis(acoustics, pace, seed=seed, duration_factor=duration_factor)
    pieces = []
    for first, end in pairwise([0, *cuts, count]):
        given_latents = None if acoustics.decodes_ahead else latents[first:end]
        pieces.append(result_of(speech.push(codes[first:end], given_latents)))
    return torch.cat([*pieces, result_of(speech.finish())])


def plain(acoustics: Acoustics, count: int = CODES, seed: int = 1, duration_factor: float = 1.0) -> Tensor:
    """The reference: each stage over the complete input."""
    codes, latents = some_codes(count)
    mu = acoustics.mu(codes, None if acoustics.decodes_ahead else latents, duration_factor)
    noise = Noise(acoustics.bands, seed)(0, len(mu))
    return acoustics.vocode(acoustics.cfm(mu, parity.reference(), noise.mT, STEPS))


@pytest.fixture(scope="module")
def quick(acoustics: Acoustics) -> Tensor:
    """The audio of all codes at once, in quick chunks."""
    return spoken(acoustics, QUICK)


@settings(max_examples=4, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(cuts=st.lists(st.integers(0, CODES), max_size=6).map(sorted))
def test_how_the_codes_come_changes_nothing(acoustics: Acoustics, quick: Tensor, cuts: list[int]) -> None:
    assert torch.equal(spoken(acoustics, QUICK, cuts), quick)


def test_code_by_code_is_the_same_and_comes_when_announced(acoustics: Acoustics, quick: Tensor) -> None:
    codes, latents = some_codes()
    speech = synthesis(acoustics, QUICK)
    wanted = QUICK.code_counts(acoustics)
    announced = next(wanted)
    pieces = []
    for known in range(1, CODES + 1):
        beside = None if acoustics.decodes_ahead else latents[known - 1 : known]
        pieces.append(result_of(speech.push(codes[known - 1 : known], beside)))
        assert (len(pieces[-1]) > 0) == (known == announced)
        if known == announced:
            announced = next(wanted)
    heard = [len(piece) // 256 for piece in pieces if len(piece)]
    assert heard[:3] == [10, 20, 20]
    assert torch.equal(torch.cat([*pieces, result_of(speech.finish())]), quick)


def test_only_a_codec_that_looks_ahead_waits_for_more_codes(acoustics: Acoustics) -> None:
    waits = [sum(islice(replace(QUICK, code_look_ahead=codes).code_counts(acoustics), 5)) for codes in (0, 2)]
    assert waits[1] - waits[0] == (10 if acoustics.decodes_ahead else 0)


@pytest.mark.parametrize("duration_factor", [1.0, 1.3, 0.6])
def test_one_solve_equals_the_plain_way(acoustics: Acoustics, duration_factor: float) -> None:
    expected = plain(acoustics, duration_factor=duration_factor)
    frames = acoustics.frames(CODES, duration_factor)
    for pace in (SEGMENT, Pace((frames + 1,)), replace(CHUNK, chunks=(10_000,))):
        samples = spoken(acoustics, pace, cuts=[3, 50], duration_factor=duration_factor)
        assert samples.shape == expected.shape
        assert (samples - expected).abs().max() < 1e-6


@pytest.mark.parametrize("duration_factor", [1.0, 2.0])
@pytest.mark.parametrize("pace", [SEGMENT, CHUNK], ids=["segment", "chunk"])
def test_every_solve_of_slow_speech_has_a_recorded_length(
    acoustics: Acoustics, pace: Pace, duration_factor: float
) -> None:
    most = 200
    longest = solved_lengths(acoustics, pace, acoustics.frames(most), duration_factor)[-1]
    for codes in range(most + 1):
        cuts = islice(zip(pace.code_counts(acoustics, duration_factor), pace.ends(), strict=False), most)
        done = max((end for known, end in cuts if known <= codes), default=0)
        assert acoustics.frames(codes, duration_factor) - max(0, done - pace.past) <= longest


def test_latents_of_another_stream_are_copied(acoustics: Acoustics) -> None:
    """Else their memory would be used again before the next chunk has read them."""
    codes, latents = some_codes(3)
    mel = MelStream(acoustics, parity.reference(), CHUNK, STEPS, seed=1)
    result_of(mel.push(codes, latents))
    assert mel._latents is not None
    assert mel._latents.untyped_storage().data_ptr() != latents.untyped_storage().data_ptr()
    assert torch.equal(mel._latents, latents)


def test_a_short_utterance_has_statistics_of_its_own(acoustics: Acoustics) -> None:
    codes, latents = some_codes(8)
    beside = None if acoustics.decodes_ahead else latents
    others, other_latents = some_codes(50, seed=9)
    statistics = acoustics.statistics(others, None if acoustics.decodes_ahead else other_latents)
    speech = synthesis(acoustics, CHUNK, statistics=statistics)
    assert (result_of(speech.finish(codes, beside)) - plain(acoustics, 8)).abs().max() < 1e-6


@settings(max_examples=8, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(
    count=st.integers(0, 70),
    chunks=st.lists(st.integers(1, 40), max_size=3).map(tuple),
    look_ahead=st.integers(0, 20),
    past=st.integers(0, 50),
)
def test_no_cut_changes_how_long_it_lasts(
    acoustics: Acoustics, count: int, chunks: tuple[int, ...], look_ahead: int, past: int
) -> None:
    codes, latents = some_codes(count)
    speech = synthesis(acoustics, Pace(chunks, look_ahead, past, 2), steps=1)
    samples = result_of(speech.finish(codes, None if acoustics.decodes_ahead else latents))
    assert len(samples) == acoustics.frames(count) * 256
    assert samples.isfinite().all()


def chunks_of(acoustics: Acoustics, pace: Pace, count: int = 100) -> list[MelChunk]:
    codes, latents = some_codes(count)
    stream = MelStream(acoustics, parity.reference(), pace, steps=4, seed=1)
    return [*result_of(stream.push(codes, latents)), *result_of(stream.finish())]


def settled(chunks: Sequence[MelChunk]) -> Tensor:
    return torch.cat([chunk.settled for chunk in chunks])


def test_more_look_ahead_and_more_past_are_nearer_to_the_whole(acoustics: Acoustics) -> None:
    """By how much the tiny model allows; noise that did not belong to the frame would be far from it."""
    whole = settled(chunks_of(acoustics, SEGMENT))

    def error(pace: Pace) -> float:
        return float((settled(chunks_of(acoustics, pace)) - whole).square().mean().sqrt())

    errors = [error(replace(CHUNK, look_ahead=frames)) for frames in (0, 4, 32)]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 0.006 * float(whole.square().mean().sqrt())
    assert error(replace(CHUNK, past=0)) > 1.1 * error(replace(CHUNK, past=20))


def test_a_chunk_begins_as_the_one_before_expected(acoustics: Acoustics, monkeypatch: pytest.MonkeyPatch) -> None:
    blended = chunks_of(acoustics, QUICK)
    monkeypatch.setattr(chunks, "FADE", 0)
    for before, after, alone in zip(blended, blended[1:], chunks_of(acoustics, QUICK)[1:], strict=False):
        jumps = [(chunk.settled[:8] - before.expected[:8]).abs().mean(1) for chunk in (after, alone)]
        assert jumps[0][0] < 0.2 * jumps[1][0]  # first nearly as expected
        assert 0.8 * jumps[1][7] < jumps[0][7] < jumps[1][7]  # last nearly as newly solved
        assert torch.equal(after.settled[8:], alone.settled[8:])


def test_each_chunk_is_heard_with_what_was_before_it(acoustics: Acoustics) -> None:
    """Where what is expected is out of the vocoder's reach, the sound is that of the whole mel."""
    mel = settled(chunks_of(acoustics, QUICK))
    sound = acoustics.vocode(mel.mT)
    codes, latents = some_codes(100)
    speech = Synthesis(acoustics, MelStream(acoustics, parity.reference(), QUICK, steps=4, seed=1))
    samples = result_of(speech.finish(codes, latents))
    reach = acoustics.vocoder.shape.reach
    assert reach < 10
    for first, end in pairwise([0, *range(10, len(mel), 20)]):
        same = slice(first * 256, (end - reach) * 256)
        assert (samples[same] - sound[same]).abs().max() < 1e-6


def test_a_seed_says_how_it_sounds(acoustics: Acoustics, quick: Tensor) -> None:
    assert torch.equal(spoken(acoustics, QUICK), quick)
    assert not torch.equal(spoken(acoustics, QUICK, seed=2), quick)


def test_noise_belongs_to_the_frame() -> None:
    at_once = Noise(80, 5)(0, 50)
    piecewise = Noise(80, 5)
    assert torch.equal(torch.cat([piecewise(0, 3), piecewise(3, 4), piecewise(4, 50)]), at_once)
    assert torch.equal(piecewise(10, 20), at_once[10:20])
    assert abs(float(at_once.mean())) < 0.05
    assert float(at_once.std()) == pytest.approx(1, abs=0.05)


def test_recorded_shapes_give_the_same(acoustics: Acoustics) -> None:
    """What a GPU replays as graphs runs here over the same buffers, with slots left empty around what is there."""
    fixed = build(acoustics.decodes_ahead)
    for pace in (QUICK, SEGMENT):
        expected = spoken(acoustics, pace)
        record(fixed, pace, reference_frames=47, longest=100)
        assert (spoken(fixed, pace) - expected).abs().max() < 1e-5


def test_all_chunks_find_a_recorded_shape(acoustics: Acoustics, monkeypatch: pytest.MonkeyPatch) -> None:
    fixed = build(acoustics.decodes_ahead)
    record(fixed, CHUNK, reference_frames=30, longest=0)
    monkeypatch.setattr("streaming_server.engines.indextts2.flow.Slots", None)  # none is made beside the recorded ones
    for count in (10, 40, 100, 200, 230):
        assert len(spoken(fixed, CHUNK, count=count)) == fixed.frames(count) * 256


def test_a_solve_in_slots_that_are_too_many_is_the_same_solve() -> None:
    """Short references too: then the last layers reflect at the reference's beginning."""
    acoustics = parity.build(enhanced=False)
    whole = parity.reference()
    mu = torch.from_numpy(parity.numbers()["mu20"])
    for frames in (30, 7, 2):
        reference = Reference(whole.mel[-frames:], whole.mu[-frames:], whole.style)
        noise = torch.from_numpy(parity.noise()[:, 30:]).mT
        expected = result_of(acoustics.flow.solve(reference, mu, noise, STEPS))
        roomy = Flow(acoustics.s2mel.estimator)
        roomy.record(61, 90)
        for left_behind in (0.0, torch.nan):
            result_of(roomy.solve(reference, mu.repeat(2, 1), torch.full((2 * len(mu), 80), left_behind), STEPS))
            assert (result_of(roomy.solve(reference, mu, noise, STEPS)) - expected).abs().max() < 1e-5


@pytest.mark.parametrize(
    ("numbers", "what"),
    [({"chunks": (0,)}, "chunks"), ({"look_ahead": -1}, "look_ahead"), ({"past": -1}, "past")],
    ids=["chunks", "look_ahead", "past"],
)
def test_a_pace_with_a_number_below_its_least_is_refused(numbers: dict[str, tuple[int] | int], what: str) -> None:
    with pytest.raises(ValueError, match=rf"{what}: .* must be at least"):
        replace(CHUNK, **numbers)  # type: ignore[arg-type]
