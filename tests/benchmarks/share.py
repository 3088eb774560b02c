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
from functools import cache
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).parents[2])]

import pandas as pd
import torch
from peers import machine
from torch.utils.flop_counter import FlopCounterMode

from kdbench.backbone import FeaturePyramid, pyramid
from kdbench.cli import app as cli
from kdbench.engine import train
from kdbench.engine.device import threads
from kdbench.method import Method
from kdbench.registry import get_method, usual_methods

STEP = ("forward", "backward", "optimizer")
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
    for name in usual_methods():
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


def training_flops(rows: pd.DataFrame) -> float:
    """What all training steps of these cells computed; a multiply-add is 2."""
    total = 0.0
    for row in rows.drop_duplicates("cell_id").itertuples():
        num_images = len(row.epoch_loss) * row.num_train
        total += num_images * flops_per_image(get_method(str(row.method)), str(row.config))
    return total


@cache
def flops_per_image(kind: type[Method], config: str) -> float:
    """Forward and backward of the loss; the teacher's features are constants."""
    chosen = kind.Config.model_validate_json(config)
    network = pyramid(chosen.backbone, chosen.levels).eval()  # weights do not matter to the count
    method = kind(chosen, network).train()
    images = torch.zeros(4, 3, chosen.image_size, chosen.image_size)
    with torch.no_grad():
        taught = method.teacher(images)
    with FlopCounterMode(display=False) as counter:
        method.loss(images, taught).backward()
    return counter.get_total_flops() / len(images)


def product_rate(precision: str) -> float:
    """FLOP/s of a product of large matrices with the threads that torch has now: best of ten."""
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]
    a, b = torch.randn(2, 2048, 2048).to(dtype)
    took = []
    for _ in range(10):
        started = time.perf_counter()
        torch.mm(a, b)
        took.append(time.perf_counter() - started)
    return 2 * 2048**3 / min(took)


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

The training steps computed {flops:.1f} TFLOP, at {rate:.0f} GFLOP/s while they were inside. A product of two
matrices of 2048 x 2048, about as fast as this machine computes, reaches {peak:.0f} GFLOP/s in {precision}
with as many threads: the steps have **{reached:.0f} %** of it. What leaves this arithmetic as it is can make
them at most {headroom:.2f} times as fast here.
"""


def page(rows: pd.DataFrame, spent: Counter[str], seconds: float) -> str:
    """The table in Markdown; nothing of paths."""
    config = json.loads(rows["config"].iloc[0])
    shares = {what: 100 * part / seconds for what, part in spent.most_common()}
    (precision,) = rows["precision"].unique()
    (num_threads,) = rows["num_threads"].unique()
    with threads(int(num_threads)):
        flops, peak = training_flops(rows), product_rate(precision)
    rate = flops / sum(spent[what] for what in STEP)
    return PAGE.format(
        num_cells=rows["cell_id"].nunique(),
        seconds=seconds,
        machine=machine(),
        precision=precision,
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
        flops=flops / 1e12,
        rate=rate / 1e9,
        peak=peak / 1e9,
        reached=100 * rate / peak,
        headroom=peak / rate,
    )


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path, help="the page to write")
    asked, words = parser.parse_known_args()
    words = words or ["--methods", ",".join(usual_methods()), *WORDS]
    with tempfile.TemporaryDirectory() as folder:
        spent, seconds = clocked_run([*words, "--results", f"{folder}/r", "--out", f"{folder}/report"])
        rows = pd.read_parquet(f"{folder}/r/cells")
    said = page(rows, spent, seconds)
    print(f"\n{said}")
    if asked.out:
        asked.out.write_text(said, encoding="utf-8")


if __name__ == "__main__":
    main()
