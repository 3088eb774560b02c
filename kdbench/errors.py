"""The two errors that a user can cause, and the one way to say that a name is unknown."""

import difflib
from collections.abc import Iterable


class DataError(ValueError):
    """A data set on disk is not what it must be; the message names the path and what to do."""


class RequestError(ValueError):
    """A request cannot be run; carries every complaint, not only the first."""

    def __init__(self, complaints: Iterable[str]) -> None:
        self.complaints = tuple(complaints)
        super().__init__("\n".join(self.complaints))


def unknown(kind: str, name: str, names: Iterable[str], plural: str | None = None) -> str:
    """The message for a name that does not exist: what is wrong, the nearest name, what there is."""
    names = list(names)
    near = difflib.get_close_matches(name, names, n=1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    return f"no {kind} {name!r}.{hint} {(plural or kind + 's').capitalize()}: {', '.join(names) or 'none'}"
