"""The search space of SNL: the choices that its abstract leaves open, those of two public codes, its start.

`cram` has four placements and kinds; the keys of the forward base are not searched.
"""

from kdbench.sweeps._space import between, one_of

SPACE = {
    "lr": between(5e-4, 2e-2, log=True),  # 5e-3, RD4AD's; 1e-3 is the safer one on many categories
    "beta2": one_of(0.99, 0.999),  # 0.999; the first gradients weigh on its thousand steps
    "warmup": one_of(0, 50, 200),  # steps; Adam is violent at the start of this decoder
    "clip": one_of(0.0, 0.5, 5.0),  # 0: never
    "decoder_start": one_of("random", "teacher_scale"),
    "channel": one_of("position", "flat"),
    "alpha": between(0.1, 10.0, log=True),  # 1
    "tau": one_of(1.0, 2.0, 4.0),
    "kl_reduction": one_of("channel_mean", "mean_all"),  # sum is alpha times the channels: 256 to 1024
    "intra": between(0.1, 100.0, log=True),  # 1, where its gradient is a sixth of the cosine's
    "inter": between(0.1, 100.0, log=True),  # 1, where its gradient is a fourteenth of the cosine's
    "affinity_scaling": one_of("token", "channel"),
    "affinity_power": one_of(1, 2),
    "inter_over": one_of("images", "tokens", "levels"),
    "cram": one_of("position", "global", "levels", "none"),
    "centres": one_of(16, 32, 64, 128),
    "centre": one_of(0.0, 0.1, 1.0),
    "fusion": one_of("sum", "product"),
    "sigma": one_of(0.0, 2.0, 4.0, 6.0),
}
