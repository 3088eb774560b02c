"""A results folder on a disk or in an object store. Every file in it is whole, or it is not there."""

import os
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from kdbench.errors import RequestError, first_line

if TYPE_CHECKING:
    from pyarrow import NativeFile
    from pyarrow.fs import FileSystem

# In these stores an object appears only when its writer closes it, and no folder has to be made.
OBJECT_STORES = ("s3", "gcs", "abfs")


class Storage:
    """Files below one folder: a path, or a URI that pyarrow knows (`s3://`, `gs://`, `abfs://`, `file://`).

    Names are relative and use `/`. A file whose name begins with a dot is being written; nobody reads it.
    """

    def __init__(self, where: str | Path) -> None:
        self.where = str(where)
        if self.where in ("", "file://"):  # from an unset shell variable; it would mean the current folder
            raise RequestError([f"the results folder {self.where!r} names no folder"])
        self.local = _local_path(self.where)  # None: an object store, or a file system of another machine
        self._opened: tuple[FileSystem, str] | None = None

    def __str__(self) -> str:
        return self.where

    def path(self, name: str) -> str:
        """Where a file is, for messages and for readers that take a path or a URI."""
        where, query, options = self.where.partition("?") if self.local is None else (self.where, "", "")
        return f"{where.rstrip('/')}/{name}{query}{options}"

    def names(self, folder: str) -> list[str]:
        """Names `folder/file` of all finished files in a folder, sorted; none if there is no such folder."""
        return sorted(name for name in self._all(folder) if not name.rpartition("/")[2].startswith("."))

    def unfinished(self, folder: str) -> list[str]:
        """Names of temporary files: some process writes them now, or died while it did."""
        return sorted(name for name in self._all(folder) if name.endswith(".tmp"))

    def exists(self, name: str) -> bool:
        """Whether the file is there; if it is, it is whole."""
        if self.local:
            return (self.local / name).exists()
        files, base = self._remote()
        return bool(files.get_file_info(f"{base}/{name}").is_file)

    def age_s(self, name: str) -> float:
        """Seconds since a file was written, from the storage's clock to ours; 0 if it is not there."""
        if self.local:
            try:
                return time.time() - (self.local / name).stat().st_mtime
            except FileNotFoundError:
                return 0.0
        files, base = self._remote()
        written = files.get_file_info(f"{base}/{name}").mtime_ns
        return time.time() - written / 1e9 if written else 0.0

    def size_bytes(self, name: str) -> int:
        """How large a file is; 0 if it is not there."""
        if self.local:
            try:
                return (self.local / name).stat().st_size
            except FileNotFoundError:
                return 0
        files, base = self._remote()
        return int(files.get_file_info(f"{base}/{name}").size or 0)

    def open(self, name: str) -> "NativeFile":
        """Open a file to read parts of it; OSError if it cannot be read."""
        from pyarrow import OSFile

        if self.local:
            return OSFile(str(self.local / name))
        files, base = self._remote()
        return files.open_input_file(f"{base}/{name}")

    def move(self, name: str, target: str) -> None:
        """Move a file to another name, in another folder; nothing happens if it is not there."""
        if self.local:
            (self.local / target).parent.mkdir(parents=True, exist_ok=True)
            with suppress(FileNotFoundError):
                (self.local / name).replace(self.local / target)
            return
        files, base = self._remote()
        if not files.get_file_info(f"{base}/{name}").is_file:
            return
        if files.type_name not in OBJECT_STORES:
            files.create_dir(f"{base}/{target}".rpartition("/")[0], recursive=True)
        files.move(f"{base}/{name}", f"{base}/{target}")

    def read(self, name: str) -> bytes:
        """The content of a file; OSError (FileNotFoundError) if it cannot be read."""
        if self.local:
            return (self.local / name).read_bytes()
        files, base = self._remote()
        with files.open_input_stream(f"{base}/{name}") as stream:
            return bytes(stream.read())

    def write(self, name: str, data: bytes | memoryview) -> None:
        """Write a whole file, synced to the disk. After an OSError the earlier file is still there."""
        if self.local:
            self._write_local(self.local / name, data)
            return
        files, base = self._remote()
        target = f"{base}/{name}"
        if files.type_name in OBJECT_STORES:
            with files.open_output_stream(target) as stream:
                stream.write(data)
            return
        folder, _, last = target.rpartition("/")
        aside = f"{folder}/.{last}.{os.urandom(4).hex()}.tmp"
        files.create_dir(folder, recursive=True)
        with files.open_output_stream(aside) as stream:
            stream.write(data)
        files.move(aside, target)

    def create(self, name: str, data: bytes) -> bool:
        """Write a file unless it is there; returns whether it was written. Atomic, and only for a disk."""
        assert self.local
        target = self.local / name
        target.parent.mkdir(parents=True, exist_ok=True)
        aside = _aside(target)
        try:
            _write_for_good(aside, data)
            os.link(aside, target)  # unlike a rename it fails if the target exists, also over NFS
        except FileExistsError:
            return False
        finally:
            aside.unlink(missing_ok=True)
        return True

    def append(self, name: str, data: bytes) -> None:
        """Add to the end of a file, which need not exist. An object store gets the whole file again."""
        if self.local:
            target = self.local / name
            target.parent.mkdir(parents=True, exist_ok=True)
            with target.open("ab") as file:
                file.write(data)
            return
        self.write(name, (self.read(name) if self.exists(name) else b"") + data)

    def remove(self, name: str) -> None:
        """Remove a file if it is there."""
        if self.local:
            (self.local / name).unlink(missing_ok=True)
            return
        files, base = self._remote()
        if files.get_file_info(f"{base}/{name}").is_file:
            files.delete_file(f"{base}/{name}")

    def _all(self, folder: str) -> list[str]:
        if self.local:
            where = self.local / folder
            found = [entry.name for entry in os.scandir(where)] if where.is_dir() else []
            return [f"{folder}/{name}" for name in found]
        from pyarrow.fs import FileSelector

        files, base = self._remote()
        infos = files.get_file_info(FileSelector(f"{base}/{folder}", allow_not_found=True))
        return [f"{folder}/{info.base_name}" for info in infos if info.is_file]

    def _remote(self) -> "tuple[FileSystem, str]":
        if self._opened is None:
            import pyarrow as pa
            from pyarrow.fs import FileSystem

            try:
                files, base = FileSystem.from_uri(self.where)
            except (pa.ArrowException, OSError, ValueError) as error:
                raise RequestError(
                    [f"cannot open the results folder {self.where}: {first_line(error)}"]
                ) from error
            if not base.strip("/"):
                raise RequestError([f"the results folder {self.where} names no bucket or folder"])
            self._opened = files, base.rstrip("/")
        return self._opened

    def _write_local(self, target: Path, data: bytes | memoryview) -> None:
        target.parent.mkdir(parents=True, exist_ok=True)
        aside = _aside(target)
        try:
            _write_for_good(aside, data)
            aside.replace(target)
        finally:
            aside.unlink(missing_ok=True)


def _write_for_good(path: Path, data: bytes | memoryview) -> None:
    """Write and sync; without it, a power cut could leave the name on the disk without its content."""
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _aside(target: Path) -> Path:
    return target.with_name(f".{target.name}.{os.urandom(4).hex()}.tmp")


def _local_path(where: str) -> Path | None:
    scheme, separator, rest = where.partition("://")
    if not separator:
        return Path(where)
    return Path(rest) if scheme == "file" else None
