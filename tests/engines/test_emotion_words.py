from __future__ import annotations

import pytest

from streaming_server.domain import EMOTIONS
from streaming_server.engines.emotion_words import vector_from_words


@pytest.mark.parametrize(
    ("description", "named"),
    [
        ("Speak in a cheerful and upbeat tone.", {"happy"}),
        ("ANGRILY!", {"angry"}),
        ("you just lost a friend and are heartbroken", {"sad"}),
        ("terrified, whispering", {"afraid"}),
        ("scared and fearful", {"afraid"}),
        ("a terrific, upbeat mood", {"happy"}),
        ("wonderful", {"happy"}),
        ("cheerless", {"sad"}),
        ("full of contempt", {"disgusted"}),
        ("gloomy", {"melancholic"}),
        ("as if astonished", {"surprised"}),
        ("calmly, like a bedtime story", {"calm"}),
        ("请用开心的语气说这句话", {"happy"}),
        ("愤怒地喊", {"angry"}),
        ("很难过", {"sad"}),
        ("害怕", {"afraid"}),
        ("一脸厌恶", {"disgusted"}),
        ("情绪低落", {"melancholic"}),
        ("又惊又怒", {"surprised", "angry"}),
        ("惊喜", {"surprised"}),
        ("惊恐", {"afraid"}),
        ("平静", {"calm"}),
        ("Sound sad, then 生气", {"sad", "angry"}),
        ("特别开心", {"happy"}),
        ("unhappy", {"sad"}),
        ("不开心", {"sad"}),
    ],
)
def test_names(description: str, named: set[str]) -> None:
    vector = vector_from_words(description)
    assert vector is not None
    assert {emotion for emotion, share in zip(EMOTIONS, vector, strict=True) if share} == named
    assert sum(vector) == pytest.approx(1)
    assert len(set(vector) - {0.0}) == 1


@pytest.mark.parametrize(
    "description",
    [
        "",
        "read the news",
        "念新闻",
        "made of rags",
        "it happens",
        "fearless and bold",
        "scarce, in a scarlet scarf",
        "sober",
        "wearing a hat",
        "a gentleman of the Amazon, a composer of software",
        "not angry",
        "don't be so sad",
        "别生气",
        "不是很开心",
    ],
)
def test_names_none(description: str) -> None:
    assert vector_from_words(description) is None


def test_what_is_denied_leaves_the_rest() -> None:
    assert vector_from_words("not sad but calm") == vector_from_words("calm")
    assert vector_from_words("不要难过，要开心") == vector_from_words("开心")
