"""Check requests to the engine: its presets, and the runtimes that are installed here."""

from collections.abc import Iterator, Sequence

from kdbench.deploy.runtimes import PRECISIONS, RUNTIMES, why_not
from kdbench.errors import unknown
from kdbench.metrics.presets import PRESETS


def wrong_preset(preset: str) -> Iterator[str]:
    """A complaint if there is no such preset."""
    if preset not in PRESETS:
        yield unknown("preset", preset, PRESETS)


def wrong_smoothing(preset: str, method: str, sigma: float) -> str:
    """A complaint if the preset is for maps of another smoothing than the method has; "" if it is not."""
    demanded = PRESETS[preset].sigma if preset in PRESETS else None
    if demanded is None or sigma == demanded:
        return ""
    return (
        f"preset {preset!r} is for maps smoothed with sigma {demanded:g}, {method} has "
        f"{sigma:g}: --set {method}.sigma={demanded:g}, or another preset"
    )


def wrong_runtimes(
    runtimes: Sequence[str], precisions: Sequence[str], device: str, *, here: bool
) -> Iterator[str]:
    """A complaint for each runtime that has no precision asked for; other machines are asked later."""
    for precision in precisions:
        if precision not in PRECISIONS:
            yield unknown("precision", precision, PRECISIONS)
    asked = [precision for precision in precisions or ("fp32",) if precision in PRECISIONS]
    for runtime in runtimes:
        reasons = [why_not(runtime, precision, device) for precision in asked]
        if runtime not in RUNTIMES or (here and reasons and all(reasons)):
            yield reasons[0] if reasons else why_not(runtime)
