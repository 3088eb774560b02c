"""`kdbench distil-teacher`: a teacher for EfficientAD, where a user has none."""

import signal
import time
from pathlib import Path
from typing import Annotated

import typer

from kdbench.cli.options import Weights, at_home
from kdbench.cli.run import leaving_on_signals
from kdbench.cli.terminal import out, say, say_next, shows_bars
from kdbench.engine.recipe import SIZES, TEACHERS, Recipe
from kdbench.errors import CellStopped, RequestError, unknown
from kdbench.grid.stopping import ASKING, Stop, stop_on_signals

SAY_EVERY_S = 30.0  # without a bar


def distil_teacher(
    images: Annotated[
        Path, typer.Option(help="Folder of photographs, such as ImageNet's; all below it.", callback=at_home)
    ],
    out: Annotated[Path, typer.Option(help="The new file, .safetensors.", callback=at_home)],
    teacher: Annotated[
        str, typer.Option(help="The large network; wide_resnet101_2 is the recipe's.")
    ] = Recipe.teacher,
    weights: Weights = None,
    size: Annotated[str, typer.Option(help="EfficientAD's S or M.", metavar="small|medium")] = "small",
    steps: Annotated[int, typer.Option(help="Steps of the training.")] = Recipe.steps,
    batch_size: Annotated[int, typer.Option(help="Images in a step.")] = Recipe.batch_size,
    seed: Annotated[int, typer.Option(help="Seed of the start and of the order of images.")] = Recipe.seed,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:N.")] = "auto",
) -> None:
    """Make a teacher for EfficientAD from any photographs; the same command resumes."""
    recipe = asked(teacher, size, steps=steps, batch_size=batch_size, seed=seed)
    with leaving_on_signals(), stop_on_signals((signal.SIGINT, *ASKING)) as stop, stop.patience():
        carry_out(recipe, images, out, weights=weights, device=device, stop=stop)


def asked(teacher: str, size: str, *, steps: int, batch_size: int, seed: int) -> Recipe:
    """The recipe of some options; RequestError with everything that is wrong with them."""
    wrong = [unknown("size", size, SIZES)] if size not in SIZES else []
    numbers = {"steps": (steps, 1), "batch_size": (batch_size, 1), "seed": (seed, 0)}
    wrong += [f"{name}={value}: at least {low}" for name, (value, low) in numbers.items() if value < low]
    if wrong:
        raise RequestError(wrong)
    return Recipe(
        teacher=TEACHERS.get(teacher, teacher),
        backbone=SIZES[size],
        steps=steps,
        batch_size=batch_size,
        seed=seed,
    )


def carry_out(
    recipe: Recipe, images: Path, file: Path, *, weights: Path | None, device: str, stop: Stop | None = None
) -> None:
    """Make a teacher and show how far it is; whoever asks `stop` leaves a checkpoint.

    Raises RequestError for a wrong request, DataError if there are no images or one cannot be read.
    """
    if file.suffix != ".safetensors" or file.exists():
        wrong = "exists already" if file.exists() else "is no name: it ends with .safetensors"
        raise RequestError([f"--out {file} {wrong}"])
    import torch
    from rich.progress import Progress

    from kdbench.data.photographs import find_photographs
    from kdbench.engine.distil import distil
    from kdbench.grid.plan import choose_device
    from kdbench.weights import find_weights

    found, place = find_weights(recipe.teacher, weights), torch.device(choose_device(device))
    photographs = find_photographs(images)
    say(f"{len(photographs.paths)} images below {images}; teacher {recipe.teacher}, {found.source}; {place}")
    said = time.monotonic()
    with Progress(console=out, transient=True, disable=not shows_bars(out)) as bars:
        bar = bars.add_task("steps", total=recipe.steps)

        def on_step(step: int, loss: float) -> None:
            nonlocal said
            bars.update(bar, completed=step, description=f"loss {loss:.3f}")
            if bars.disable and time.monotonic() - said >= SAY_EVERY_S:
                said = time.monotonic()
                say(f"step {step} of {recipe.steps}, loss {loss:.3f}")
            if stop is not None and stop.asked_by:
                raise CellStopped

        try:
            distil(recipe, photographs, found, file, device=place, on_step=on_step, note=say)
        except CellStopped:
            assert stop is not None
            stop.check()
    say(f"wrote {file}")
    words = ("--methods", "efficientad", "--backbone", recipe.backbone, "--weights", str(file))
    say_next("train with it", "kdbench", "run", *words)
