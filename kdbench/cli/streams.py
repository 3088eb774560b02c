"""Standard output and standard error of a command that goes on when they cannot be written."""

import errno
import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, TextIO

from kdbench.errors import reason


class Lossy(io.RawIOBase):
    """A file that drops what cannot be written: a full disk, a reader that went away, a lost terminal."""

    def __init__(self, file: io.FileIO) -> None:
        self.file = file
        self.error: OSError | None = None  # why something was dropped
        self.needed = True  # whether the output is nowhere else

    def write(self, data: object) -> int | None:
        try:
            return self.file.write(data)  # type: ignore[arg-type]
        except OSError as error:  # the next line may be written again: a disk does not stay full
            self.error = error
            return len(memoryview(data))  # type: ignore[arg-type]

    def writable(self) -> bool:
        return True

    def isatty(self) -> bool:
        return self.file.isatty()

    def fileno(self) -> int:
        return self.file.fileno()


@contextmanager
def lossy_streams() -> Iterator[None]:
    """A context in which printing raises no OSError. Closed streams lead nowhere."""
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:  # else the next file that is opened would be the standard output of libraries
            os.open(os.devnull, os.O_RDWR)
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = (_lossy(stream) for stream in before)
    try:
        yield
    finally:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        sys.stdout, sys.stderr = before


def dropped(stream: IO[str]) -> str:
    """Why something was not written to one of these streams; empty if nothing was dropped."""
    error = _error(stream)
    return reason(error) if error else ""


def failed(stream: IO[str]) -> str:
    """As `dropped`, but empty if the reader had seen enough, as in `kdbench list | head -1`."""
    error = _error(stream)
    return "" if error is None or error.errno == errno.EPIPE else reason(error)


def not_needed(stream: IO[str]) -> None:
    """Say that lost output is no failure of this command: its files have all that counts."""
    if lossy := _raw(stream):
        lossy.needed = False


def needed(stream: IO[str]) -> bool:
    """Whether a command has failed if this stream could not be written."""
    lossy = _raw(stream)
    return lossy is None or lossy.needed


def _error(stream: IO[str]) -> OSError | None:
    lossy = _raw(stream)
    return lossy.error if lossy else None


def _raw(stream: IO[str]) -> Lossy | None:
    raw = getattr(getattr(stream, "buffer", None), "raw", None)
    return raw if isinstance(raw, Lossy) else None


def _lossy(stream: TextIO | None) -> TextIO:
    if stream is None:
        return open(os.devnull, "w", encoding="utf-8")  # noqa: PTH123, it lives as long as the process
    if not isinstance(stream, io.TextIOWrapper):
        return stream
    stream.reconfigure(errors="replace")  # a terminal that cannot show a character must not end a run
    file = getattr(stream.buffer, "raw", stream.buffer)  # without a buffer under `python -u`
    if not isinstance(file, io.FileIO):
        return stream
    stream.flush()
    return io.TextIOWrapper(
        io.BufferedWriter(Lossy(file)), encoding=stream.encoding, errors="replace", line_buffering=True
    )
