"""Converts a Chinese or English description of an emotion to a vector, for engines without a classifier.

Uses a word list and recognises a negation directly before a word.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator

from streaming_server.domain import EMOTIONS, Emotion, EmotionVector

log = logging.getLogger(__name__)
_NEUTRAL: EmotionVector = (0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0)

# A star stands for any ending but "-less".
_ENGLISH = {
    "happy": "happy happi* joy joys joyful* joyous* glad gladly gladness cheer* delight* merry merri* pleased excite* "
    "enthusias* upbeat laugh* smil* terrific* wonderful*",
    "angry": "angry angri* anger furious* fury rage raging mad irritat* annoy* outrag* shout* hostil* aggressive*",
    "sad": "sad sadly sadness sorrow* unhapp* griev* grief cry crying cries tear tears tearful* teary mourn* "
    "heartbroken sob sobs sobbed sobbing miserabl* misery joyless* cheerless*",
    "afraid": "afraid fear* scare scared scares scarily scaring scary fright* terrified terrifies terrify* terror "
    "panic* anxi* nervous* worry* worri* timid*",
    "disgusted": "disgust* contempt* revolt* repuls* loath* scorn* disdain*",
    "melancholic": "melanchol* depress* gloom* downcast deject* wistful* lonel* hopeless* disappoint* weary wearily "
    "weariness",
    "surprised": "surpris* astonish* amaze* amazing* shock* startl* wonder* stunned",
    "calm": "calm* peace* relax* serene* serenity gentle gentler gentleness gently sooth* quiet* composed composure "
    "neutral* soft softer softly softness soften* steady steadi*",
}
_CHINESE = {
    "happy": "开心 高兴 快乐 喜悦 愉快 欢快 欢乐 兴奋 幸福 兴高采烈 喜 笑",
    "angry": "生气 愤怒 恼怒 气愤 恼火 火大 暴躁 怒 凶",
    "sad": "悲伤 伤心 难过 痛苦 心碎 不开心 不高兴 不快乐 不愉快 悲 哀 哭",
    "afraid": "害怕 恐惧 惊恐 恐慌 恐怖 慌张 紧张 担心 焦虑 胆怯 怕 惧",
    "disgusted": "厌恶 恶心 讨厌 嫌弃 反感 鄙视 轻蔑 不屑",
    "melancholic": "低落 忧郁 抑郁 沮丧 失落 忧伤 惆怅 消沉 郁闷 失望 孤独 疲惫",
    "surprised": "惊喜 惊讶 吃惊 震惊 诧异 意外 惊奇 惊",
    "calm": "平静 冷静 平和 镇定 安静 温柔 柔和 沉稳 淡定 从容 放松",
}
_CHINESE_EMOTIONS = {word: emotion for emotion, words in _CHINESE.items() for word in words.split()}


def _english_pattern() -> re.Pattern[str]:
    words = {emotion: listed.replace("*", r"(?!less)\w*").replace(" ", "|") for emotion, listed in _ENGLISH.items()}
    emotions = "|".join(f"(?P<{emotion}>{alternatives})" for emotion, alternatives in words.items())
    negation = r"\b(?:not|no|never|without|\w+n['’]t)\s+(?:\w+\s+){0,2}?"
    return re.compile(rf"(?P<negation>{negation})?\b(?:{emotions})\b", re.IGNORECASE)


def _chinese_pattern() -> re.Pattern[str]:
    # Longest words first: 惊喜 must not match as 喜, nor 不开心 as a negated 开心.
    words = "|".join(sorted(_CHINESE_EMOTIONS, key=len, reverse=True))
    negation = "(?:[不没勿]|(?<!特)别)[要太是有很会用再么那]*"
    return re.compile(f"(?P<word>{words})|{negation}(?:{words})")


_ENGLISH_PATTERN = _english_pattern()
_CHINESE_PATTERN = _chinese_pattern()


def vector_from_words(description: str) -> EmotionVector | None:
    """Return the emotions named in a description, in equal shares; None if it contains no known word."""
    named = {*_english(description), *_chinese(description)}
    if not named:
        return None
    a, b, c, d, e, f, g, h = (1 / len(named) if emotion in named else 0.0 for emotion in EMOTIONS)
    return a, b, c, d, e, f, g, h


def vector_of(emotion: Emotion, engine: str) -> EmotionVector:
    """Return the vector of an emotion for an engine without recordings of emotions; what is ignored is logged."""
    if emotion.reference is not None:
        log.warning("emotion reference ignored: engine=%s recording=%s", engine, emotion.reference.name)
    if emotion.text is None:
        return emotion.vector or _NEUTRAL
    found = vector_from_words(emotion.text)
    if found is None:
        log.warning("emotion description ignored, no known emotion in it: engine=%s", engine)
    return found or _NEUTRAL


def _english(description: str) -> Iterator[str]:
    for match in _ENGLISH_PATTERN.finditer(description):
        if not match["negation"] and match.lastgroup:
            yield match.lastgroup


def _chinese(description: str) -> Iterator[str]:
    for match in _CHINESE_PATTERN.finditer(description):
        if match["word"]:
            yield _CHINESE_EMOTIONS[match["word"]]
