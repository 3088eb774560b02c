"""The page of `make bench-peers`: a section for each machine, from the file of its last measurement.

    python tests/benchmarks/peers_page.py            # renders docs/performance.md again

A measurement replaces the file of its own machine; those of other machines stay.
"""

import json
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

ROWS = Path(__file__).parent / "peers"  # a TOML file for each machine
OUT = Path(__file__).parents[2] / "docs/performance.md"

HEAD = """\
# Speed beside the peers

Written by `make bench-peers`; nothing here is edited by hand. kdbench, anomalib and adeval do the same work
in turn, A B A B, in one process. Each section is one machine, measured on it; the figures of one machine say
nothing about another one. A measurement replaces the section of its own machine.

A ratio is the peer's median time by ours: above 1, kdbench is faster. The spread is the smallest and the
largest ratio of a pair: a wide one means that the machine did something else, too. kdbench runs in what
`--precision auto` means on the machine, or in what the title says (`make bench-peers PRECISION=fp32`).

- Training: STFPM with a ResNet-18 of the same weights, each side's own recipe; anomalib without its
  validation.
- Metrics: the test maps of one of the detectors; the peers' three are pixel AUROC, AP and AUPRO, ours are all
  eight. Both sides find the regions of the masks; a cell of kdbench has them from the image store, where they
  are kept once they were found.
- Inference: from decoded images to map and score; anomalib's by its torch inferencer.
- Image / pixel AUROC after the last epoch, in per cent, by the same metric code: speed that costs
  accuracy is none.
"""

SECTION = """
## {machine}

{day}: {versions}.
kdbench in {precision}. {num_train} images of {category} to train and {num_test} to test, at {size} pixels, in
batches of {batch}; {epochs} epochs; {workers} loader processes of anomalib.

| work | ratio | spread | pairs |
|---|---|---|---|
{works}

| seed | kdbench | anomalib |
|---|---|---|
{accuracy}

Largest difference: {image_gap:.2f} points of image AUROC, {pixel_gap:.2f} of pixel AUROC.
"""


def write_rows(folder: Path, found: Mapping[str, Any]) -> Path:
    """Write the measurement of one machine as TOML, in place of its last one; returns the file."""
    path = folder / (re.sub(r"[^a-z0-9]+", "-", found["machine"].lower()).strip("-") + ".toml")
    lines = ["# Written by `make bench-peers`; nothing here is edited by hand."]
    lines += [f"{key} = {json.dumps(value)}" for key, value in found.items() if not _is_table(value)]
    lines += ["", "[versions]"] + [f"{name} = {json.dumps(text)}" for name, text in found["versions"].items()]
    for table in ("work", "accuracy"):
        for row in found[table]:
            lines += ["", f"[[{table}]]"] + [f"{key} = {json.dumps(value)}" for key, value in row.items()]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def _is_table(value: object) -> bool:
    return isinstance(value, dict) or (
        isinstance(value, list) and any(isinstance(row, dict) for row in value)
    )


def page(folder: Path) -> str:
    """The page, from the files of all machines in the order of their names."""
    files = sorted(folder.glob("*.toml"))
    return HEAD + "".join(section(tomllib.loads(file.read_text(encoding="utf-8"))) for file in files)


def section(found: Mapping[str, Any]) -> str:
    """The section of one machine."""
    image_gap, pixel_gap = found["largest_difference"]
    works = (
        f"| {work['what']} | **{work['ratio']:.2f}** | {work['lowest']:.2f} to {work['highest']:.2f} "
        f"| {work['pairs']} |"
        for work in found["work"]
    )
    accuracy = (
        f"| {row['seed']} | "
        + " | ".join("{:.2f} / {:.2f}".format(*row[side]) for side in ("kdbench", "anomalib"))
        + " |"
        for row in found["accuracy"]
    )
    return SECTION.format(
        **{key: value for key, value in found.items() if key not in ("versions", "accuracy")},
        versions=", ".join(f"{name} {text}" for name, text in found["versions"].items()),
        works="\n".join(works),
        accuracy="\n".join(accuracy),
        image_gap=image_gap,
        pixel_gap=pixel_gap,
    )


if __name__ == "__main__":
    OUT.write_text(page(ROWS), encoding="utf-8")
