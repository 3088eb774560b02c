"""What a sweep of SNL searches: the weights, which its abstract leaves open, and the kind of its CRAM."""

from kdbench.sweeps._space import between, one_of

SPACE = {
    "lr": between(5e-4, 2e-2, log=True),  # 5e-3, RD4AD's; 1e-3 is the safer one on many categories
    "channel": one_of("position", "flat"),
    "alpha": between(0.1, 10.0, log=True),  # 1
    "tau": one_of(1.0, 2.0, 4.0),
    "intra": between(0.1, 10.0, log=True),  # 1
    "inter": between(0.1, 10.0, log=True),  # 1
    "cram": one_of("position", "global", "none"),
    "centres": one_of(16, 32, 64, 128),
    "fusion": one_of("sum", "product"),
    "sigma": one_of(0.0, 2.0, 4.0, 6.0),
}
