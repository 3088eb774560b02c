"""The search space of ReContrast: its two rates, its hard mining, its score and map."""

from kdbench.sweeps._space import between, one_of

SPACE = {
    "lr": between(2e-4, 1e-2, log=True),  # 2e-3
    "lr_encoder": between(1e-6, 1e-4, log=True),  # 1e-5
    "batch_size": one_of(8, 16, 32),
    "hardest": one_of(-3.0, 0.0, 1.0),  # -3 is nearly no mining
    "activation": one_of("relu", "gelu"),
    "score_share": one_of(0.001, 0.01, 0.05),
    "sigma": one_of(0.0, 2.0, 4.0, 6.0),
}
