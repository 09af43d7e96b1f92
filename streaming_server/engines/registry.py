"""The registry of engines: built-in ones and those of installed packages.

A package adds an engine with an entry point in the group ``streaming_server.engines`` that names an `EngineSpec`.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from pydantic.fields import FieldInfo

from streaming_server.engines.base import Engine, EngineOptions, EngineSpec
from streaming_server.environment import InvalidSetting
from streaming_server.errors import EngineUnavailable

log = logging.getLogger(__name__)

GROUP = "streaming_server.engines"
AUTO = "auto"
FALLBACK = "hibari"
"""The engine that ``auto`` selects if no engine recognises a model."""

BUILT_IN = {
    "indextts2": "streaming_server.engines.indextts2.spec:ENGINE",
    "indextts": "streaming_server.engines.indextts.spec:ENGINE",
    "higgs": "streaming_server.engines.higgs.spec:ENGINE",
    "kokoro": "streaming_server.engines.kokoro.spec:ENGINE",
    "pocket": "streaming_server.engines.pocket.spec:ENGINE",
    "hibari": "streaming_server.engines.hibari.spec:ENGINE",
    "espeak": "streaming_server.engines.espeak.spec:ENGINE",
}
"""In the order in which ``auto`` tries them, followed by those of other packages."""


@dataclass(frozen=True, slots=True)
class Choice:
    """A selected engine with its options."""

    spec: EngineSpec[Any]
    options: EngineOptions

    def create(self) -> Engine:
        """Import and create the engine.

        Raises:
            EngineUnavailable: it cannot start, or a package is not installed.
        """
        try:
            return self.spec.create(self.options)
        except ImportError as error:
            what = f"needs {error.name}" if error.name else f"cannot be imported: {error}"
            how = f"; run scripts/install {self.spec.extra}" if self.spec.extra else ""
            raise EngineUnavailable(f"the {self.spec.name} engine {what}{how}") from error


def engines() -> dict[str, EngineSpec[Any]]:
    """Return all engines by name. Entry points that cannot be loaded are skipped with a warning."""
    found: dict[str, EngineSpec[Any]] = {
        name: EntryPoint(name, value, GROUP).load() for name, value in BUILT_IN.items()
    }
    for point in entry_points(group=GROUP):
        try:
            spec = point.load()
        except Exception as error:
            log.warning("engine plugin not loaded: %s = %s: %r", point.name, point.value, error)
            continue
        if spec.name in found:
            log.warning("engine plugin not loaded: %s = %s: the name is taken", spec.name, point.value)
            continue
        found[spec.name] = spec
    return found


def names() -> list[str]:
    """Return the valid values of ``ENGINE``."""
    found = engines().values()
    return [AUTO, *sorted({spec.name for spec in found} | {spec.family for spec in found if spec.family})]


def variables() -> dict[str, FieldInfo]:
    """Return the options of all engines by environment variable."""
    found: dict[str, FieldInfo] = {}
    for spec in engines().values():
        found |= {name: option for name, option in spec.options.variables().items() if name not in found}
    return found


def choose(name: str, environment: Mapping[str, str]) -> Choice:
    """Select the engine for a value of ``ENGINE``, with its options from environment variables.

    Raises:
        EngineUnavailable: its model does not exist.
        InvalidSetting: there is no engine of that name, or an option is invalid.
    """
    found = engines()
    if name not in names():
        raise InvalidSetting(f"ENGINE={name}: one of {', '.join(names())} is needed")
    asked = [spec for spec in found.values() if name in {AUTO, spec.family}]
    # Each engine has its own values of these two; only those of the chosen engine count.
    places = {key: value for key, value in environment.items() if key not in {"DEVICE", "PRECISION"}}
    recognised = next((spec for spec in asked if spec.recognises(_configured(spec, places).options)), None)
    if recognised is not None:
        choice = _configured(recognised, environment)
    else:
        if name == AUTO:
            name = next((spec.name for spec in asked if environment.get(spec.model_variable)), FALLBACK)
        choice = _configured(found[name], environment)
    if problem := choice.spec.problem(choice.options):
        raise EngineUnavailable(problem)
    return choice


def create_engine(name: str, environment: Mapping[str, str]) -> Engine:
    """Create the engine for a value of ``ENGINE``, without a fallback to another one.

    Raises:
        EngineUnavailable: it cannot start.
        InvalidSetting: there is no engine of that name, or an option is invalid.
    """
    return choose(name, environment).create()


def _configured(spec: EngineSpec[Any], environment: Mapping[str, str]) -> Choice:
    try:
        return Choice(spec, spec.options.from_env(environment))
    except InvalidSetting as error:
        raise InvalidSetting(f"{error} by the {spec.name} engine") from None
