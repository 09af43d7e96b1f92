"""The record of one request, from which its log line and its metrics are built."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any

from starlette.types import Scope

from streaming_server.speech.stream import SpeechStats

COMPLETE = "complete"
DISCONNECTED = "disconnected"

_KEY = "record"


@dataclass(slots=True)
class RequestRecord:
    """One request. A value is None if it does not apply or is not known yet."""

    method: str
    """``WEBSOCKET`` for a WebSocket; the scope's type if it is unknown."""
    route: str
    """The requested path; its beginning and an ellipsis if it is long."""
    status: int | None = None
    """None if no response was started."""
    duration_s: float = 0.0
    outcome: str | None = None
    """How a stream ended: `COMPLETE`, `DISCONNECTED` or an error code; for other requests the error code, if any."""
    voice: str | None = None
    characters: int | None = None
    wait_s: float | None = None
    """Wait for the slot; this and the following values are those of `SpeechStats`."""
    first_audio_s: float | None = None
    audio_s: float | None = None
    real_time_factor: float | None = None
    underruns: int | None = None
    is_key_pending: bool = field(default=False, metadata={"is_logged": False})
    """Whether the API key is expected in the first message of a WebSocket."""
    synthesis_s: float = field(default=0.0, metadata={"is_logged": False})
    sent_bytes: int = field(default=0, metadata={"is_logged": False})
    template: str = field(default="none", metadata={"is_logged": False})
    """The matched route, the label of the metrics; ``none`` if no route matched."""

    def add(self, stats: SpeechStats) -> None:
        """Add the statistics of one stream to those of a session."""
        if self.wait_s is None and stats.wait_s is not None:
            self.wait_s = round(stats.wait_s, 4)
        if self.first_audio_s is None and stats.first_audio_s is not None:
            self.first_audio_s = round(stats.first_audio_s, 4)
        self.audio_s = round((self.audio_s or 0.0) + stats.audio_s, 3)
        self.underruns = (self.underruns or 0) + stats.underruns
        self.synthesis_s += stats.synthesis_s
        self.real_time_factor = round(self.synthesis_s / self.audio_s, 5) if self.audio_s else None

    @staticmethod
    def of(scope: Scope) -> RequestRecord:
        """Return the record of a scope's request."""
        record = scope["state"][_KEY]
        assert isinstance(record, RequestRecord)
        return record

    def attach(self, scope: Scope) -> None:
        """Store the record in the scope."""
        scope.setdefault("state", {})[_KEY] = self

    def logged(self) -> dict[str, Any]:
        """Return the fields of the log line."""
        always = ("method", "route", "status", "duration_s")
        values = {item.name: getattr(self, item.name) for item in fields(self) if item.metadata.get("is_logged", True)}
        return {name: value for name, value in values.items() if name in always or value is not None}
