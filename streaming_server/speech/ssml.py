"""SSML: a subset of W3C's Speech Synthesis Markup Language 1.1, parsed into spans.

``break``, ``prosody`` (rate, pitch, volume), ``emphasis``, ``voice``, ``lang``, ``phoneme``, ``mark``, ``sub``,
``say-as``, ``p`` and ``s`` are honoured. The content of any other element is read as plain text.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from io import StringIO
from typing import Any
from xml.sax import SAXParseException
from xml.sax.handler import ContentHandler
from xml.sax.xmlreader import InputSource

from defusedxml import DefusedXmlException, sax

from streaming_server.domain import Bookmark, Pronunciation, Span
from streaming_server.errors import InvalidRequest
from streaming_server.speech.markup import MAX_PAUSE_S, are_joined, check_total
from streaming_server.speech.phonetics import ALPHABETS, to_ipa
from streaming_server.speech.spelling import READ_OUT, read_out

_RATES = {"x-slow": 0.5, "slow": 0.8, "medium": 1.0, "default": 1.0, "fast": 1.25, "x-fast": 1.6}
_PITCHES = {"x-low": 0.7, "low": 0.85, "medium": 1.0, "default": 1.0, "high": 1.15, "x-high": 1.35}
_VOLUMES = {
    "silent": -96.0,
    "x-soft": -12.0,
    "soft": -6.0,
    "medium": 0.0,
    "default": 0.0,
    "loud": 4.0,
    "x-loud": 8.0,
}
_STRENGTHS = {"none": 0.0, "x-weak": 0.1, "weak": 0.2, "medium": 0.4, "strong": 0.7, "x-strong": 1.0}
_EMPHASES = {"strong": (0.9, 3.0), "moderate": (0.95, 1.5), "none": (1.0, 0.0), "reduced": (1.05, -3.0)}
"""Rate and change of the volume."""
_RATE_RANGE, _PITCH_RANGE, _VOLUME_RANGE = (0.25, 4.0), (0.5, 2.0), (-96.0, 12.0)
_TIME = re.compile(r"\+?(\d{1,6}(?:\.\d{1,6})?|\.\d{1,6})(ms|s)", re.ASCII)
_NUMBER = r"(\d{1,4}(?:\.\d{1,6})?)"
_PERCENT = re.compile(rf"([+-]?){_NUMBER}%", re.ASCII)
_FACTOR = re.compile(_NUMBER, re.ASCII)
_SEMITONES = re.compile(rf"([+-]){_NUMBER}st", re.ASCII)
_DECIBELS = re.compile(rf"([+-]?){_NUMBER}dB", re.ASCII | re.IGNORECASE)
_PARAGRAPH_S = 0.4
_ENDS = tuple(".!?…,;:。！？，；：।॥؟۔")
_CLOSING = "\"'”’)）」』"
_BLANKS = re.compile(r"[ \t\r\n]+")
_WIDE = re.compile("[\u3040-\u30ff\u3400-\u9fff]$")
_LANGUAGE = re.compile(r"[A-Za-z]{2,8}([-_][A-Za-z0-9]{1,8}){0,5}", re.ASCII)
_LANGUAGE_ELEMENTS = frozenset({"speak", "voice", "p", "s", "lang"})
_MAX_DEPTH = 100


class InvalidMarkup(InvalidRequest):
    """SSML that cannot be parsed, or that has a value which is not valid."""

    code = "invalid_markup"

    def __init__(self, problem: str, line: int, column: int, field: str) -> None:
        super().__init__(f"{field} is not valid SSML at line {line}, column {column}: {problem}", field)
        self.line = line
        self.column = column


@dataclass(frozen=True, slots=True)
class Passage:
    """A span whose voice is still a name; empty for the request's own."""

    span: Span
    voice: str = ""


