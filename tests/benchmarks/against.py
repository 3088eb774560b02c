"""Training steps of this checkout against those of an older commit, in turn, A B B A, by processor time.

    python tests/benchmarks/against.py COMMIT [--methods stfpm,rd4ad] [--weights resnet18.pth]
    make bench-against COMMIT=HEAD~1

The commit is checked out beside, in a worktree that is removed at the end. Each side has a process of its
own, and one works while the other waits. Processor time leaves out what other programs take, though not what
they throw out of the caches: give HEAD as the commit to see how much equal code differs on this machine. The
losses of all epochs say whether the digits are the same.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).parents[2]
METHODS = "stfpm,dcam,snl,rd4ad,dskd"
READY = "ready"


@dataclass(kw_only=True)
class Sides:
    """Seconds per step of one method on both sides, in the order of the rounds, and the losses."""

    method: str
    before: list[float] = field(default_factory=list)
    now: list[float] = field(default_factory=list)
    losses: list[tuple[str, str]] = field(default_factory=list)

    def row(self) -> str:
        """As a line of a Markdown table."""
        ratios = [a / b for a, b in zip(self.before, self.now, strict=True)]
        a, b = (1000 * statistics.median(side) for side in (self.before, self.now))
        same = all(one == other for one, other in self.losses)
        return (
            f"| {self.method} | {a:.1f} | {b:.1f} | **{a / b:.3f}** | {min(ratios):.3f} to {max(ratios):.3f} "
            f"| {len(ratios)} | {'the same' if same else 'others'} |"
        )


class Side:
    """A process that trains one method of one tree, an epoch whenever it is asked."""

    def __init__(self, tree: Path, words: list[str]) -> None:
        self.process = subprocess.Popen(
            [sys.executable, __file__, "--worker", *words],
            env=os.environ | {"PYTHONPATH": str(tree)},
            cwd=tree,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        if self._line() != READY:
            raise SystemExit(f"{tree} cannot train {words[0]} the way that this file does: see above")

    def epoch(self) -> tuple[float, str]:
        """Processor seconds per step, and the loss."""
        assert self.process.stdin is not None
        self.process.stdin.write("epoch\n")
        self.process.stdin.flush()
        seconds, loss = self._line().split()
        return float(seconds), loss

    def end(self) -> None:
        """End the process."""
        self.process.communicate()

    def _line(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()


def work(name: str, size: int, num_images: int, weights: Path | None) -> None:
    """The worker: train an epoch on noise for every line that comes in."""
    import numpy as np
    import torch

    from kdbench.backbone import teacher
    from kdbench.engine import train
    from kdbench.engine.batches import Batches
    from kdbench.engine.device import choose_precision, place_networks
    from kdbench.registry import get_method
    from kdbench.weights import find_weights

    device, kind = torch.device("cpu"), get_method(name)
    backbone = "resnet18.tv_in1k" if weights else "tiny"
    torch.manual_seed(0)
    config = kind.Config(backbone=backbone, image_size=size, epochs=1)
    method = kind(config, teacher(backbone, config.levels, find_weights(backbone, weights)))
    place_networks(method, device)
    precision = choose_precision("auto", device, method)
    pixels = np.random.default_rng(0).integers(0, 256, (num_images, size, size, 3), np.uint8)
    data = Batches(
        pixels,
        method.teacher,
        backbone,
        device=device,
        precision=precision,
        batch_size=config.batch_size,
        cached=True,
    )
    training = train.Training(method, precision, torch.Generator().manual_seed(0))
    print(READY, flush=True)
    for _ in sys.stdin:
        started, steps = time.process_time(), training.history.num_steps
        loss = training.epoch(data, None, lambda count: None).loss
        seconds = (time.process_time() - started) / (training.history.num_steps - steps)
        print(seconds, float(loss).hex(), flush=True)


def compare(old: Path, name: str, rounds: int, words: list[str]) -> Sides:
    """Both sides in turn, after an epoch of each that warms up."""
    found = Sides(method=name)
    before, now = Side(old, [name, *words]), Side(ROOT, [name, *words])
    try:
        for number in range(rounds + 1):
            # Who begins changes from round to round: what a side leaves in the caches hits the other one.
            first, second = (before, now) if number % 2 else (now, before)
            done = {first: first.epoch(), second: second.epoch()}
            found.losses.append((done[before][1], done[now][1]))
            if number:
                found.before.append(done[before][0])
                found.now.append(done[now][0])
    finally:
        before.end()
        now.end()
    return found


@contextmanager
def worktree(commit: str) -> Iterator[Path]:
    """A checkout of the commit, until it is left."""
    with tempfile.TemporaryDirectory(prefix="kdbench-") as folder:
        tree = Path(folder) / "before"
        subprocess.run(
            ["git", "-C", ROOT, "worktree", "add", "--quiet", "--detach", tree, commit], check=True
        )
        try:
            yield tree
        finally:
            subprocess.run(["git", "-C", ROOT, "worktree", "remove", "--force", tree], check=True)


def main() -> None:
    if sys.argv[1:2] == ["--worker"]:
        name, size, num_images, *weights = sys.argv[2:]
        work(name, int(size), int(num_images), Path(weights[0]) if weights else None)
        return
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("commit", help="the older one")
    parser.add_argument("--methods", default=METHODS, help="comma list")
    parser.add_argument("--weights", type=Path, help="of torchvision's ResNet-18; else the smallest network")
    parser.add_argument("--size", type=int, default=256, help="pixels")
    parser.add_argument("--images", type=int, default=32, help="of an epoch: what is timed each time")
    parser.add_argument("--rounds", type=int, default=5)
    asked = parser.parse_args()
    words = [str(asked.size), str(asked.images), *([str(asked.weights.resolve())] if asked.weights else [])]
    print("| method | before, ms a step | now | ratio | spread | rounds | losses |")
    print("|---|---|---|---|---|---|---|", flush=True)
    with worktree(asked.commit) as old:
        for name in asked.methods.split(","):
            print(compare(old, name, asked.rounds, words).row(), flush=True)


if __name__ == "__main__":
    main()
