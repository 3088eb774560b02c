"""kdbench compares knowledge-distillation anomaly detectors.

    import kdbench

    results = kdbench.run(methods=["stfpm", "dcam"], dataset="synthetic")
    print(results.leaderboard())
    anomaly_map, image_score = results.detector(method="stfpm", category="wood").predict("image.png")

`kdbench.api` documents the functions. They load torch, Ray and pandas when they are used, not before.
"""

import importlib
from types import ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from kdbench.api import compare, distil_teacher, open, run, score, sweep

__version__ = "0.1.0"
__all__ = ["__version__", "compare", "datasets", "distil_teacher", "methods", "open", "run", "score", "sweep"]


def __getattr__(name: str) -> object:
    if name in __all__:
        return getattr(importlib.import_module("kdbench.api"), name)
    raise AttributeError(f"module 'kdbench' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


class _Plugins(ModuleType):
    """A folder of plug-ins. `kdbench.methods.stfpm` is one of them, `kdbench.methods()` names them all."""

    def __call__(self) -> tuple[str, ...]:
        from kdbench import registry

        of_methods = self.__name__ == "kdbench.methods"
        return registry.method_names() if of_methods else registry.dataset_names()


if TYPE_CHECKING:
    datasets: _Plugins
    methods: _Plugins
else:
    # Python binds these names to the folders as soon as a file in them is imported: a function would be gone.
    for _name in ("datasets", "methods"):
        importlib.import_module(f"kdbench.{_name}").__class__ = _Plugins
