"""Download a dataset: fetch its archives, verify them, unpack aside, so that it is whole or not there."""

import hashlib
import json
import lzma
import os
import re
import shutil
import stat
import tarfile
import time
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from glob import escape
from http.client import HTTPException, HTTPResponse
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO
from urllib.error import HTTPError, URLError
from urllib.parse import unquote, urlsplit
from urllib.request import Request, urlopen
from uuid import uuid4

from filelock import FileLock, Timeout

from kdbench import __version__
from kdbench.dataset import Archive, Dataset
from kdbench.errors import DataError, RequestError, reason
from kdbench.files import cache_folder, folder_of

# Called with the step (download, verify, unpack), the bytes that are done, and all bytes if known.
Progress = Callable[[str, int, int | None], None]

RETRIES = 5  # a connection may break so many times in a row without new bytes
BLOCK = 1 << 20
LICENCE_TEXTS = {
    "CC BY-NC-SA 4.0": "https://creativecommons.org/licenses/by-nc-sa/4.0/",
    "CC BY 4.0": "https://creativecommons.org/licenses/by/4.0/",
}
# RuntimeError: zipfile's for a password or an unknown compression
UNREADABLE = (tarfile.TarError, zipfile.BadZipFile, lzma.LZMAError, zlib.error, EOFError, RuntimeError)


class _Broken(Exception):
    """The connection broke; trying again may help."""


@dataclass(frozen=True, kw_only=True)
class _Fetching:
    """The download of one archive."""

    archive: Archive
    source: str
    part: Path
    tell: Progress
    timeout_s: float
    facts: Path = field(init=False)  # the server's facts of the file whose first bytes are in the part

    def __post_init__(self) -> None:
        object.__setattr__(self, "facts", self.part.with_name(f"{self.part.name}.json"))

    def done(self) -> int:
        return self.part.stat().st_size if self.part.is_file() else 0

    def forget(self) -> None:
        for path in (self.part, self.facts):
            path.unlink(missing_ok=True)


def licence_of(dataset: Dataset) -> str:
    """A dataset's licence and where its text is."""
    texts = [text for name, text in LICENCE_TEXTS.items() if dataset.licence.startswith(name)]
    return f"{dataset.licence}: {(texts or [dataset.source])[0]}"


def download_folder(dataset: Dataset, given: Path | None) -> Path:
    """Where a download goes: `given`, or KDBENCH_DATA/NAME; RequestError without either."""
    data = folder_of("KDBENCH_DATA")
    if given is not None:
        return given
    if data is None:
        raise RequestError([f"where shall {dataset.name} go? Give --root FOLDER, or set KDBENCH_DATA"])
    return data / dataset.name


def download(
    dataset: Dataset,
    root: Path,
    *,
    accept_licence: bool,
    on_progress: Progress | None = None,
    sleep: Callable[[float], None] = time.sleep,
    timeout_s: float = 60.0,
) -> Path:
    """Fetch, verify and unpack the dataset into `root`, which must not hold anything yet; returns it.

    Fetched bytes stay in NAME.part beside `root` until they are unpacked, so that the same call goes on.
    Raises RequestError for something that the user has to change, DataError for a wrong archive.
    """
    archives = dataset.archives
    if not archives:
        raise RequestError(
            [
                f"{dataset.name} has no archive that can be downloaded and verified. "
                f"It comes from {dataset.source} ({dataset.licence})"
            ]
        )
    if not accept_licence:
        raise RequestError(
            [f"{dataset.name} has the licence {licence_of(dataset)}. Read it, then add --accept-licence"]
        )
    tell = on_progress or (lambda what, done, total: None)
    root = root.resolve()
    try:
        if root.is_mount():  # nothing can take its place
            raise RequestError([f"{root} is a mount point. Give a folder in it: {root / dataset.name}"])
        if root.exists() and (not root.is_dir() or any(root.iterdir())):
            raise RequestError(
                [
                    f"{root} is not empty. `kdbench datasets check {dataset.name}` says what is there; "
                    f"to download, give another folder or move it away"
                ]
            )
        root.parent.mkdir(parents=True, exist_ok=True)
        with _alone(root):
            fetchings = [
                _Fetching(
                    archive=archive,
                    source=dataset.source,
                    part=root.parent / f"{_name(archive)}.part",
                    tell=tell,
                    timeout_s=timeout_s,
                )
                for archive in archives
            ]
            for fetching in fetchings:
                _fetch(fetching, sleep)
            _unpack_all(dataset, fetchings, root)
            for fetching in fetchings:
                fetching.forget()
    except OSError as error:
        raise RequestError([f"{error.filename or root}: {reason(error)}"]) from error
    return root


