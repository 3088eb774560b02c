"""The search space of DCAM: the choices that its paper leaves open, and a decade around its code's rate.

`distance` and `kd` are axes of the paper's ablation; its text leaves `reading` open. The third axis,
`attention`, stays at "channel", as in the paper's best result: readings that fold a gate need it.
"""

from kdbench.sweeps._space import between, one_of

SPACE = {
    "lr": between(0.01, 1.0, log=True),  # 0.1
    "weight_decay": between(1e-5, 1e-3, log=True),  # 1e-4
    "reading": one_of("side", "attended", "folded", "inline", "both"),  # side
    "hidden": one_of("relu", "leaky", "bias"),  # relu, which may die
    "distance": one_of("channel", "spatial"),
    "kd": one_of("spatial", "channel", "none"),
    "kd_weight": between(0.1, 10.0, log=True),  # 1, not stated
    "temperature": one_of(1.0, 2.0, 4.0),  # 1, not stated
    "fusion": one_of("sum", "product"),
    "sigma": one_of(0.0, 2.0, 4.0),
}
