"""Read paths, folders and texts of users; write files and folders so that nobody ever sees half of one."""

import csv
import hashlib
import io
import os
import pwd
import shutil
import tempfile
import unicodedata
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Literal
from uuid import uuid4

import platformdirs
from filelock import FileLock

from kdbench.errors import DataError, RequestError, reason

# Byte-order marks of texts that are not UTF-8; the longer ones first, since they begin with a shorter one.
MARKS = {
    b"\xff\xfe\x00\x00": "UTF-32",
    b"\x00\x00\xfe\xff": "UTF-32",
    b"\xff\xfe": "UTF-16",
    b"\xfe\xff": "UTF-16",
}

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff")
SHOWN = 5  # names in a message
# File managers write these names, and names that begin with a dot.
LITTER = ("Thumbs.db", "desktop.ini", "__MACOSX")
LFS_POINTER = "it is a pointer of Git LFS, not the file itself. Get the file with `git lfs pull`"


@dataclass(frozen=True)
class Content:
    """A file that is in memory only, with a name for messages."""

    data: bytes
    name: str

    def open(self, mode: Literal["rb"]) -> BinaryIO:
        """Open the content, as `Path.open` opens a file."""
        return io.BytesIO(self.data)

    def __str__(self) -> str:
        return self.name


def is_lfs_pointer(path: Path) -> bool:
    """Whether a file is the short text that Git LFS leaves in place of a file that was not fetched."""
    try:
        with path.open("rb") as file:
            return file.read(64).startswith(b"version https://git-lfs.github.com/spec/")
    except OSError:
        return False


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def expanded(path: str) -> str:
    """The path, with `~` or `~NAME` at its start replaced by that user's home folder.

    Raises RequestError if there is no such home: nobody means a folder that is called `~`.
    """
    full = os.path.expanduser(path)  # noqa: PTH111, a Path would drop the slashes of a URI
    if full.startswith("~"):
        raise RequestError([f"there is no home folder {path.partition('/')[0]!r}"])
    return full


def provide_home() -> str | None:
    """Give this process, and those it starts, a home folder if the user has none; returns a note about it.

    A container may run as a user without a name and a home, and Ray does not start without a home. Raises
    RequestError if another user owns the folder in the temporary folder that would become the home.
    """
    if Path(_home()).is_absolute():
        return None
    folder = Path(tempfile.gettempdir()) / f"kdbench-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    if folder.is_symlink() or folder.stat().st_uid != os.getuid():
        raise RequestError([f"another user owns {folder}. Set HOME to a folder of your own"])
    os.environ["HOME"] = str(folder)
    return f"user {os.getuid()} has no home folder; it is {folder} now. HOME or KDBENCH_CACHE chooses another"


def _home() -> str:
    """The home folder as Python finds it; an empty text if there is none."""
    if "HOME" in os.environ:
        return os.environ["HOME"]
    try:
        return pwd.getpwuid(os.getuid()).pw_dir
    except KeyError:  # the system does not know the user
        return ""


def folder_of(variable: str) -> Path | None:
    """The folder that an environment variable names; None if it is not set or empty."""
    given = os.environ.get(variable)
    return Path(expanded(given)) if given else None


def read_text(path: Path) -> str:
    """The text of a UTF-8 file, which may begin with a byte-order mark.

    Raises OSError if the file cannot be read, ValueError if it has another encoding.
    """
    content = path.read_bytes()
    for mark, name in MARKS.items():
        if content.startswith(mark):
            raise ValueError(f"the text is {name}. Save it as UTF-8")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        where = f"byte {content[error.start]:#04x} at position {error.start}"
        raise ValueError(f"{where} is not UTF-8. Save it as UTF-8") from error
    if "\0" in text:
        raise ValueError("it has NUL characters, as UTF-16 without a mark has. Save it as UTF-8")
    return text


def folded(name: str) -> str:
    """The name without case and accents: equal for names that people or some file systems take for one."""
    visible = "".join(c for c in unicodedata.normalize("NFC", name) if unicodedata.category(c) != "Cf")
    return visible.strip().casefold()


