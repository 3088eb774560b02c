"""How the options of a command are read."""

from pathlib import Path

from kdbench.errors import RequestError

REPORT = Path("reports/out")


def split(option: str, value: str | None) -> tuple[str, ...]:
    """The parts of a comma list; an empty one is an error: an unset shell variable must not mean all."""
    if value is None:
        return ()
    parts = tuple(part.strip() for part in value.split(",") if part.strip())
    if not parts:
        raise RequestError([f"--{option} is empty"])
    return parts


def seeds_of(value: str | None) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in split("seeds", value))
    except ValueError:
        raise RequestError([f"--seeds {value!r}: seeds are whole numbers, e.g. 0,1,2"]) from None
