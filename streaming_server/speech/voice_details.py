"""Names, languages and genders of recordings, from ``voices.toml`` beside them."""

from __future__ import annotations

import logging
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

FILE = "voices.toml"
log = logging.getLogger(__name__)


class Details(BaseModel):
    """A table of the file, named by the stem of a recording."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    title: Annotated[str, Field(max_length=80)] = ""
    languages: Annotated[tuple[Annotated[str, Field(max_length=35)], ...], Field(max_length=32)] = ()
    gender: Literal["male", "female"] | None = None


_TABLES = TypeAdapter(dict[str, Details])
_NONE = Details()


class VoiceDetails:
    """The file as it is now, read again when it changes. A file that is not valid is logged and counts as empty."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / FILE
        self._version: tuple[int, int] | None = None
        self._tables: Mapping[str, Details] = {}

    def refresh(self) -> None:
        """Read the file if it has changed."""
        try:
            stat = self._path.stat()
            version = stat.st_mtime_ns, stat.st_size
        except OSError:
            self._version, self._tables = None, {}
            return
        if version != self._version:
            self._version, self._tables = version, self._read()

    def of(self, stem: str) -> Details:
        """What the file says of a recording."""
        return self._tables.get(stem, _NONE)

    def _read(self) -> Mapping[str, Details]:
        try:
            return _TABLES.validate_python(tomllib.loads(self._path.read_text(encoding="utf-8")))
        except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
            log.warning("%s ignored: %s", self._path.name, error)
        except ValidationError as error:
            problem = error.errors(include_url=False)[0]
            place = ".".join(str(part) for part in problem["loc"])
            log.warning("%s ignored: %s: %s", self._path.name, place, problem["msg"])
        return {}
