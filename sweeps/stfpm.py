"""The search space of STFPM: a decade to either side of the recipe, and the switches of its map."""

from kdbench.sweeps._space import between, one_of

SPACE = {
    "lr": between(0.04, 2.0, log=True),  # 0.4; other codes feed it gradients of other scales
    "weight_decay": between(1e-5, 1e-3, log=True),  # 1e-4; anomalib has 1e-3
    "batch_size": one_of(8, 16, 32),
    "levels": one_of([1, 2, 3], [2, 3], [1, 2]),
    "fusion": one_of("product", "sum"),
    "map_grid": one_of(64, 0),
    "sigma": one_of(0.0, 2.0, 4.0),
}