def parse(text: str, field: str = "text") -> list[Passage]:
    """Parse an SSML document.

    Raises:
        InvalidMarkup: it is not well-formed, its root is not ``speak``, or a value is not valid; the sentence names the
            line and the column, both counted from 1.
        InvalidRequest: its pauses last too long.
    """
    handler = _Handler(field)
    if not text.lstrip(" \t\r\n").startswith("<"):
        raise InvalidMarkup("the document must begin with <speak>", 1, 1, field)
    try:
        source = InputSource()
        source.setCharacterStream(StringIO(text))  # whatever encoding the XML declaration names
        sax.parse(source, handler, forbid_dtd=True)
    except SAXParseException as error:
        line, column = error.getLineNumber() or 1, (error.getColumnNumber() or 0) + 1
        raise InvalidMarkup(error.getMessage(), line, column, field) from None
    except DefusedXmlException:
        raise handler.invalid("document types and entities are not allowed") from None
    check_total(sum(passage.span.pause_s for passage in handler.passages), field)
    return handler.passages


def break_s(attributes: Mapping[str, str]) -> float:
    """The seconds of a ``break`` with these attributes.

    Raises:
        ValueError: the time or the strength is not valid; the sentence names the valid values.
    """
    if "time" not in attributes:
        strength = attributes.get("strength", "medium")
        if strength not in _STRENGTHS:
            raise ValueError(_problem("strength", strength, ", ".join(_STRENGTHS)))
        return _STRENGTHS[strength]
    found = _TIME.fullmatch(attributes["time"].strip())
    seconds = float(found[1]) / (1000 if found[2] == "ms" else 1) if found else None
    if seconds is None or seconds > MAX_PAUSE_S:
        raise ValueError(_problem("time", attributes["time"], f"0-{MAX_PAUSE_S:g} s, such as 500ms or 0.5s"))
    return seconds


@dataclass(frozen=True, slots=True)
class _State:
    """What applies to the content of an element."""

    rate: float = 1.0
    pitch: float = 1.0
    gain_db: float = 0.0
    voice: str = ""
    say_as: str = ""
    language: str = ""
    is_dropped: bool = False