def entries(folder: Path) -> list[Path]:
    """The content of a folder without the files of file managers; DataError for names that look equal."""
    found = [path for path in sorted(folder.iterdir()) if path.name not in LITTER and path.name[0] != "."]
    seen: dict[str, Path] = {}
    for path in found:
        other = seen.setdefault(folded(path.name), path)
        if other != path:
            raise DataError(
                f"{other} and {path} look the same (case, spaces, accents): other computers take them for "
                f"one. Rename one"
            )
    return found


def listed(paths: Sequence[Path]) -> str:
    """The first names, for a message."""
    names = [path.name for path in paths]
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return (", ".join(names[:SHOWN]) or "nothing") + more


def image_files(
    folder: Path, suffixes: tuple[str, ...] = IMAGE_SUFFIXES, *, besides: Collection[str] = ()
) -> list[Path]:
    """The images of a folder, sorted by name; DataError if anything else lies there but `besides`."""
    files = []
    for path in entries(folder):
        if path.name in besides:
            continue
        if path.is_dir():
            raise DataError(
                f"{path} is a folder, and images lie in {folder} itself. Move it or its images: nothing is "
                f"skipped in silence"
            )
        if not path.is_file() or path.suffix.lower() not in suffixes:
            kinds = ", ".join(suffixes)
            raise DataError(
                f"{path} is not an image file ({kinds}). Move it away: nothing is skipped in silence"
            )
        if not path.name.isprintable() or path.name != path.name.encode("utf-8", "replace").decode():
            raise DataError(f"{str(path)!r} has a name that no result file can hold. Rename it")
        files.append(path)
    return files


def csv_rows(text: str) -> Iterator[tuple[int, dict[str, str]]]:
    """The lines of a CSV text below the first: the number of each, and its fields by the names in the first.

    Raises csv.Error, or ValueError for a name that occurs twice, for one would hide the other, and for a line
    with more or fewer fields, as a decimal comma makes them.
    """
    lines = csv.DictReader(io.StringIO(text, newline=""), strict=True)
    head = csv_head(text)
    for line in lines:
        if None in line or None in line.values():
            raise ValueError(f"line {lines.line_num} has not {len(head)} fields, as the first line has")
        yield lines.line_num, line


def csv_head(text: str) -> tuple[str, ...]:
    """The names in the first line of a CSV text; csv.Error or ValueError as `csv_rows`."""
    head = tuple(next(csv.reader(io.StringIO(text, newline=""), strict=True), ()))
    if wrong := columns_twice(head):
        raise ValueError(wrong)
    return head


def columns_twice(names: Sequence[str]) -> str:
    """What is wrong with the first line of a CSV whose names occur twice; "" if none does."""
    twice = [name for name in dict.fromkeys(names) if names.count(name) > 1]
    return f"the column {', '.join(map(repr, twice))} occurs twice" if twice else ""


def cache_folder() -> Path:
    """The folder of decoded images, drawn images and digests: KDBENCH_CACHE, or the user's cache folder."""
    return folder_of("KDBENCH_CACHE") or platformdirs.user_cache_path("kdbench")


def not_cached(error: OSError) -> str:
    """The message for a cache folder that cannot be written."""
    folder = cache_folder()
    return f"cannot write in the cache folder {folder}: {reason(error)}. KDBENCH_CACHE chooses another"


@contextmanager
def written_aside(path: Path) -> Iterator[Path]:
    """A temporary path beside `path`; it is synced and renamed to `path` if the block raises no error."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = beside(path)
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
        aside = beside(folder)
        aside.mkdir()
        try:
            build(aside)
            aside.rename(folder)
        finally:
            shutil.rmtree(aside, ignore_errors=True)
    return folder


def beside(path: Path) -> Path:
    """A hidden name in the same folder that no other process uses."""
    return path.with_name(f".{path.name}.{uuid4().hex[:8]}.tmp")
