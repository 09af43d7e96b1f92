"""The tags ``<break/>`` and ``<phoneme …>word</phoneme>`` in text that is not SSML otherwise.

ElevenLabs' models read both. They may be divided between the pieces of a text.
"""

from __future__ import annotations

import html
import re
from collections.abc import Iterator

from streaming_server.domain import PronouncedText, Pronunciation
from streaming_server.errors import InvalidRequest
from streaming_server.speech.phonetics import ALPHABETS, to_ipa
from streaming_server.speech.ssml import break_s

MAX_TAG_CHARACTERS = 600
"""A longer tag, with the content of ``phoneme``, is plain text."""
_BREAK = re.compile(r"<break\b([^<>]*?)/?>(?:\s*</break\s*>)?")
_PHONEME = re.compile(r"<phoneme\b([^<>]*)>([^<]*)</phoneme\s*>")
_NAMES = ("<break", "<phoneme")
_ATTRIBUTE = re.compile(r"""([\w:.-]+)\s*=\s*(?:"([^"]*)"|'([^']*)')""")


class InlineTags:
    """Reads the tags in the pieces of a text. A break becomes an inline pause."""

    def __init__(self, field: str = "text") -> None:
        """``field``: the name of the text's field, for errors."""
        self._field = field
        self._rest = ""

    def push(self, text: str) -> list[str | PronouncedText]:
        """Append a piece; returns what no further piece can change.

        Raises:
            InvalidRequest: a tag has a value that is not valid.
        """
        self._rest += text
        return [*self._complete()]

    def flush(self) -> list[str]:
        """Return the rest, which is not a complete tag."""
        rest, self._rest = self._rest, ""
        return [rest] if rest else []

    def _complete(self) -> Iterator[str | PronouncedText]:
        while self._rest:
            plain, tag, _ = self._rest.partition("<")
            if plain:
                yield plain
                self._rest = self._rest[len(plain) :]
            if not tag:
                return
            if (found := _BREAK.match(self._rest)) and found.end() <= MAX_TAG_CHARACTERS:
                yield self._pause(found)
            elif (found := _PHONEME.match(self._rest)) and found.end() <= MAX_TAG_CHARACTERS:
                yield from self._pronounced(found)
            elif _may_begin_tag(self._rest):
                return
            else:
                yield "<"
                self._rest = self._rest[1:]
                continue
            self._rest = self._rest[found.end() :]

    def _pause(self, tag: re.Match[str]) -> str:
        try:
            return f"[pause {break_s(_attributes(tag[1])):.3f}s]"
        except ValueError as error:
            raise InvalidRequest(f"{self._field}: <break>: {error}", self._field) from None

    def _pronounced(self, tag: re.Match[str]) -> Iterator[str | PronouncedText]:
        attributes = _attributes(tag[1])
        alphabet = attributes.get("alphabet", "ipa")
        if alphabet not in ALPHABETS:
            valid = ", ".join(ALPHABETS)
            message = f"{self._field}: the alphabet of <phoneme> is {alphabet[:40]!r}; valid: {valid}"
            raise InvalidRequest(message, self._field)
        try:
            ipa = to_ipa(attributes.get("ph", ""), alphabet)
        except ValueError as error:
            raise InvalidRequest(f"{self._field}: ph of <phoneme>: {error}", self._field) from None
        content = html.unescape(tag[2])
        words = content.strip()
        before, _, behind = content.partition(words) if words else (content, "", "")
        if before:
            yield before
        if words:
            yield PronouncedText(words, ipa)
        if behind:
            yield behind


def without_tags(text: str, field: str = "text") -> tuple[str, tuple[Pronunciation, ...]]:
    """A whole text without its tags, and the pronunciations that these give.

    Raises:
        InvalidRequest: a tag has a value that is not valid.
    """
    if "<" not in text:
        return text, ()
    tags = InlineTags(field)
    plain, given = "", []
    for piece in (*tags.push(text), *tags.flush()):
        if isinstance(piece, PronouncedText):
            given.append(Pronunciation(len(plain), len(plain) + len(piece.text), piece.ipa))
            plain += piece.text
        else:
            plain += piece
    return plain, tuple(given)


def _may_begin_tag(text: str) -> bool:
    """Whether a tag may begin here that is complete only with further text."""
    if len(text) > MAX_TAG_CHARACTERS:
        return False
    if text.startswith("<break"):
        return ">" not in text
    return text.startswith("<phoneme") or any(name.startswith(text) for name in _NAMES)


def _attributes(text: str) -> dict[str, str]:
    return {name: html.unescape(double or single) for name, double, single in _ATTRIBUTE.findall(text)}
