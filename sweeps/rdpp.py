"""The search space of RD++: its two rates, the weights of its auxiliary terms, its map."""

from kdbench.sweeps._space import between, one_of

SPACE = {
    "lr": between(5e-4, 2e-2, log=True),  # 5e-3
    "lr_projection": between(1e-4, 1e-2, log=True),  # 1e-3
    "beta1": one_of(0.5, 0.9),
    "batch_size": one_of(8, 16, 32),
    "recon": one_of(0.0, 0.01, 0.1),
    "contrast": one_of(0.0, 0.1, 1.0),
    "sigma": one_of(0.0, 2.0, 4.0, 6.0),
}
