"""The search space of DSKD: how its students are fed, weighed and joined.

`students` and `dfe` are not searched: they change the method itself, and exclude values of other keys. Nor is
`encoder_start`: "zero_last" needs residual blocks.
"""

from kdbench.sweeps._space import between, one_of

SPACE = {
    "lr": between(5e-4, 2e-2, log=True),  # 5e-3, high for an encoder that starts at random
    "encoder_rate": between(0.1, 1.0, log=True),  # 1, of lr
    "beta2": one_of(0.99, 0.999),  # 0.999
    "warmup": one_of(0, 50, 200),  # steps
    "clip": one_of(0.0, 0.5, 5.0),  # 0: never
    "dfe_source": one_of("student", "teacher"),
    "detach_dfe": one_of(False, True),
    "distance": one_of("position", "flat"),  # l2 is twice position
    "decoder_weight": between(0.25, 4.0, log=True),  # 1
    "fusion": one_of("sum", "product"),
    "student_fusion": one_of("sum", "product", "max", "mean_one"),
    "sigma": one_of(0.0, 2.0, 4.0, 6.0),
}
