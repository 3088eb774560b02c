"""Anomaly maps and image scores that another program made, measured as our own.

Maps of another size than that of the evaluation are resized by `evaluate.at_size`, as the maps of our methods
are. An image score is the largest value of the map as it was given, unless a CSV file has the scores.
"""

import hashlib
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from kdbench import machine
from kdbench.cell import Cell, Place, digest_of
from kdbench.data.fingerprint import fingerprint
from kdbench.data.maps import Given, read_map, shape_of
from kdbench.dataset import Category, Dataset
from kdbench.engine import provenance
from kdbench.engine.evaluate import Scored, at_size
from kdbench.engine.run import CellOutput, identity, output_of
from kdbench.errors import Complaints, DataError
from kdbench.metrics.presets import PRESETS, Preset

MOST = 20  # complaints of one category


def scored(given: Given, category: Category, preset: Preset) -> tuple[Scored, str]:
    """Maps at the evaluation size and image scores of a category, and a hash of the files' content.

    Raises RequestError with every map that cannot be read or cannot be right.
    """
    images = [category.relative(sample.path) for sample in category.test]
    files = given.maps.get(category.name)
    found: list[np.ndarray] = []
    digests: list[str] = []
    highest: list[float] = []
    complaints = Complaints()
    if files is not None:

        def read(pair: tuple[str, Path]) -> tuple[np.ndarray, float, str] | DataError:
            image, picture = pair
            try:
                one = read_map(files[image], picture)
            except DataError as error:
                return error
            size = (preset.evaluation_size,) * 2 if preset.evaluation_size else shape_of(picture)
            return at_size(one, size), float(one.max()), hashlib.sha256(files[image].read_bytes()).hexdigest()

        with ThreadPoolExecutor(machine.cores()) as pool:
            for one in pool.map(read, zip(images, [sample.path for sample in category.test], strict=True)):
                if isinstance(one, DataError):
                    complaints.add(str(one))
                else:
                    found.append(one[0])
                    highest.append(one[1])
                    digests.append(one[2])
    values = highest if given.scores is None else [given.scores[image] for image in images]
    if len(set(values)) == 1 and not complaints.texts:
        complaints.add(f"{category.name}: all {len(values)} image scores are {values[0]:g}")
    more = len(complaints.texts) - MOST
    complaints.texts[MOST:] = [f"{category.name}: {more} more maps are wrong"] if more > 0 else []
    complaints.check()
    maps = np.stack(found) if len({one.shape for one in found}) == 1 else found
    own = [] if given.scores is None else values
    digest = digest_of([images, digests, own])
    return Scored(maps=maps, image_score=np.array(values, np.float64)), digest


def measured(
    cell: Cell, place: Place, dataset: Dataset, categories: Mapping[str, Category], given: Given
) -> CellOutput:
    """The rows of a cell whose maps and scores another program made; RequestError as `scored`."""
    complaints, digests, output = Complaints(), list[str](), CellOutput(rows=[], scores=[], detector={})
    common = {
        **identity(cell, place, dataset),
        **provenance.code_provenance(),
        "teacher_sha256": None,
        "score_pooling": "maximum" if given.scores is None else "given",
        "status": "ok",
        "started_at": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    for name in cell.categories:
        category = categories[name]
        with complaints.collecting():
            found, digest = scored(given, category, PRESETS[cell.preset])
            digests.append(digest)
            if not complaints.texts:
                digested = fingerprint(dataset, category)
                output.add(output_of(cell, place, dataset, category, digested, found))
    complaints.check()
    common["outside_sha256"] = digest_of(digests)
    output.rows = [common | row for row in output.rows]
    return output
