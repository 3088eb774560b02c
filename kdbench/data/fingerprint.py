"""The content of images: digests of files, and the fingerprint of a category, part of a cell's id."""

import hashlib
import json
import os
import sys
from collections.abc import Collection, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kdbench.cell import digest_of
from kdbench.dataset import Category, Dataset, Sample
from kdbench.errors import DataError, reason
from kdbench.files import cache_folder, not_cached, written_aside
from kdbench.picture import image_by_rule, mask_by_rule

DIGESTS = 4  # version of the remembered digests; older ones were taken without looking into the files
# Stands behind the digest of a file that older versions read in another way, such as a mask by the stored
# values of its first page: their rows must not count as rows of what the file shows.
BY_RULE = " as it is seen"


@dataclass(frozen=True, kw_only=True)
class Contents:
    """A category's fingerprint, and the digest of each of its train and test images."""

    fingerprint: str
    train: dict[str, Path]
    test: dict[str, Path]


def fingerprint(dataset: Dataset, category: Category) -> str:
    """The fingerprint of `contents`."""
    return contents(dataset, category).fingerprint


def contents(dataset: Dataset, category: Category) -> Contents:
    """Hash the names, roles and contents of a category's files.

    A file is read once: the cache remembers its digest with its size and time of change. Raises DataError if
    train and test overlap, if a test image is normal in one place and defective in another, if a file cannot
    be read, or if rows cannot hold the category's name.
    """
    _check_name(category)
    files = [("train", "good", path) for path in category.train]
    files += [("test", s.defect, s.path) for s in category.test]
    files += [("mask", s.defect, mask) for s in category.test for mask in s.masks]
    masks = {mask for sample in category.test for mask in sample.masks}
    digests = _digests(dataset, category, {path for _, _, path in files}, masks)
    train = {digests[path]: path for path in category.train}
    test = {digests[s.path]: s.path for s in category.test}
    check_apart(train, test)
    check_labels((digests[sample.path], sample) for sample in category.test)
    listed = sorted([role, kind, category.relative(path), digests[path]] for role, kind, path in files)
    listed += [["settings", "", category.relative(path), _content(path)] for path in category.settings]
    digest = digest_of([category.name, dataset.mask_above, listed])
    return Contents(fingerprint=digest[:20], train=train, test=test)


def _content(path: Path) -> str:
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise DataError(f"{path}: {reason(error)}") from error


def _check_name(category: Category) -> None:
    try:
        category.name.encode()
    except UnicodeEncodeError as error:
        encoding = sys.getfilesystemencoding()
        advice = "Rename it" if encoding == "utf-8" else "Set PYTHONUTF8=1, so that names are read as UTF-8"
        folder = str(category.root / category.name)
        raise DataError(f"the name of the folder {folder!a} is not {encoding}. {advice}") from error


def check_apart(train: Mapping[str, Path], test: Mapping[str, Path]) -> None:
    """Raise DataError if a test image has the content of a train image."""
    for digest in test.keys() & train.keys():
        raise DataError(
            f"{test[digest]} is a test image and has the content of the train image {train[digest]}"
        )


def check_labels(tested: Iterable[tuple[str, Sample]]) -> None:
    """Raise DataError if the same content, given by its digest, is a normal and a defective test image."""
    first: dict[str, Sample] = {}
    for digest, sample in tested:
        other = first.setdefault(digest, sample)
        if other.label != sample.label:
            good, bad = sorted((other, sample), key=lambda each: each.label)
            raise DataError(
                f"{good.path} is a normal test image and has the content of the defective test image "
                f"{bad.path}. Remove the one that is in the wrong folder"
            )


def shared_images(tested: Mapping[str, Collection[str]]) -> list[str]:
    """A note for each two categories with common test images; `tested` is category -> digests."""
    names = list(tested)
    return [
        f"{first} and {second} share {shared} test images, which count in both"
        for number, first in enumerate(names)
        for second in names[number + 1 :]
        if (shared := len(set(tested[first]) & set(tested[second])))
    ]


def fingerprint_of(fingerprints: Iterable[str]) -> str:
    """The fingerprint of several categories together."""
    return digest_of(sorted(fingerprints))[:20]


def _digests(
    dataset: Dataset, category: Category, paths: Iterable[Path], masks: Collection[Path]
) -> dict[Path, str]:
    """The digest of each file, followed by BY_RULE if older versions read the file in another way.

    Raises DataError for files that cannot be read or are refused by their headers.
    """
    of = f"{dataset.name} {category.root} {category.name} {DIGESTS}"
    key = hashlib.sha256(os.fsencode(of)).hexdigest()[:20]  # a path need not be UTF-8
    memory = cache_folder() / "digests" / f"{key}.json"
    known = _remembered(memory)

    def look(path: Path) -> tuple[str, list[int | str]]:
        try:
            stat = path.stat()
            # The time of modification can be put back, by `cp -p` or tar; that of change cannot.
            size, changed = stat.st_size, f"{stat.st_mtime_ns} {stat.st_ctime_ns}"
            old = known.get(str(path))
            unchanged = old is not None and old[:2] == [size, changed]
            digest = old[2] if old and unchanged else dataset.digest(path)
            if not unchanged:
                by_rule = mask_by_rule(path, dataset.mask_above) if path in masks else image_by_rule(path)
                digest += BY_RULE if by_rule else ""
        except DataError:
            raise
        except (OSError, SyntaxError, ValueError) as error:  # the last two if `digest` decodes the image
            raise DataError(f"{path}: {reason(error)}") from error
        return str(path), [size, changed, digest]

    with ThreadPoolExecutor() as pool:
        fresh = dict(pool.map(look, sorted(paths)))
    if fresh != known:
        try:
            with written_aside(memory) as aside:
                aside.write_text(json.dumps(fresh), encoding="ascii")
        except OSError as error:
            raise DataError(not_cached(error)) from error
    return {Path(path): str(entry[2]) for path, entry in fresh.items()}


def _remembered(memory: Path) -> dict[str, list[Any]]:
    """The digests of earlier runs; entries that are not digests are dropped and computed again."""
    try:
        known = json.loads(memory.read_bytes())
    except (OSError, ValueError):
        return {}
    entries = known.items() if isinstance(known, dict) else ()
    return {path: entry for path, entry in entries if isinstance(entry, list) and len(entry) == 3}
