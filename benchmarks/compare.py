"""Is this working tree as fast as another commit, with one request at a time?

``python -m benchmarks.compare COMMIT`` checks the commit out into a temporary folder and runs models of the same
weights with both, in turn: CPU time and operators (counted by `torch.profiler`) of a decoding step, a step of the flow
and a vocoded frame, and whether the results are equal. The sizes are small ones; ``--real`` takes those of 1.5 for the
first and the last.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch

CODES = 64
STEPS = 8
FRAMES = 94


class Work:
    """What is measured; only names that all commits share."""

    def __init__(self, file: Path) -> None:
        from streaming_server.engines.indextts import checkpoint
        from streaming_server.engines.indextts2 import checkpoint as checkpoint2

        torch.set_num_threads(1)
        models = torch.load(file, weights_only=False)
        self._runtime = checkpoint.build(*models["1.5"])
        self._runtime2 = checkpoint2.build(*models["2.0"])
        self._normal = torch.Generator().manual_seed(1)

    def normal(self, *size: int) -> torch.Tensor:
        return torch.randn(*size, generator=self._normal)

    def actions(self) -> dict[str, tuple[int, Callable[[], torch.Tensor]]]:
        """By name: the units of an action, and the action with its result."""
        runtime, runtime2 = self._runtime, self._runtime2
        conditioning, text = self.normal(32, runtime.gpt.shape.width), range(3, 13)
        estimator = runtime2.acoustics.s2mel.estimator.shape
        reference = self.normal(estimator.bands, 60), self.normal(estimator.style_width)
        mu, noise = self.normal(160, estimator.content_width), self.normal(estimator.bands, 100)
        latents, speaker = self.normal(FRAMES, runtime.gpt.shape.width), self.normal(runtime.vocoder.speaker_width)

        def decode() -> torch.Tensor:
            rng = torch.Generator().manual_seed(2)
            pairs = list(runtime.decode(conditioning, text, CODES, generator=rng))
            assert len(pairs) == CODES
            return torch.stack([latent for _, latent in pairs])

        return {
            "decoding step": (CODES, decode),
            "flow step": (STEPS, lambda: runtime2.cfm(mu, *reference, noise, STEPS)),
            "vocoded frame": (FRAMES, lambda: runtime.vocode(latents, speaker)),
        }


def operators(action: Callable[[], torch.Tensor], units: int) -> float:
    """Operators of a unit that Python calls, not those that they call in turn."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        action()
    called = [event for event in profile.events() if event.name.startswith("aten::") and event.cpu_parent is None]
    return len(called) / units


def child(file: Path) -> None:
    """Answer each line with the CPU time of a unit of that action, or with its operators and a sum of its result."""
    actions = Work(file).actions()
    for line in sys.stdin:
        what, _, name = line.strip().partition(" ")
        units, action = actions[name]
        if what == "time":
            begun_s = time.process_time()
            action()
            print((time.process_time() - begun_s) / units, flush=True)
        else:
            print(operators(action, units), action().double().abs().sum().item(), flush=True)


@contextmanager
def running(tree: Path, file: Path) -> Iterator[Callable[[str], list[float]]]:
    command = [sys.executable, "-P", str(Path(__file__).resolve()), "--child", str(file)]
    environment = {**os.environ, "PYTHONPATH": str(tree), "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment, cwd=tree
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        into, out = process.stdin, process.stdout

        def ask(line: str) -> list[float]:
            print(line, file=into, flush=True)
            return [float(value) for value in out.readline().split()]

        yield ask
        into.close()


def models(real: bool) -> dict[str, tuple[Any, ...]]:
    """Configurations and random states that never sample STOP."""
    import yaml

    from benchmarks import indextts
    from tests.engines.indextts import tiny
    from tests.engines.indextts2 import tiny as tiny2

    config = yaml.safe_load(indextts.REAL_SIZES.read_text(encoding="utf-8")) if real else dict(tiny.SIZES)
    gpt, vocoder = tiny.random_states(config)
    config2 = tiny2.config_of("2.0") | {"bigvgan": tiny2.BIGVGAN, "w2vbert": tiny2.W2VBERT}
    states: dict[str, Any] = tiny2.random_states(config2, "2.0")
    rows = sum(config2["emo_num"])
    states |= {"feat1": torch.zeros(rows, tiny2.STYLE), "feat2": torch.zeros(rows, tiny2.LATENTS)}
    gpt["mel_head.bias"][config["gpt"]["stop_mel_token"]] = -1e4
    return {"1.5": (config, gpt, vocoder), "2.0": (config2, states)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("commit", nargs="?", default="HEAD")
    parser.add_argument("--real", action="store_true")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        child(arguments.child)
        return
    root = Path(__file__).resolve().parents[1]
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        other, file = folder / "tree", folder / "models.pt"
        git = ["git", "-C", str(root), "worktree"]
        subprocess.run([*git, "add", "-q", "--detach", str(other), arguments.commit], check=True)
        stack.callback(subprocess.run, [*git, "remove", "--force", str(other)], check=True)
        torch.save(models(arguments.real), file)
        before, after = (stack.enter_context(running(tree, file)) for tree in (other, root))
        print(f"| with one request | CPU, ms, {arguments.commit} | here | ratio | operators | here | equal |")
        print("| --- | ---: | ---: | ---: | ---: | ---: | --- |")
        for name in ("decoding step", "flow step", "vocoded frame"):
            (count, result), (count_here, result_here) = (ask(f"count {name}") for ask in (before, after))
            pairs = [(before(f"time {name}")[0], after(f"time {name}")[0]) for _ in range(arguments.rounds)]
            one, here = (statistics.median(spent) * 1e3 for spent in zip(*pairs, strict=True))
            ratio = statistics.median(here / one for one, here in pairs)
            numbers = f"{one:.3f} | {here:.3f} | {ratio:.3f} | {count:.0f} | {count_here:.0f}"
            print(f"| {name} | {numbers} | {'yes' if result == result_here else 'no'} |", flush=True)


if __name__ == "__main__":
    main()
