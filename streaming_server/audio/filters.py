"""libavfilter over a stream of mono 16-bit samples."""

from __future__ import annotations

from fractions import Fraction

import av
import av.filter
import numpy as np

from streaming_server.domain import IntSamples


class FilterChain:
    """Filters, one after another."""

    def __init__(self, rate_hz: int, *filters: tuple[str, str]) -> None:
        """``filters``: name and arguments of each, as in FFmpeg's documentation."""
        self._rate_hz = rate_hz
        self._graph = av.filter.Graph()
        # One mono stream cannot be parallelised, yet a graph would start a thread for each core.
        self._graph.threads = 1
        source = self._graph.add_abuffer(
            format="s16", sample_rate=rate_hz, layout="mono", time_base=Fraction(1, rate_hz)
        )
        chain = [self._graph.add(name, arguments) for name, arguments in filters]
        self._graph.link_nodes(source, *chain, self._graph.add("abuffersink"))
        self._graph.configure()

    def push(self, samples: IntSamples) -> IntSamples:
        """Take samples, shape ``(n,)`` with ``n`` > 0; return the output that is final."""
        frame = av.AudioFrame.from_ndarray(samples[np.newaxis], format="s16", layout="mono")
        frame.sample_rate = self._rate_hz
        self._graph.push(frame)
        return self._pull()

    def finish(self) -> IntSamples:
        """Return the remaining samples."""
        self._graph.push(None)
        return self._pull()

    def _pull(self) -> IntSamples:
        parts: list[IntSamples] = []
        try:
            while True:
                parts.append(self._graph.pull().to_ndarray()[0])
        except (BlockingIOError, EOFError):
            return np.concatenate(parts) if parts else np.empty(0, np.int16)
