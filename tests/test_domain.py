from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from streaming_server.domain import Emotion, SpeechRequest, Voice

VOICE = Voice("a", Path("a.wav"))
HAPPY = (1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0)


def test_a_request_is_plain_unless_said_otherwise() -> None:
    request = SpeechRequest("a", VOICE)
    assert request.emotion is None
    assert request.speed == 1.0
    assert Emotion() == Emotion(None, None, None, 1.0, False)


@pytest.mark.parametrize(
    "fields",
    [
        {"vector": HAPPY, "text": "happy"},
        {"vector": HAPPY, "reference": VOICE},
        {"reference": VOICE, "text": "happy"},
        {"vector": HAPPY[:7]},
        {"vector": (*HAPPY[:7], 1.01)},
        {"vector": (*HAPPY[:7], -0.1)},
        {"vector": (*HAPPY[:7], float("nan"))},
        {"weight": 1.1},
        {"weight": float("nan")},
    ],
)
def test_an_emotion_that_is_none(fields: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="emotion"):
        Emotion(**fields)


@pytest.mark.parametrize(
    "fields",
    [{}, {"vector": HAPPY}, {"text": ""}, {"reference": VOICE, "weight": 0.0}, {"vector": HAPPY, "random": True}],
)
def test_an_emotion_of_one_source(fields: dict[str, Any]) -> None:
    Emotion(**fields)
