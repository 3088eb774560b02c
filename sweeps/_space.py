"""Search spaces: a range or some values for each key of a method's configuration."""

import importlib
import importlib.util
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from kdbench.errors import RequestError, unknown
from kdbench.grid.request import complaints_of, read_toml

if TYPE_CHECKING:
    from kdbench.method import Method

DIGITS = 4  # significant digits of a drawn number, so that people can read and repeat it

# Keys that all trials of a sweep share, and how to set them.
FIXED = {
    "epochs": "it is the budget of every trial: --epochs",
    "heldout_share": "all trials must be judged on the same images: --set METHOD.heldout_share=SHARE",
    "hold_out": "it takes images from all trials alike: --set METHOD.hold_out=SHARE",
    "backbone": "the teacher and its weights belong to the sweep: one sweep for each --backbone",
    "precision": "it belongs to the machine: --precision",
}


@dataclass(frozen=True, kw_only=True)
class Between:
    """A number from `low` to `high`, both included; with `log`, its logarithm is uniform."""

    low: float
    high: float
    log: bool = False
    whole: bool = False

    def encoded(self, value: Any) -> Any:
        """The value in the form of searchers."""
        return value

    def decoded(self, value: Any) -> Any:
        """The value of a configuration for a value that a searcher drew."""
        if self.whole:
            return int(value)
        return min(max(float(f"{value:.{DIGITS}g}"), self.low), self.high)

    def has(self, value: Any) -> bool:
        """Whether the value can be drawn."""
        return isinstance(value, int | float) and self.low <= value <= self.high


@dataclass(frozen=True, kw_only=True)
class OneOf:
    """One of some values, which may be lists: searchers get their JSON."""

    values: tuple[Any, ...]

    def encoded(self, value: Any) -> str:
        """The value in the form of searchers."""
        return json.dumps(next(listed for listed in self.values if listed == value))

    def decoded(self, value: str) -> Any:
        """The value of a configuration for a value that a searcher drew."""
        return json.loads(value)

    def has(self, value: Any) -> bool:
        """Whether the value can be drawn."""
        return any(listed == value for listed in self.values)


Space = dict[str, Between | OneOf]


def between(low: float, high: float, *, log: bool = False) -> Between:
    """A range; of whole numbers if both ends are whole."""
    whole = isinstance(low, int) and isinstance(high, int)
    return Between(low=low, high=high, log=log, whole=whole)


def one_of(*values: Any) -> OneOf:
    """A choice; a sequence among the values is one value."""
    return OneOf(values=tuple(list(v) if isinstance(v, tuple) else v for v in values))


def space_of(method: str) -> Space:
    """The search space in `sweeps/METHOD.py`; RequestError for a method without one."""
    name = f"kdbench.sweeps.{method}"
    found = importlib.util.find_spec(name) and getattr(importlib.import_module(name), "SPACE", None)
    if not found:
        raise RequestError(
            [f"{method} has no search space (no sweeps/{method}.py): give one with --space FILE.toml"]
        )
    space: Space = found
    return space


def read_space(file: Path, method_class: "type[Method]") -> Space:
    """The space of a TOML file; RequestError with every complaint.

    `lr = {low = 0.01, high = 1.0, log = true}` is a range, `levels = {values = [[1], [1, 2]]}` a choice.
    """
    domains = read_toml(file)
    space: Space = {}
    complaints = [] if domains else [f"{file} names no key to search"]
    for key, domain in domains.items():
        field = method_class.Config.model_fields.get(key)
        found = _domain(domain, whole=field is not None and field.annotation is int)
        if isinstance(found, str):
            complaints.append(f"{file}: {key}: {found}")
        else:
            space[key] = found
    if complaints:
        raise RequestError(complaints)
    return space


def _domain(domain: Any, *, whole: bool) -> Between | OneOf | str:
    """A range or a choice, or what is wrong with it."""
    if not isinstance(domain, Mapping):
        return f"{domain!r} is neither {{low, high}} nor {{values}}; for one value use --set"
    keys = set(domain)
    if keys == {"values"}:
        values = domain["values"]
        if not isinstance(values, list) or len(values) < 2:
            return f"values={values!r} is not a list of two or more"
        return one_of(*values)
    wrong = sorted(keys - {"low", "high", "log"})
    if wrong:
        return unknown("word", wrong[0], ("low", "high", "log", "values"))
    if not {"low", "high"} <= keys:
        return "a range has low and high, a choice has values"
    low, high, log = domain["low"], domain["high"], domain.get("log", False)
    numbers = [n for n in (low, high) if isinstance(n, int | float) and not isinstance(n, bool)]
    if len(numbers) < 2 or not isinstance(log, bool):
        return f"low={low!r} and high={high!r} are numbers, log={log!r} is true or false"
    if whole and not (isinstance(low, int) and isinstance(high, int)):
        return f"it takes whole numbers: low={low}, high={high}"
    if not low < high:
        return f"low={low} is not below high={high}"
    if log and low <= 0:
        return f"a range by logarithm begins above 0: low={low}"
    return Between(low=low, high=high, log=log, whole=whole)


def check_space(space: Space, method_class: "type[Method]", base: Mapping[str, Any]) -> list[str]:
    """Complaints about keys and values that the method refuses, and about defaults outside the space."""
    complaints = []
    for key, domain in space.items():
        if key not in method_class.Config.model_fields:
            known = sorted(set(method_class.Config.model_fields) - set(FIXED))
            complaints.append(f"{method_class.name}.{key}: " + unknown("key", key, known))
            continue
        if key in FIXED:
            complaints.append(f"{method_class.name}.{key} cannot be searched: {FIXED[key]}")
            continue
        values = domain.values if isinstance(domain, OneOf) else (domain.low, domain.high)
        refused = [text for value in values for text in _refused(method_class, base, key, value)]
        complaints += refused
        default = default_of(method_class, base, key)
        if not refused and not domain.has(default):
            complaints.append(
                f"{method_class.name}.{key}: the sweep begins with the default {default!r}, which is not in "
                "the space. Widen the space"
            )
    return complaints


def _refused(method_class: "type[Method]", base: Mapping[str, Any], key: str, value: Any) -> list[str]:
    try:
        method_class.Config.model_validate({**base, key: value})
    except ValidationError as error:
        return complaints_of(f"{method_class.name}.", error, method_class.Config)
    return []


def default_of(kind: "type[Method]", base: Mapping[str, Any], key: str) -> Any:
    """The value that a sweep begins with; a written configuration lacks younger keys at their defaults."""
    return base[key] if key in base else kind.Config.model_fields[key].default


def described(space: Space) -> dict[str, Any]:
    """The space as plain data."""
    return {key: asdict(domain) for key, domain in sorted(space.items())}
