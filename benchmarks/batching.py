"""How many codes a second do several prompts in one decoder get, and what do as many listeners hear?

``python -m benchmarks.batching`` decodes with the sizes of IndexTTS 1.5 and random weights, with 1, 2, 4 and 8 rows in
turn, and compares each with the floor: the time in which the memory delivers the weights. Then it serves 1 to 8
listeners at the same time with a tiny model (``--streams-only`` skips the first part, ``--decoding-only`` the second).
"""

from __future__ import annotations

import argparse
import os
import tempfile
from pathlib import Path

import torch
import yaml

from benchmarks import indextts
from benchmarks.common import running_server, table
from benchmarks.gpu import together
from streaming_server.engines.torch.model_engine import DTYPES, choose_device
from tests.engines.indextts.tiny import SIZES, make_checkpoint

ROWS = (1, 2, 4, 8)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tiny", action="store_true", help="small sizes, to try the benchmark itself")
    parser.add_argument("--device", choices=["auto", "cuda", "mps", "cpu"], default="auto")
    parser.add_argument("--precision", choices=list(DTYPES), default=None)
    parser.add_argument("--codes", type=int, default=6, help="codes of each row in each of three rounds")
    parts = parser.add_mutually_exclusive_group()
    parts.add_argument("--decoding-only", action="store_true")
    parts.add_argument("--streams-only", action="store_true")
    arguments = parser.parse_args()
    device = choose_device(arguments.device)
    if not arguments.streams_only:
        dtype = DTYPES[arguments.precision or ("fp16" if device.type == "cuda" else "fp32")]
        config = SIZES if arguments.tiny else yaml.safe_load(indextts.REAL_SIZES.read_text(encoding="utf-8"))
        runtime = indextts.random_runtime(config, device, dtype)
        floor_s = indextts.step_bytes(runtime) / indextts.bandwidth(device)
        print(f"floor of a step: {floor_s * 1e3:.1f} ms\n")
        rows = indextts.by_rows(runtime, ROWS, arguments.codes)
        table(["rows", "ms a step", "codes/s", "of 1 row", "share of the floor"], shown(rows, floor_s))
        print()
    if not arguments.decoding_only:
        table(["listeners", "first audio p50, ms", "p95, ms", "audio s/s", "gap-free"], streams(device))


def shown(step_s: dict[int, float], floor_s: float) -> list[list[str]]:
    single = step_s[min(step_s)]
    found = []
    for count, spent in step_s.items():
        values = (spent * 1e3, count / spent, count * single / spent, floor_s / spent)
        found.append([f"{count}", *(f"{value:.2f}" for value in values)])
    return found


def streams(device: torch.device) -> list[list[str]]:
    """What listeners hear who ask for the same sentence at once; a tiny model with random weights."""
    with tempfile.TemporaryDirectory() as folder:
        environment = {
            "ENGINE": "indextts", "MODEL_DIR": str(make_checkpoint(Path(folder), SIZES)), "DEVICE": device.type,
            "LOOK_AHEAD": "4", "MAX_CONCURRENT": str(max(ROWS)),
            "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1"),
        }  # fmt: skip
        found = []
        with running_server(**environment) as server:
            list(together(server.port, 1))
            for count in ROWS:
                values = [value for _, value in together(server.port, count)]
                found.append([f"{count}", *(value if isinstance(value, str) else f"{value:.4g}" for value in values)])
        return found


if __name__ == "__main__":
    main()
