"""The recipe of a teacher for EfficientAD: the numbers of `kdbench distil-teacher`; imports no torch."""

from dataclasses import dataclass

from kdbench.errors import RequestError, unknown

TEACHERS = {"wide_resnet101_2": "wide_resnet101_2.tv_in1k"}  # the recipe's: torchvision's first weights
SIZES = {"small": "pdn_small.distilled", "medium": "pdn_medium.distilled"}


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """The published recipe (arXiv:2303.14535, as github.com/nelson1425/EfficientAD has it)."""

    teacher: str = "wide_resnet101_2.tv_in1k"
    backbone: str = SIZES["small"]
    steps: int = 60_000
    batch_size: int = 16
    seed: int = 0
    image_size: int = 256  # pixels a side for the new teacher; the large one sees twice as many
    channel_images: int = 10_000  # at most; they give the mean and deviation of each channel
    grey: float = 0.1  # share of the images that lose their colours
    lr: float = 1e-4  # Adam
    weight_decay: float = 1e-5


def recipe_of(teacher: str, size: str, *, steps: int, batch_size: int, seed: int) -> Recipe:
    """The recipe of these options; RequestError with every complaint about them."""
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
