"""Prepare a machine for its first cell: build the teachers once, decode images and masks."""

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from kdbench.data.decoding import Note, Tick, decode
from kdbench.data.found import Found
from kdbench.engine.build import build_teacher, config_of
from kdbench.errors import RequestError
from kdbench.files import cache_folder, provide_home
from kdbench.grid.cluster import on_every_node, ray_cluster
from kdbench.grid.plan import Job
from kdbench.grid.view import View
from kdbench.registry import dataset_names, get_dataset
from kdbench.results.storage import Storage
from kdbench.results.store import CELLS


def before_planning(datasets: Sequence[str], view: View) -> None:
    """Give this process a home folder if its user has none, and say which images are drawn now."""
    if text := provide_home():
        view.note(text)
    for name in datasets:
        if name in dataset_names() and not get_dataset(name).drawn():
            view.say(f"drawing the {name} dataset in {cache_folder()} (once, under half a minute)")


def prepare(
    jobs: Sequence[Job],
    data: Mapping[str, Found],
    tick: Tick = lambda done, total: None,
    note: Note = lambda text: None,
) -> list[str]:
    """Build each teacher and decode each image once; returns complaints about them."""
    teachers: dict[tuple[str, tuple[int, ...]], Job] = {}
    needed: dict[tuple[str, str, int, str], None] = {}
    for job in jobs:
        config = config_of(job.cell.method, job.cell.config)
        teachers[config.backbone, config.levels] = job
        for category in job.cell.categories:
            needed[job.cell.dataset, category, config.image_size, job.cell.preset] = None
    complaints: list[str] = []
    for job in teachers.values():
        try:
            build_teacher(job.cell.method, job.cell.config, job.place.weights)
        except RequestError as error:
            complaints += error.complaints
    accept_large = any(job.place.large_masks for job in jobs)
    return complaints + decode(list(needed), data, tick, note, accept_large=accept_large)


@contextmanager
def marked(storage: Storage) -> Iterator[str]:
    """A new file in the results folder while the block runs; a machine without it sees another folder."""
    marker = f"{CELLS.folder}/.seen.{os.urandom(4).hex()}.tmp"
    storage.write(marker, b"kdbench")
    try:
        yield marker
    finally:
        with suppress(OSError):  # an earlier error matters more
            storage.remove(marker)


def prepare_nodes(jobs: Sequence[Job], data: Mapping[str, Found], marker: str) -> None:
    """If the Ray cluster has several nodes: check that each sees the folders, and prepare it.

    `marker` is what `marked` gives. Raises RequestError with the complaints of all nodes.
    """
    if len(ray_cluster().nodes) < 2:
        return  # this machine, which is prepared already
    found = on_every_node(_prepare_node, marker, jobs, data)
    complaints = [f"node {node.name} ({node.address}): {text}" for node, texts in found for text in texts]
    if complaints:
        raise RequestError(complaints)


def unseen(jobs: Sequence[Job], marker: str) -> list[str]:
    """A complaint for each folder or file of these jobs that this machine does not see.

    `marker` is what `marked` gives.
    """
    complaints = []
    if not Storage(jobs[0].place.results).exists(marker):
        complaints.append(f"does not see the results folder {jobs[0].place.results}")
    paths = {job.place.root: "the images" for job in jobs}
    paths |= {job.place.weights.path: "the weights" for job in jobs if job.place.weights.path}
    complaints += [f"does not see {what} {path}" for path, what in paths.items() if not Path(path).exists()]
    return [f"{text}; it must be on shared storage" for text in complaints]


def _prepare_node(marker: str, jobs: Sequence[Job], data: Mapping[str, Found]) -> list[str]:
    return unseen(jobs, marker) or prepare(jobs, data)


def enough_disk(results: str, needed: int = 64 << 20) -> str | None:
    """A complaint if the disk of a results folder has less free space than the smallest results need."""
    folder = Storage(results).local
    if folder is None:
        return None
    existing = next(p for p in (folder.resolve(), *folder.resolve().parents) if p.exists())
    stats = os.statvfs(existing)
    free = stats.f_bavail * stats.f_frsize
    return None if free >= needed else f"{folder}: {free >> 20} MiB free, {needed >> 20} MiB are needed"
