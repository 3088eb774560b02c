"""Compare the images of a category with one another: the same picture twice, transparent beside opaque."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from kdbench.data.fingerprint import check_apart, check_labels
from kdbench.dataset import Category
from kdbench.errors import DataError, number_of

HALF = 32768  # of the range of 16 bit


@dataclass(frozen=True, kw_only=True)
class Seen:
    """Facts of a decoded image to compare it with others; `content` is a hash of its pixels."""

    content: str
    transparent: bool
    profile: str
    flat: bool
    highest: int  # value of a file of 16 bit, of 65535; 0 for one of 8 bit


def check_together(category: Category, train: Sequence[Seen], test: Sequence[Seen]) -> None:
    """DataError for a picture that is in train and test or has two labels, whatever its kind of file.

    DataError also for transparent images beside opaque ones: transparent parts are read as black.
    """
    trained = {seen.content: path for seen, path in zip(train, category.train, strict=True)}
    tested = {seen.content: sample.path for seen, sample in zip(test, category.test, strict=True)}
    check_apart(trained, tested)
    check_labels((seen.content, sample) for seen, sample in zip(test, category.test, strict=True))
    paths = [*category.train, *(sample.path for sample in category.test)]
    clear = [path for path, seen in zip(paths, [*train, *test], strict=True) if seen.transparent]
    opaque = [path for path, seen in zip(paths, [*train, *test], strict=True) if not seen.transparent]
    if clear and opaque:
        raise DataError(
            f"{clear[0]} and {len(clear) - 1} more images of {category.name} have transparent parts, which "
            f"are read as black; {opaque[0]} and {len(opaque) - 1} more have none. Save all of them without "
            f"transparency, on the same background"
        )


def notes(category: Category, train: Sequence[Seen], test: Sequence[Seen]) -> list[str]:
    """Notes on images that are there twice, show a single colour, or have different colour profiles."""
    paths = [*category.train, *(sample.path for sample in category.test)]
    seen = list(zip(paths, [*train, *test], strict=True))
    found = _twins(category, train, test) + dark(category.name, max(one.highest for _, one in seen))
    flat = [category.relative(path) for path, one in seen if one.flat]
    if flat:
        found.append(f"{category.name}: {number_of(len(flat), 'image')} of a single colour, first: {flat[0]}")
    profiles = {one.profile: category.relative(path) for path, one in reversed(seen)}
    if len(profiles) > 1:
        some = ", ".join(profiles.values())
        found.append(f"{category.name}: colour profiles, which are not applied, differ between {some}")
    return found


def dark(name: str, highest: int) -> list[str]:
    """A note if no 16-bit image uses half of the range; `highest` is their highest value, 0 without any.

    Cameras of 14 bit write such files, but the images may also be as dark as that: the file does not tell.
    """
    if not 0 < highest < HALF:
        return []
    return [
        f"{name}: no value of its 16-bit images is above {highest} of 65535, {highest / 65535:.0%} of the "
        f"range: they are read as dark as that. Scale them to all 16 bit if their camera has fewer"
    ]


def _twins(category: Category, train: Sequence[Seen], test: Sequence[Seen]) -> list[str]:
    """A note on pictures that are there more than once, in train or with the same label in test."""
    places: dict[tuple[str, str], list[str]] = defaultdict(list)
    for seen, path in zip(train, category.train, strict=True):
        places["train", seen.content].append(category.relative(path))
    for seen, sample in zip(test, category.test, strict=True):
        places["test", seen.content].append(category.relative(sample.path))
    again = [names for names in places.values() if len(names) > 1]
    if not again:
        return []
    return [
        f"{category.name}: {len(again)} pictures are there more than once with the same label and count as "
        f"often, first: {', '.join(again[0])}"
    ]
