"""`kdbench distil-teacher`: make a teacher for EfficientAD."""

from pathlib import Path
from typing import Annotated

import typer

from kdbench.cli.options import Device, Weights, at_home
from kdbench.cli.run import leaving_on_signals
from kdbench.cli.terminal import bars, say_next
from kdbench.engine.recipe import Recipe, recipe_of
from kdbench.grid.stopping import stop_on_signals


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
    device: Device = "auto",
) -> None:
    """Make a teacher for EfficientAD from any photographs; the same command resumes."""
    recipe = recipe_of(teacher, size, steps=steps, batch_size=batch_size, seed=seed)
    with leaving_on_signals(), stop_on_signals() as stop, stop.patience():
        from kdbench.grid.distil import make_teacher

        make_teacher(recipe, images, out, bars(), weights=weights, device=device, stop=stop)
    words = ("--methods", "efficientad", "--backbone", recipe.backbone, "--weights", str(out))
    say_next("train with it", "kdbench", "run", *words)
