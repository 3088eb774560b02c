"""Where the time of a grid goes: the share that is inside forward, backward or optimizer, and in each phase.

    python tests/benchmarks/share.py [words of `kdbench run`]

Without words: five methods, three synthetic categories, oneclass. The cells run one after another in this
process, since what is measured is what a cell does and not how cells are scheduled.
"""

import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).parents[2])]

import pandas as pd
import torch

from kdbench import cli, train
from kdbench.backbone import FeaturePyramid
from kdbench.registry import get_method, method_names

WORDS = ["--categories", "wood,capsule,mesh", "--setting", "oneclass"]


class Clock:
    """Seconds by what was going on; of nested calls the outermost counts."""

    def __init__(self) -> None:
        self.spent: Counter[str] = Counter()
        self.inside = False

    def wrap(self, owner: Any, name: str, what: str) -> None:
        """Count the time of a function or method as `what`."""
        timed = getattr(owner, name)

        def clocked(*arguments: Any, **options: Any) -> Any:
            if self.inside:
                return timed(*arguments, **options)
            self.inside, started = True, time.perf_counter()
            try:
                return timed(*arguments, **options)
            finally:
                self.spent[what] += time.perf_counter() - started
                self.inside = False

        setattr(owner, name, clocked)


def clocked_run(words: list[str]) -> tuple[Counter[str], float]:
    """Run the grid; seconds by what was going on, and in all."""
    clock = Clock()
    for name in method_names():
        clock.wrap(get_method(name), "loss", "forward")
        clock.wrap(get_method(name), "anomaly_map", "forward of held-out and test images")
    clock.wrap(FeaturePyramid, "forward", "forward of the teacher")
    clock.wrap(torch.Tensor, "backward", "backward")
    wrap_optimizers(clock)
    sys.argv = ["kdbench", "run", "--executor", "local", "--no-latency", *words]
    started = time.perf_counter()
    try:
        cli.main()
    except SystemExit as left:
        if left.code:
            raise
    return clock.spent, time.perf_counter() - started


def wrap_optimizers(clock: Clock) -> None:
    """Each optimizer's `step` is wrapped by torch when it is made, so ours goes around it afterwards."""
    made: Callable[..., None] = train.Training.__init__

    def init(self: train.Training, *arguments: Any) -> None:
        made(self, *arguments)
        clock.wrap(self.optimizer, "step", "optimizer")

    train.Training.__init__ = init  # type: ignore[method-assign]


def main() -> None:
    words = sys.argv[1:] or ["--methods", ",".join(method_names()), *WORDS]
    with tempfile.TemporaryDirectory() as folder:
        spent, seconds = clocked_run([*words, "--results", f"{folder}/r", "--report", f"{folder}/report"])
        rows = pd.read_parquet(f"{folder}/r/cells").drop_duplicates("cell_id")
    print(f"\n{len(rows)} cells, {seconds:.0f} s; of these")
    for what, part in spent.most_common():
        print(f"  {100 * part / seconds:5.1f} % {what}")
    print(f"  {100 * (seconds - spent.total()) / seconds:5.1f} % all else")
    for name in ("prepare_s", "train_s", "evaluate_s"):
        print(f"{100 * rows[name].sum() / seconds:5.1f} % in {name.removesuffix('_s')}")


if __name__ == "__main__":
    main()
