"""Prometheus metrics of a server: counters, histograms, and gauges that are read on demand."""

from __future__ import annotations

import platform
from collections import Counter as Counting
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress

from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    generate_latest,
)
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from streaming_server.engines.base import EngineInfo
from streaming_server.errors import StorageFull, StorageUnavailable
from streaming_server.speech.service import SpeechService
from streaming_server.speech.stream import SpeechStats, StreamState

MEDIA_TYPE = CONTENT_TYPE_LATEST
_LATENCIES_S = (0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)
_FACTORS = (0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.15, 0.2, 0.3, 0.5, 0.75, 1, 1.5, 2, 5)


class Metrics:
    """The metrics of one server."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)  # memory, CPU time, descriptors, start time
        self._requests = Counter(
            "speech_requests", "Requests that have ended", ["method", "route", "status"], registry=self.registry
        )
        self._bytes = Counter("speech_response_bytes", "Bytes sent in bodies", ["route"], registry=self.registry)
        self._disconnects = Counter(
            "speech_disconnects", "Streams whose client left before their end", ["route"], registry=self.registry
        )
        self._waits = self._histogram("speech_wait_seconds", "Wait for the slot", _LATENCIES_S)
        self._first_audio = self._histogram("speech_first_audio_seconds", "Request to first audio", _LATENCIES_S)
        self._factor = self._histogram("speech_real_time_factor", "Seconds of synthesis a second of audio", _FACTORS)
        self._audio_s = Counter("speech_audio_seconds", "Audio that was made", ["kind"], registry=self.registry)
        self._underruns = Counter(
            "speech_underruns", "Times at which a playing client had nothing left to play", registry=self.registry
        )
        self._underrun_s = Counter("speech_underrun_seconds", "How long they lasted", registry=self.registry)

    def build(self, version: str, info: EngineInfo) -> None:
        """Add what runs: gauges of value 1 whose labels tell the version and the loaded model."""
        model = {
            "engine": info.name,
            "model": info.model_type or info.name,
            "model_version": info.model_version,
            "device": info.device,
            "precision": info.precision,
        }
        for name, text, labels in (
            ("build_info", "Version of the server", {"version": version, "python": platform.python_version()}),
            ("speech_engine_info", "The loaded engine and model", model),
        ):
            Gauge(name, text, list(labels), registry=self.registry).labels(**labels).set(1)

    def gauge(self, name: str, text: str, read: Callable[[], float]) -> None:
        """Add a gauge that is read on demand."""
        self.registry.register(_Gauge(name, text, lambda: {"": read()}, ""))

    def gauges(self, name: str, text: str, read: Callable[[], Mapping[str, float]], label: str) -> None:
        """Add a gauge with a label that is read on demand; it has no samples while the storage is unavailable."""
        self.registry.register(_Gauge(name, text, read, label))

    def streams(self, service: SpeechService) -> None:
        """Add the gauges that show a stalled stream."""

        def by_state() -> Mapping[str, float]:
            counts = Counting(stream.state for stream in service.streams)
            return {state: counts[state] for state in StreamState}

        def oldest_s() -> float:
            return max(
                (stream.age_s for stream in service.streams if stream.state is not StreamState.KEPT), default=0.0
            )

        self.gauges("speech_streams", "Open streams", by_state, "state")
        self.gauge("speech_unsent_bytes", "Encoded and not sent yet", lambda: service.budget.unsent_bytes)
        self.gauge(
            "speech_unencoded_seconds",
            "Synthesised and not encoded yet",
            lambda: sum(stream.unencoded_s for stream in service.streams),
        )
        self.gauge(
            "speech_encoder_waiters", "Streams that wait for an encoding thread", lambda: service.encoder_waiters
        )
        self.gauge("speech_oldest_stream_seconds", "Age of the oldest stream that is not merely kept", oldest_s)

    def request(self, method: str, route: str, status: int | None, sent_bytes: int, *, left: bool) -> None:
        """Count a completed request; ``left``: its client disconnected before, ``status`` None: no response."""
        self._requests.labels(method, route, "none" if status is None else status).inc()
        self._bytes.labels(route).inc(sent_bytes)
        if left:
            self._disconnects.labels(route).inc()

    def speech(self, kind: str, stats: SpeechStats) -> None:
        """Count a completed stream; ``kind``: ``live`` or ``job``."""
        if stats.wait_s is not None:
            self._waits.labels(kind).observe(stats.wait_s)
        if stats.first_audio_s is not None:
            self._first_audio.labels(kind).observe(stats.first_audio_s)
        if stats.audio_s:
            self._factor.labels(kind).observe(stats.synthesis_s / stats.audio_s)
            self._audio_s.labels(kind).inc(stats.audio_s)
        if kind == "live":  # nobody plays a job while it is made
            self._underruns.inc(stats.underruns)
            self._underrun_s.inc(stats.underrun_s)

    def text(self) -> bytes:
        """Return all metrics in Prometheus' text format."""
        return generate_latest(self.registry)

    def _histogram(self, name: str, text: str, buckets: tuple[float, ...]) -> Histogram:
        return Histogram(name, text, ["kind"], buckets=buckets, registry=self.registry)


class _Gauge(Collector):
    def __init__(self, name: str, text: str, read: Callable[[], Mapping[str, float]], label: str) -> None:
        self._name, self._text, self._read, self._label = name, text, read, label

    def collect(self) -> Iterator[GaugeMetricFamily]:
        family = GaugeMetricFamily(self._name, self._text, labels=[self._label] if self._label else [])
        with suppress(StorageFull, StorageUnavailable):  # the other metrics are needed most during an outage
            for value, number in self._read().items():
                family.add_metric([value] if self._label else [], number)
        yield family

    def describe(self) -> list[GaugeMetricFamily]:
        """Return nothing; without this method the registry would read the gauges on registration."""
        return []
