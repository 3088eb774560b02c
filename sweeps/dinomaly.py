"""The search space of Dinomaly: its rate, its noise, how loose its loss is."""

from kdbench.sweeps._space import between, one_of

SPACE = {
    "lr": between(2e-4, 1e-2, log=True),  # 2e-3
    "dropout": one_of(0.0, 0.1, 0.2, 0.4),
    "easy": one_of(0.0, 0.5, 0.9),
    "clip": one_of(0.1, 1.0),
    "batch_size": one_of(8, 16, 32),
    "score_share": one_of(0.001, 0.01, 0.05),
}
