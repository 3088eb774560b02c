"""The search space of DeSTSeg: its rates, how long the student learns, its loss."""

from kdbench.sweeps._space import between, one_of

SPACE = {
    "lr_student": between(0.04, 1.0, log=True),  # 0.4
    "lr": between(0.01, 0.5, log=True),  # 0.1
    "lr_head": between(0.001, 0.1, log=True),  # 0.01
    "batch_size": one_of(8, 16, 32),
    "student_share": one_of(0.1, 0.2, 0.4),
    "gamma": one_of(0.0, 2.0, 4.0),
    "l1_weight": one_of(0.0, 1.0),
}
