"""The search space of RD4AD: its optimiser, its loss, its map.

`lr_drop` is not searched: a trial that is stopped early never comes to the drop (docs/sweeps.md).
"""

from kdbench.sweeps._space import between, one_of

SPACE = {
    "lr": between(5e-4, 2e-2, log=True),  # 5e-3
    "beta1": one_of(0.5, 0.9),
    "batch_size": one_of(8, 16, 32),
    "distance": one_of("flat", "position"),
    "levels": one_of([1, 2, 3], [2, 3]),
    "sigma": one_of(0.0, 2.0, 4.0, 6.0),
}
