"""The search space of EfficientAD: its rate, the share of differences in its loss, batch and autoencoder."""

from kdbench.sweeps._space import between, one_of

SPACE = {
    "lr": between(1e-5, 1e-3, log=True),  # 1e-4
    "hardest": one_of(1e-3, 1e-2, 1.0),
    "batch_size": one_of(1, 4, 16),
    "autoencoder": one_of(True, False),
}