def _alone(root: Path) -> Any:
    """The lock of a download into `root`; RequestError if another process has it."""
    lock = cache_folder() / "locks" / f"download-{hashlib.sha256(os.fsencode(root)).hexdigest()[:12]}.lock"
    lock.parent.mkdir(parents=True, exist_ok=True)
    try:
        return FileLock(lock).acquire(timeout=0)
    except Timeout as error:
        raise RequestError([f"another process is downloading into {root}"]) from error


def _name(archive: Archive) -> str:
    return PurePosixPath(unquote(urlsplit(archive.url).path)).name


def _room(folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise RequestError([f"{folder}: {free >> 20} MiB free, {needed >> 20} MiB are needed"])


# Fetching


def _fetch(fetching: _Fetching, sleep: Callable[[float], None]) -> None:
    """Bring the whole archive into its part, however often the connection breaks, and verify it."""
    furthest, broken = fetching.done(), 0
    while True:
        try:
            _go_on(fetching)
            break
        except _Broken as error:
            done = fetching.done()
            broken = 1 if done > furthest else broken + 1
            furthest = max(furthest, done)
            if broken > RETRIES:
                raise RequestError(
                    [
                        f"{fetching.archive.url}: the connection broke {broken} times in a row, at last: "
                        f"{error}. {done >> 20} MiB are kept in {fetching.part}; the same command goes on"
                    ]
                ) from error
            sleep(2.0 ** (broken - 1))
    _verify(fetching)


def _go_on(fetching: _Fetching) -> None:
    """One request for what is missing: the part grows, or starts again if the file is not the same."""
    have, known = fetching.done(), _known(fetching)
    if not known:
        have = 0
    elif have == known.get("size"):
        return  # whole, only not verified or not unpacked yet
    headers = {"User-Agent": f"kdbench/{__version__}", "Accept-Encoding": "identity"}
    if have:
        headers["Range"] = f"bytes={have}-"
    with _opened(fetching, Request(fetching.archive.url, headers=headers)) as response:
        start, total = _extent(response)
        total = fetching.archive.size_bytes if total is None else total
        facts = {
            "url": fetching.archive.url,
            "etag": response.headers.get("ETag"),
            "modified": response.headers.get("Last-Modified"),
            "size": total,
        }
        same = start == have and facts == known
        if start and not same:
            fetching.forget()  # the file has changed, and this answer is only its end
            raise _Broken("the file has changed meanwhile")
        if total is not None:  # a tenth more: files fill whole blocks of the disk
            _room(fetching.part.parent, total - start + total + total // 10)
        fetching.facts.write_text(json.dumps(facts))
        with fetching.part.open("ab" if start else "wb") as file:
            _copy(response, file, fetching.tell, start, total)
    if total is not None and fetching.done() < total:
        raise _Broken(f"{fetching.done()} of {total} bytes came")


def _known(fetching: _Fetching) -> dict[str, Any]:
    try:
        known = json.loads(fetching.facts.read_text())
    except (OSError, ValueError):
        return {}
    return known if isinstance(known, dict) and known.get("url") == fetching.archive.url else {}


def _opened(fetching: _Fetching, request: Request) -> HTTPResponse:
    try:
        return urlopen(request, timeout=fetching.timeout_s)
    except HTTPError as error:
        if error.code == 416:  # the file is shorter than what is here already
            fetching.forget()
        if error.code >= 500 or error.code in (408, 416, 429):
            raise _Broken(f"HTTP {error.code} {error.reason}") from error
        raise RequestError(
            [
                f"{fetching.archive.url} answers {error.code} {error.reason}. Its address may have changed: "
                f"get the archive from {fetching.source} and unpack it by hand"
            ]
        ) from error
    except URLError as error:
        raise _Broken(str(error.reason)) from error
    except (OSError, HTTPException) as error:
        raise _Broken(str(error) or type(error).__name__) from error


def _extent(response: HTTPResponse) -> tuple[int, int | None]:
    """Where the answer begins in the file, and how long the file is."""
    if response.status == 206:
        found = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", response.headers.get("Content-Range", ""))
        if not found:
            raise _Broken(f"not a part: Content-Range {response.headers.get('Content-Range')!r}")
        return int(found[1]), None if found[2] == "*" else int(found[2])
    length = response.headers.get("Content-Length", "")
    return 0, int(length) if length.isdecimal() else None


def _copy(response: HTTPResponse, file: BinaryIO, tell: Progress, done: int, total: int | None) -> None:
    while True:
        try:
            block = response.read1(BLOCK)
        except (OSError, HTTPException) as error:
            raise _Broken(str(error) or type(error).__name__) from error
        if not block:
            return
        file.write(block)
        done += len(block)
        tell("download", done, total)


def _verify(fetching: _Fetching) -> None:
    digest, total = hashlib.sha256(), fetching.done()
    with fetching.part.open("rb") as file:
        while block := file.read(BLOCK):
            digest.update(block)
            fetching.tell("verify", file.tell(), total)
    if digest.hexdigest() != fetching.archive.sha256:
        fetching.forget()
        raise DataError(
            f"{fetching.archive.url}: SHA-256 is {digest.hexdigest()}, must be {fetching.archive.sha256}. "
            f"The download is deleted. Try again; if the hash stays the same, the file was replaced: see "
            f"{fetching.source}"
        )


# Unpacking


def _unpack_all(dataset: Dataset, fetchings: list[_Fetching], root: Path) -> None:
    """Unpack into a folder beside `root` that takes its place at the end."""
    for left in root.parent.glob(f".{escape(root.name)}.????????.unpack"):
        shutil.rmtree(left, ignore_errors=True)  # of a process that was killed: this one has the lock
    aside = root.parent / f".{root.name}.{uuid4().hex[:8]}.unpack"
    whole = aside / "whole"
    whole.mkdir(parents=True)
    try:
        for index, fetching in enumerate(fetchings):
            folder = aside / str(index)
            folder.mkdir()
            unpack(fetching.part, folder, fetching.tell, name=fetching.archive.url)
            for path in _held(dataset, folder, fetching.archive).iterdir():
                path.rename(whole / path.name)
        if not dataset.present(whole):
            raise DataError(
                f"{', '.join(f.archive.url for f in fetchings)}: none of the categories "
                f"{', '.join(dataset.categories)} is in it"
            )
        whole.rename(root)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _held(dataset: Dataset, folder: Path, archive: Archive) -> Path:
    """The folder with the categories in what was unpacked, also below a folder that wraps everything."""
    held = folder / archive.strip
    if not held.is_dir():
        raise DataError(f"{archive.url} has no folder {archive.strip!r}")
    wrapping = [p for p in held.iterdir() if p.is_dir() and dataset.present(p)]
    return wrapping[0] if len(wrapping) == 1 and not dataset.present(held) else held


def unpack(archive: Path, folder: Path, tell: Progress, *, name: str) -> None:
    """Unpack a tar or zip; DataError, with `name`, for a member that would leave `folder`."""
    try:
        if tarfile.is_tarfile(archive):
            _untar(archive, folder, tell, name)
        elif zipfile.is_zipfile(archive):
            _unzip(archive, folder, tell, name)
        else:
            raise DataError(f"{name} is neither a tar nor a zip")
    except UNREADABLE as error:
        raise DataError(f"{name} cannot be unpacked: {error or type(error).__name__}") from error


def _untar(archive: Path, folder: Path, tell: Progress, name: str) -> None:
    if not hasattr(tarfile, "data_filter"):
        raise RequestError(["unpacking safely needs Python 3.11.4 or later"])
    size = archive.stat().st_size
    with archive.open("rb") as packed, tarfile.open(fileobj=packed) as tar:
        for member in tar:
            _refuse_name(member.name, name)
            try:
                tar.extract(member, folder, filter="data")
            except tarfile.FilterError as error:
                raise DataError(f"{name}: {error}. Nothing was kept of it") from error
            tell("unpack", packed.tell(), size)


def _unzip(archive: Path, folder: Path, tell: Progress, name: str) -> None:
    with zipfile.ZipFile(archive) as packed:
        members = packed.infolist()
        for member in members:
            _refuse_name(member.filename, name)
            kind = stat.S_IFMT(member.external_attr >> 16)
            if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
                raise DataError(f"{name}: {member.filename!r} is a link or a device, not a file")
        total, done = sum(member.file_size for member in members), 0
        _room(folder, total)
        for member in members:
            packed.extract(member, folder)
            done += member.file_size
            tell("unpack", done, total)


def _refuse_name(member: str, name: str) -> None:
    parts = member.replace("\\", "/").split("/")
    if parts[0] == "" or ".." in parts or re.match("[A-Za-z]:", member):
        raise DataError(f"{name}: {member!r} would leave the folder. Nothing was kept of it")
