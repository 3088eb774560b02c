"""Which test images a report shows: the worst misses and false alarms, disagreements, and one in the middle.

Images are chosen by the ranks of the stored image scores within a category, because the scores of two methods
have different units. An entry is shown by its lowest seed that kept pictures.
"""

import io
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from PIL import Image

from kdbench.reports.heat import Kept, Map, Normals
from kdbench.results.attempts import read_beside
from kdbench.results.storage import Storage
from kdbench.results.store import INPUTS, PICTURES, read

MOST = 6  # images of one category
BUDGET = 3_000_000  # bytes of all pictures in a page; base64 makes them a third larger
SIDES: tuple[Literal["left"], Literal["right"]] = ("left", "right")
Floats = NDArray[np.floating[Any]]
Bools = NDArray[np.bool_]
MISS, ALARM, DISAGREEMENT, MEDIAN = "miss", "false alarm", "disagreement", "median"


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A test image that is worth looking at, and why."""

    category: str
    image: str
    label: bool
    defect: str
    kind: str
    why: str
    cells: dict[str, str]  # entry -> the cell that scored it
    standing: dict[str, str]  # entry -> where its score stands, in words


@dataclass(frozen=True, kw_only=True)
class Exhibit:
    """A candidate with its pictures: JPEG of the input, PNG of the mask."""

    candidate: Candidate
    width: int
    height: int
    input: bytes
    mask: bytes | None
    maps: dict[str, Map]  # by entry; an entry without pictures of this and of normal images is not there

    @property
    def picture(self) -> NDArray[np.uint8]:
        """The picture of the input [h,w,3]."""
        with Image.open(io.BytesIO(self.input)) as opened:
            return np.asarray(opened.convert("RGB"))

    @property
    def size(self) -> tuple[int, int]:
        """Width and height of the picture of the input; a map is square and is stretched to them."""
        with Image.open(io.BytesIO(self.input)) as opened:
            return opened.size


@dataclass(frozen=True, kw_only=True)
class Shown:
    """An exhibit that a page has room for, with its coloured maps by entry."""

    exhibit: Exhibit
    maps: dict[str, bytes]

    @property
    def num_bytes(self) -> int:
        return len(self.exhibit.input) + len(self.exhibit.mask or b"") + sum(map(len, self.maps.values()))


def standings(label: Bools, scores: Floats) -> tuple[Floats, Floats]:
    """`wrong` and `place` [E,n], each from 0 to 1, from the scores [E,n] of E entries for n images.

    `wrong` of a defect is the share of normal images that score at least as high; of a normal image it is the
    share of defects that score no higher. `place` is the share of images that score lower; a tie counts half.
    """
    wrong, place = np.empty(scores.shape), np.empty(scores.shape)
    for i, own in enumerate(scores):
        normal, defects, everything = np.sort(own[~label]), np.sort(own[label]), np.sort(own)
        missed = 1 - np.searchsorted(normal, own, "left") / max(len(normal), 1)
        alarm = np.searchsorted(defects, own, "right") / max(len(defects), 1)
        wrong[i] = np.where(label, missed, alarm)
        lower, not_higher = (np.searchsorted(everything, own, side) for side in SIDES)
        place[i] = (lower + not_higher) / (2 * len(own))
    return wrong, place


def candidates(category: str, scores: pd.DataFrame) -> list[Candidate]:
    """At most MOST images of a category, in turn a miss, a false alarm and a disagreement.

    `scores` has `entry cell_id image defect label image_score` of one cell per entry. An image that some
    entry has not scored is left out.
    """
    return _standings_of(category, scores).candidates()


def median(category: str, scores: pd.DataFrame) -> list[Candidate]:
    """The defective image of a category that is neither easy nor hard, if there is one; `scores` as above.

    Of the defective images in the order of their places among all images, the mean over the entries, it is
    the one in the middle, the lower of two; images with equal places are in the order of their names.
    """
    return _standings_of(category, scores).median()


def _standings_of(category: str, scores: pd.DataFrame) -> "_Standings":
    wide = scores.pivot(index="image", columns="entry", values="image_score").dropna().sort_index()
    images = scores.drop_duplicates("image").set_index("image").loc[wide.index]
    cells = scores.drop_duplicates("entry").set_index("entry")["cell_id"]
    return _Standings(
        category=category,
        images=[*wide.index],
        entries=[*wide.columns],
        cells=[cells[entry] for entry in wide.columns],
        label=images["label"].to_numpy(bool),
        defects=[*images["defect"]],
        scores=wide.to_numpy(float).T,
    )


class _Standings:
    """The images of one category with the scores of every entry."""

    def __init__(
        self,
        *,
        category: str,
        images: list[str],
        entries: list[str],
        cells: list[str],
        label: Bools,
        defects: list[str],
        scores: Floats,
    ) -> None:
        self.category, self.images, self.entries, self.cells = category, images, entries, cells
        self.label, self.defects = label, defects
        self.wrong, self.place = standings(label, scores)

    def candidates(self) -> list[Candidate]:
        if not self.images:
            return []
        # Sorted by name already, so that equal merits stay in that order.
        worst, spread = self.wrong.max(0), np.ptp(self.place, axis=0)
        by_wrong = np.lexsort((-self.wrong.mean(0), -worst))
        by_spread = [i for i in np.argsort(-spread, kind="stable") if spread[i] > 0]
        turns = {
            MISS: [i for i in by_wrong if self.label[i]],
            ALARM: [i for i in by_wrong if not self.label[i]],
            DISAGREEMENT: by_spread,
        }
        found: dict[int, Candidate] = {}
        left = {kind: iter(images) for kind, images in turns.items()}
        while left:
            for kind, images in [*left.items()]:
                i = next((i for i in images if i not in found), None)
                if i is None:
                    del left[kind]
                elif len(found) < MOST:
                    found[i] = self._candidate(kind, i)
        return list(found.values())

    def median(self) -> list[Candidate]:
        defective = np.flatnonzero(self.label)
        order = defective[np.argsort(self.place[:, defective].mean(0).round(12), kind="stable")]
        return [self._candidate(MEDIAN, int(i)) for i in order[(len(order) - 1) // 2 :][:1]]

    def _candidate(self, kind: str, i: int) -> Candidate:
        label = bool(self.label[i])
        others = "normal images" if label else "defects"
        above = 1 - self.wrong[:, i] if label else self.wrong[:, i]
        standing = {
            entry: f"above {share:.0%} of the {others}"
            for entry, share in zip(self.entries, above, strict=True)
        }
        return Candidate(
            category=self.category,
            image=self.images[i],
            label=label,
            defect=self.defects[i],
            kind=kind,
            why=self._why(kind, i, others),
            cells=dict(zip(self.entries, self.cells, strict=True)),
            standing=standing,
        )

    def _why(self, kind: str, i: int, others: str) -> str:
        if kind == MEDIAN:
            return "in the middle of the defective images by the mean place of its score"
        if kind == DISAGREEMENT:
            high, low = int(self.place[:, i].argmax()), int(self.place[:, i].argmin())
            return (
                f"scores higher than {self.place[high, i]:.0%} of all images for {self.entries[high]}, "
                f"than {self.place[low, i]:.0%} for {self.entries[low]}"
            )
        worst = int(self.wrong[:, i].argmax())
        share = self.wrong[worst, i]
        if share == 0:
            return f"none: every method tells it from all {others}"
        if self.label[i]:
            return f"of {self.entries[worst]}: {share:.0%} of the {others} score as high or higher"
        return f"of {self.entries[worst]}: it scores as high as or higher than {share:.0%} of the {others}"


def exhibits(where: Storage, chosen: Sequence[Candidate], scores: pd.DataFrame) -> Iterator[Exhibit]:
    """The candidates with their pictures, in the same order; candidates without pictures are left out.

    `scores` has `cell_id category image label` of their cells: the colours of a map stand for shares of the
    pixels of the normal images among these.
    """
    wanted: dict[str, set[str]] = {}  # cell -> images
    for candidate in chosen:
        for cell_id in candidate.cells.values():
            wanted.setdefault(cell_id, set()).add(candidate.image)
    is_normal = scores[~scores["label"].astype(bool)].groupby("cell_id")["image"].agg(set)
    maps: dict[tuple[str, str], Map] = {}  # (cell, image)
    contents: dict[str, set[str]] = {}  # fingerprint of a category -> images
    for cell_id, images in wanted.items():
        kept = read_beside(where, PICTURES, only=[cell_id]).to_pandas()
        for print_, own in kept.groupby("category_fingerprint"):
            of_category = {row.image: _kept(row) for row in own.itertuples()}
            normals = [one for image, one in of_category.items() if image in is_normal.get(cell_id, ())]
            among = Normals(normals) if normals else None
            for image in images & of_category.keys():
                contents.setdefault(str(print_), set()).add(image)
                if among:
                    maps[cell_id, image] = Map(kept=of_category[image], normals=among)
    inputs = {
        row["image"]: row
        for print_, images in contents.items()
        for row in read(where, INPUTS, only=[print_]).to_pylist()
        if row["image"] in images
    }
    for candidate in chosen:
        own_maps = {
            entry: maps[cell_id, candidate.image]
            for entry, cell_id in candidate.cells.items()
            if (cell_id, candidate.image) in maps
        }
        if candidate.image in inputs:
            row = inputs[candidate.image]
            names = ("width", "height", "input", "mask")
            yield Exhibit(candidate=candidate, maps=own_maps, **{name: row[name] for name in names})


def within_budget(groups: Sequence[Iterable[Exhibit]], budget: int = BUDGET) -> list[list[Shown]]:
    """The first exhibits of each group, taken in turn until `budget` bytes are used."""
    taken: list[list[Shown]] = [[] for _ in groups]
    used = 0
    for turn in zip_longest(*groups):
        for own, exhibit in zip(taken, turn, strict=True):
            if exhibit is None:
                continue
            size = exhibit.size
            maps = {entry: kept.coloured(size) for entry, kept in exhibit.maps.items()}
            shown = Shown(exhibit=exhibit, maps=maps)
            used += shown.num_bytes
            if used > budget:
                return taken
            own.append(shown)
    return taken


def _kept(row: Any) -> Kept:
    power = 1.0 if pd.isna(row.grey_power) else float(row.grey_power)
    return Kept(picture=row.anomaly_map, lowest=row.lowest, highest=row.highest, power=power)
