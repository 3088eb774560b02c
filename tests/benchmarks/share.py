"""Where the time of a grid goes: the share that is inside forward, backward or optimizer, and in each phase.

    python tests/benchmarks/share.py [--out PAGE] [words of `kdbench run`]

Without words: five methods, three synthetic categories, oneclass. The cells run one after another in this
process, since what is measured is what a cell does and not how cells are scheduled.
"""

import argparse
import json
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
from peers import machine

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


PAGE = """\
# Where the time of a grid goes

Written by `make bench-profile`; nothing here is edited by hand.
{num_cells} cells one after another took {seconds:.0f} s
from the request to the report, on {machine}, in {precision}.
Methods: {methods}; {settings}; {categories}; {size} pixels;
epochs: {epochs}.

| inside | share of the time, % |
|---|---|
{lines}
| **all of these** | **{inside:.1f}** |
| all else: planning, files, decoding, metrics, report | {outside:.1f} |
"""


def page(rows: pd.DataFrame, spent: Counter[str], seconds: float) -> str:
    """The table in Markdown; nothing of paths."""
    config = json.loads(rows["config"].iloc[0])
    shares = {what: 100 * part / seconds for what, part in spent.most_common()}
    return PAGE.format(
        num_cells=rows["cell_id"].nunique(),
        seconds=seconds,
        machine=machine(),
        precision=", ".join(sorted(rows["precision"].unique())),
        methods=", ".join(sorted(rows["method"].unique())),
        categories=", ".join(
            sorted({f"{d}/{c}" for d, c in zip(rows["dataset"], rows["category"], strict=True)})
        ),
        settings=" and ".join(sorted(rows["setting"].unique())),
        size=config["image_size"],
        epochs=config["epochs"],
        lines="\n".join(f"| {what} | {share:.1f} |" for what, share in shares.items()),
        inside=sum(shares.values()),
        outside=100 - sum(shares.values()),
    )


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path, help="the page to write")
    asked, words = parser.parse_known_args()
    words = words or ["--methods", ",".join(method_names()), *WORDS]
    with tempfile.TemporaryDirectory() as folder:
        spent, seconds = clocked_run([*words, "--results", f"{folder}/r", "--report", f"{folder}/report"])
        rows = pd.read_parquet(f"{folder}/r/cells")
    said = page(rows, spent, seconds)
    print(f"\n{said}")
    if asked.out:
        asked.out.write_text(said, encoding="utf-8")


if __name__ == "__main__":
    main()
