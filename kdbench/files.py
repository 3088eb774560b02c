"""Where the cache lies, and two ways to write so that no process ever sees half of a file or folder."""

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

import platformdirs
from filelock import FileLock


def cache_folder() -> Path:
    """The folder of decoded images, drawn images and digests: KDBENCH_CACHE, or the user's cache folder."""
    given = os.environ.get("KDBENCH_CACHE")
    return Path(given) if given else platformdirs.user_cache_path("kdbench")


@contextmanager
def written_aside(path: Path) -> Iterator[Path]:
    """A temporary path beside `path`; it is synced and renamed to `path` if the block raises no error."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = _beside(path)
    try:
        yield aside
        with aside.open("rb") as file:
            os.fsync(file.fileno())
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)


def build_once(folder: Path, build: Callable[[Path], None]) -> Path:
    """The folder. If it does not exist, `build` fills a temporary folder, which is then renamed.

    A lock makes other processes wait for the one that builds. OSError if the folder cannot be written.
    """
    if folder.is_dir():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{folder}.lock"):
        if folder.is_dir():  # another process built it while this one waited
            return folder
        aside = _beside(folder)
        aside.mkdir()
        try:
            build(aside)
            aside.rename(folder)
        finally:
            shutil.rmtree(aside, ignore_errors=True)
    return folder


def _beside(path: Path) -> Path:
    """A hidden name in the same folder that no other process uses."""
    return path.with_name(f".{path.name}.{uuid4().hex[:8]}.tmp")
