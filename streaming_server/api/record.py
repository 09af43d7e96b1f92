"""The record of one request, which its log line and the metrics are made of."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any

from starlette.types import Scope

COMPLETE = "complete"
DISCONNECTED = "disconnected"

_KEY = "record"


@dataclass(slots=True)
class RequestRecord:
    """One request; what is None does not apply to it, or is not known yet."""

    method: str
    """``WEBSOCKET`` where the scope is one; the scope's type where it is unknown."""
    route: str
    """The path as it was asked for."""
    status: int | None = None
    """None where no answer was begun."""
    duration_s: float = 0.0
    outcome: str | None = None
    """How a stream ended: `COMPLETE`, `DISCONNECTED` or an error's code; the code also of any other refusal."""
    voice: str | None = None
    characters: int | None = None
    wait_s: float | None = None
    """Until the slot was entered; here and below as in `SpeechStats`."""
    first_audio_s: float | None = None
    audio_s: float | None = None
    real_time_factor: float | None = None
    underruns: int | None = None
    sent_bytes: int = field(default=0, metadata={"is_logged": False})
    template: str = field(default="none", metadata={"is_logged": False})
    """The path of the route that answered, by which requests are counted; ``none`` where no route did."""

    @staticmethod
    def of(scope: Scope) -> RequestRecord:
        """The record of the request that a scope belongs to."""
        record = scope["state"][_KEY]
        assert isinstance(record, RequestRecord)
        return record

    def attach(self, scope: Scope) -> None:
        """Make this the scope's record."""
        scope.setdefault("state", {})[_KEY] = self

    def logged(self) -> dict[str, Any]:
        """The fields of the log line."""
        always = ("method", "route", "status", "duration_s")
        values = {item.name: getattr(self, item.name) for item in fields(self) if item.metadata.get("is_logged", True)}
        return {name: value for name, value in values.items() if name in always or value is not None}
