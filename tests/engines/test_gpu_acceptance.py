"""The GPU acceptance benchmark at small sizes on the CPU."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks import common, gpu

FAILING = """
import json, sys
from http.server import BaseHTTPRequestHandler, HTTPServer

class Failed(BaseHTTPRequestHandler):
    def do_GET(self):
        content = json.dumps({"status": "unhealthy"}).encode()
        self.send_response(503)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_):
        pass

server = HTTPServer(("127.0.0.1", 0), Failed)
print(f"running on http://127.0.0.1:{server.server_port}", file=sys.stderr)
print("the engine failed: no kernel image is available", file=sys.stderr, flush=True)
server.serve_forever()
"""

PHASES = ("of it load", "of it record", "of it synthesis")


@pytest.mark.slow
def test_the_acceptance_runs_whole_at_small_sizes(tmp_path: Path) -> None:
    file = tmp_path / "results.json"
    command = [sys.executable, "-m", "benchmarks.gpu", "--tiny", "--device", "cpu", "--json", str(file)]
    printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    content = json.loads(file.read_text())
    results = {result["name"]: result["value"] for result in content["results"]}
    assert all(name in printed for name in results)
    assert [value for value in results.values() if str(value).startswith("failed")] == []
    assert (results["1.5 parity in fp32"], results["2.0 parity in fp32"]) == ("8 of 8", "13 of 13")
    assert results["1.5 recorded codes equal unrecorded ones"] == "yes"
    start_s, *phases_s = (results[f"1.5 {name}, look-ahead 4, s"] for name in ("start to ready", *PHASES))
    assert phases_s[0] > 0
    assert phases_s[2] > 0
    assert sum(phases_s) < start_s
    assert {
        "1.5 decoding, recorded, codes/s",
        "1.5 first audio over HTTP, look-ahead 4, p50 ms",
        "2.0 first audio, chunk, 2 steps, ms",
        "2.0, chunk, 2 steps, 2 streams, first audio p95 ms",
        "2.0, segment, 2 steps, 2 streams, audio s/s",
        "1.5, 2 streams, gap-free share",
    } <= results.keys()


def test_the_peak_memory_of_a_section_is_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []

    def section(_: gpu.Setup) -> gpu.Results:
        done.append("section")
        yield "memory", 1.0

    monkeypatch.setattr(gpu, "SECTIONS", (section, section))
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda _: done.append("reset"))
    list(gpu.measured(gpu.Setup(torch.device("cuda"), torch.float16, is_tiny=True)))
    assert done == ["reset", "section"] * 2


def test_an_error_that_stays_costs_no_other_section(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_: gpu.Setup) -> gpu.Results:
        yield "before", 1.0
        raise torch.AcceleratorError("CUDA error: an illegal memory access was encountered")

    def stays(*_: object) -> None:
        raise torch.AcceleratorError("CUDA error: an illegal memory access was encountered")

    def separate(_: gpu.Setup) -> gpu.Results:
        yield "of another process", 2.0

    monkeypatch.setattr(gpu, "SECTIONS", (broken, separate))
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda _: None)
    monkeypatch.setattr(torch.cuda, "empty_cache", stays)
    rows = list(gpu.measured(gpu.Setup(torch.device("cuda"), torch.float16, is_tiny=True)))
    assert [row.name for row in rows] == ["before", "broken", "of another process", "whole acceptance, s"]


def test_a_server_whose_engine_fails_is_not_waited_for(tmp_path: Path) -> None:
    server = tmp_path / "failing.py"
    server.write_text(FAILING)
    with (
        pytest.raises(RuntimeError, match="no kernel image"),
        common.running_server("failing", PYTHONPATH=str(tmp_path)),
    ):
        pass
