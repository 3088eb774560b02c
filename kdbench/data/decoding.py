"""Decode images and masks of whole datasets once, before anything needs them."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from kdbench.data.found import Found, find_data
from kdbench.data.store import images_ready, open_images, open_truth
from kdbench.data.together import dark
from kdbench.dataset import Dataset
from kdbench.errors import DataError, RequestError, unknown
from kdbench.files import not_cached
from kdbench.metrics.presets import PRESETS

Tick = Callable[[int, int], None]  # called with the number of decoded images, and the number of all
Note = Callable[[str], None]  # called with a remark for a person


def decode(
    needed: Sequence[tuple[str, str, int, str]],
    data: Mapping[str, Found],
    tick: Tick,
    note: Note = lambda text: None,
    *,
    accept_large: bool = False,
) -> list[str]:
    """Decode images and masks of (dataset, category, image size, preset); returns complaints.

    `note` is told once per category what a person should look at; not about large masks if `accept_large`.
    """
    total = sum(_num_to_decode(data[name], category, size) for name, category, size, _ in needed)
    complaints, done = [], 0
    notes: dict[str, None] = {}

    def decoded(count: int) -> None:
        nonlocal done
        done += count
        tick(done, total)

    for name, category, size, preset in needed:
        dataset, found = data[name].dataset, data[name].categories[category]
        fingerprint = data[name].fingerprints[category]
        try:
            images = open_images(dataset, found, fingerprint, size, decoded)
            notes.update(dict.fromkeys(dark(f"{name} {category}", images.highest)))
            remarks = open_truth(dataset, found, fingerprint, PRESETS[preset]).remarks
            notes.update(dict.fromkeys(remarks.texts(f"{name} {category}", accept_large=accept_large)))
        except DataError as error:
            complaints.append(str(error))
        except OSError as error:
            complaints.append(not_cached(error))
    for text in notes:
        note(text)
    return complaints


def decode_dataset(
    dataset: Dataset,
    root: Path | None,
    categories: tuple[str, ...],
    *,
    image_size: int,
    preset: str,
    tick: Tick,
    note: Note = lambda text: None,
) -> dict[str, int]:
    """Decode the images and masks of these categories, or of all; returns category -> number of images.

    Raises RequestError with every complaint about them, or if there is no such preset.
    """
    if preset not in PRESETS:
        raise RequestError([unknown("preset", preset, PRESETS)])
    data = find_data(dataset, root, categories)
    needed = [(dataset.name, category, image_size, preset) for category in data.categories]
    if complaints := decode(needed, {dataset.name: data}, tick, note):
        raise RequestError(complaints)
    return {name: len(found.train) + len(found.test) for name, found in data.categories.items()}


def _num_to_decode(data: Found, category: str, size: int) -> int:
    found, fingerprint = data.categories[category], data.fingerprints[category]
    ready = images_ready(data.dataset, found, fingerprint, size)
    return 0 if ready else len(found.train) + len(found.test)