class _Handler(ContentHandler):
    def __init__(self, field: str) -> None:
        super().__init__()
        self.passages: list[Passage] = []
        self._field = field
        self._states = [_State()]
        self._length = 0
        """Of the plain text so far."""
        self._phonemes: tuple[int, int, str] | None = None
        """Of the open ``phoneme``: its depth, where it begins in the plain text, and its phonemes."""
        self._content = ""
        """Of the current element since its last child; the parser divides it at entities and line breaks."""
        self._is_read_out = False
        """Whether the last text is read out character by character."""
        self._is_sentence_over = False
        """Whether a sentence has ended since the last text."""
        self._locator: Any = None

    def setDocumentLocator(self, locator: Any) -> None:  # noqa: N802
        self._locator = locator

    def invalid(self, problem: str) -> InvalidMarkup:
        """An error at the current place."""
        at = self._locator
        line, column = (at.getLineNumber() or 1, (at.getColumnNumber() or 0) + 1) if at is not None else (1, 1)
        return InvalidMarkup(problem, line, column, self._field)

    def startElement(self, name: str, attrs: Any) -> None:  # noqa: N802
        self._end_content()
        if len(self._states) == 1 and name != "speak":
            raise self.invalid(f"the root element is {name[:40]}, not speak")
        if self._phonemes is not None:
            raise self.invalid(f"phoneme may contain only text, not {name[:40]}")
        if len(self._states) > _MAX_DEPTH:
            raise self.invalid(f"elements are nested more than {_MAX_DEPTH} deep")
        self._act(name, attrs)
        self._states.append(self._content_state(name, attrs))

    def _content_state(self, name: str, attrs: Any) -> _State:
        """What applies to the content of an element that begins."""
        state = self._states[-1]
        if name in _LANGUAGE_ELEMENTS:
            state = replace(state, language=self._language(attrs, state, is_required=name == "lang"))
        match name:
            case "prosody":
                state = self._prosody(state, attrs)
            case "emphasis":
                rate, gain_db = self._choice(attrs, "level", _EMPHASES, _EMPHASES["moderate"])
                state = replace(state, rate=state.rate * rate, gain_db=state.gain_db + gain_db)
            case "voice":
                if not (named := str(attrs.get("name", "")).strip()):
                    raise self.invalid("voice needs the attribute name")
                state = replace(state, voice=named)
            case "sub":
                if "alias" not in attrs:
                    raise self.invalid("sub needs the attribute alias")
                self._content = attrs["alias"]
                self._end_content()
                state = replace(state, is_dropped=True)
            case "say-as":
                if "interpret-as" not in attrs:
                    raise self.invalid("say-as needs the attribute interpret-as")
                state = replace(state, say_as=attrs["interpret-as"])
            case "metadata" | "desc":
                state = replace(state, is_dropped=True)
        return state

    def _act(self, name: str, attrs: Any) -> None:
        """What the beginning of an element does by itself."""
        match name:
            case "break":
                self._break(attrs)
            case "phoneme":
                self._begin_phonemes(attrs)
            case "mark":
                self._bookmark(attrs)
            case "p" | "s":
                self._end_sentence()

    def endElement(self, name: str) -> None:  # noqa: N802
        self._end_content()
        self._states.pop()
        if self._phonemes is not None and self._phonemes[0] == len(self._states):
            self._end_phonemes(*self._phonemes[1:])
        if name in {"p", "s"}:
            self._end_sentence()
        if name == "p":
            self._pause(_PARAGRAPH_S)

    def characters(self, content: str) -> None:
        self._content += content

    def _end_content(self) -> None:
        """Add the text up to here. A line break in it is a blank, as anywhere in XML."""
        content, self._content, state = _BLANKS.sub(" ", self._content), "", self._states[-1]
        if content and not state.is_dropped:
            was_read_out, self._is_read_out = self._is_read_out, state.say_as in READ_OUT
            text = read_out(content, state.say_as) if self._is_read_out else content
            is_apart = was_read_out or self._is_read_out or self._is_sentence_over
            self._add(" " + text if is_apart and self._touches(text) else text, state)
            self._is_sentence_over = False

    def _touches(self, text: str) -> bool:
        """Whether a text would be one word with the text before it."""
        last = self.passages[-1].span if self.passages else None
        return last is not None and not last.pause_s and are_joined(last.text, text)

    def _add(self, text: str, state: _State) -> None:
        """Append to the last span where nothing else applies and no pause lies in between."""
        last = self.passages[-1] if self.passages else None
        span = Span(text, 0.0, self._length, None, state.rate, state.pitch, state.gain_db, state.language)
        sound = (state.rate, state.pitch, state.gain_db, state.voice, state.language)
        if last is not None and not last.span.pause_s and _sound(last) == sound:
            self._append(text)
        else:
            self.passages.append(Passage(span, state.voice))
            self._length += len(text)

    def _append(self, text: str) -> None:
        """Append to the last span."""
        last = self.passages[-1]
        self.passages[-1] = replace(last, span=replace(last.span, text=last.span.text + text))
        self._length += len(text)

    def _begin_phonemes(self, attrs: Mapping[str, str]) -> None:
        alphabet = attrs.get("alphabet", "ipa")
        if alphabet not in ALPHABETS:
            raise self._bad("alphabet", alphabet, ", ".join(ALPHABETS))
        if "ph" not in attrs:
            raise self.invalid("phoneme needs the attribute ph")
        try:
            self._phonemes = len(self._states), self._length, to_ipa(attrs["ph"], alphabet)
        except ValueError as error:
            raise self.invalid(f"ph: {error}") from None

    def _end_phonemes(self, begin: int, ipa: str) -> None:
        """Give the phonemes to the text of the element, if one span has it all."""
        self._phonemes = None
        last = self.passages[-1] if self.passages else None
        if last is None or last.span.pause_s or not last.span.start <= begin < self._length:
            return
        text = last.span.text[begin - last.span.start :]
        first = begin - last.span.start + len(text) - len(text.lstrip())
        if words := text.strip():
            given = Pronunciation(first, first + len(words), ipa)
            span = replace(last.span, pronunciations=(*last.span.pronunciations, given))
            self.passages[-1] = replace(last, span=span)

    def _bookmark(self, attrs: Mapping[str, str]) -> None:
        if not attrs.get("name", "").strip():
            raise self.invalid("mark needs the attribute name")
        if not self.passages or self.passages[-1].span.pause_s:
            self._add("", self._states[-1])
        last = self.passages[-1]
        mark = Bookmark(attrs["name"].strip(), len(last.span.text))
        self.passages[-1] = replace(last, span=replace(last.span, bookmarks=(*last.span.bookmarks, mark)))

    def _language(self, attrs: Mapping[str, str], state: _State, *, is_required: bool) -> str:
        if "xml:lang" not in attrs:
            if is_required:
                raise self.invalid("lang needs the attribute xml:lang")
            return state.language
        tag = attrs["xml:lang"].strip()
        if not _LANGUAGE.fullmatch(tag):
            raise self._bad("xml:lang", tag, "a BCP 47 tag such as de or pt-BR")
        return tag

    def _pause(self, seconds: float) -> None:
        if not self.passages:
            self._add("", self._states[-1])
        last = self.passages[-1]
        self.passages[-1] = replace(last, span=replace(last.span, pause_s=last.span.pause_s + seconds))

    def _end_sentence(self) -> None:
        """Add a full stop where a sentence's end is not marked."""
        text = self.passages[-1].span.text.rstrip() if self.passages else ""
        if text and not self.passages[-1].span.pause_s and not text.rstrip(_CLOSING).endswith(_ENDS):
            self._append("。" if _WIDE.search(text) else ". ")
        self._is_sentence_over = True

    def _break(self, attrs: Mapping[str, str]) -> None:
        try:
            self._pause(break_s(attrs))
        except ValueError as error:
            raise self.invalid(str(error)) from None

    def _prosody(self, state: _State, attrs: Mapping[str, str]) -> _State:
        rate = self._scale(attrs, "rate", _RATES, _RATE_RANGE, "a factor (0.25-4), a percentage")
        pitch = self._scale(attrs, "pitch", _PITCHES, _PITCH_RANGE, "a percentage, semitones (-12st to +12st)")
        gain_db = 0.0
        if "volume" in attrs:
            value = attrs["volume"].strip()
            decibels = _DECIBELS.fullmatch(value)
            gain_db = _signed(decibels) if decibels else _VOLUMES.get(value, float("inf"))
            if not _VOLUME_RANGE[0] <= gain_db <= _VOLUME_RANGE[1]:
                raise self._bad("volume", value, f"-96dB to +12dB, {', '.join(_VOLUMES)}")
        return replace(
            state,
            rate=_within(state.rate * rate, _RATE_RANGE),
            pitch=_within(state.pitch * pitch, _PITCH_RANGE),
            gain_db=_within(state.gain_db + gain_db, _VOLUME_RANGE),
        )

    def _scale(
        self, attrs: Mapping[str, str], name: str, words: Mapping[str, float], bounds: tuple[float, float], valid: str
    ) -> float:
        """A factor from a word, a percentage, a number or semitones."""
        if name not in attrs:
            return 1.0
        value = attrs[name].strip()
        factor = words.get(value, 0.0)
        if percent := _PERCENT.fullmatch(value):
            factor = _signed(percent) / 100 + (1 if percent[1] else 0)
        elif name == "rate" and _FACTOR.fullmatch(value):
            factor = float(value)
        elif name == "pitch" and (semitones := _SEMITONES.fullmatch(value)):
            factor = 2 ** (_signed(semitones) / 12)
        if not bounds[0] <= factor <= bounds[1]:
            raise self._bad(name, value, f"{valid} or {', '.join(words)}; {bounds[0]:g}-{bounds[1]:g} times in all")
        return factor

    def _choice(self, attrs: Mapping[str, str], name: str, values: Mapping[str, Any], default: Any) -> Any:
        if name not in attrs:
            return default
        if attrs[name] not in values:
            raise self._bad(name, attrs[name], ", ".join(values))
        return values[attrs[name]]

    def _bad(self, name: str, value: str, valid: str) -> InvalidMarkup:
        return self.invalid(_problem(name, value, valid))


def _problem(name: str, value: str, valid: str) -> str:
    return f"{name} is {value[:40]!r}; valid: {valid}"


def _sound(passage: Passage) -> tuple[float, float, float, str, str]:
    span = passage.span
    return span.rate, span.pitch, span.gain_db, passage.voice, span.language


def _signed(found: re.Match[str]) -> float:
    return -float(found[2]) if found[1] == "-" else float(found[2])


def _within(value: float, bounds: tuple[float, float]) -> float:
    return min(max(value, bounds[0]), bounds[1])
