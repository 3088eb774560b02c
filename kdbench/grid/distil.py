"""Make a teacher for EfficientAD from photographs."""

from pathlib import Path

import torch

from kdbench.data.photographs import find_photographs
from kdbench.engine.distil import distil
from kdbench.engine.recipe import Recipe
from kdbench.errors import CellStopped, RequestError, number_of
from kdbench.files import expanded
from kdbench.grid.plan import choose_device
from kdbench.grid.stopping import Stop
from kdbench.grid.view import View
from kdbench.weights import find_weights


def make_teacher(
    recipe: Recipe,
    images: str | Path,
    out: str | Path,
    view: View,
    *,
    weights: str | Path | None,
    device: str,
    stop: Stop | None = None,
) -> Path:
    """Make a teacher and tell a view how far it is; once `stop` is asked, the training leaves a checkpoint.

    Raises RequestError for a wrong request, DataError if there are no images or one cannot be read.
    """
    images, file = Path(expanded(str(images))), Path(expanded(str(out)))
    if file.suffix != ".safetensors" or file.exists():
        wrong = "exists already" if file.exists() else "is no name: it ends with .safetensors"
        raise RequestError([f"--out {file} {wrong}"])
    given = None if weights is None else Path(expanded(str(weights)))
    found, place = find_weights(recipe.teacher, given), torch.device(choose_device(device))
    photographs = find_photographs(images)
    many = number_of(len(photographs.paths), "image")
    view.say(f"{many} below {images}; teacher {recipe.teacher}, {found.source}; {place}")

    def on_step(step: int, loss: float) -> None:
        view.stepping(step, recipe.steps, loss)
        if stop is not None and stop.asked_by:
            raise CellStopped

    try:
        distil(recipe, photographs, found, file, device=place, on_step=on_step, note=view.say)
    except CellStopped:
        assert stop is not None
        stop.check()
    finally:
        view.end()
    view.say(f"wrote {file}")
    return file
