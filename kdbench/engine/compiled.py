"""Compiled losses: torch.compile makes one pass over the maps of what would take many.

Only functions marked `compilable` are compiled, for full batches: a last, smaller batch would need a
compilation of its own. Compiled code differs in the last digits, so that a row says whether it was used.
"""

import logging
import os
import shutil
import warnings
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from kdbench.errors import first_line
from kdbench.files import cache_folder

Request = Literal["auto", "on", "off"]

# Compiling takes 5 to 20 s. From this many pixels on a training saves a multiple of that: 10,000 images.
WORTH = 10_000 * 256**2
# Shapes and modes of one function in a process. Torch would run the next one uncompiled and say nothing.
MOST_VARIANTS = 64


class Compiler:
    """Compiles each function when it is first called; after a failure it gives functions back as they are."""

    def __init__(self) -> None:
        self.problem = ""
        self._compiled: dict[Callable[..., Tensor], Callable[..., Tensor]] = {}
        os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(cache_folder() / "compiled"))
        # It says that there is no GPU, on machines that have a part of CUDA.
        logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)
        torch.compiler.reset()
        torch._dynamo.config.recompile_limit = MOST_VARIANTS
        # Each term of a loss is differentiated by itself before all are together: no backward pass may
        # write into what the next one reads.
        torch._functorch.config.donated_buffer = False

    def __call__(self, function: Callable[..., Tensor]) -> Callable[..., Tensor]:
        """The compiled function."""
        if function not in self._compiled:
            # With several compiling processes, one would be left over and disturb the timing of detectors.
            compiled = torch.compile(function, dynamic=False, fullgraph=True, options={"compile_threads": 1})
            self._compiled[function] = self._guarded(function, compiled)
        return self._compiled[function]

    @property
    def outcome(self) -> str:
        """The value of the column `compiled`: yes, or why not."""
        if self.problem:
            return f"no: {self.problem}"
        return "yes" if self._compiled else "no: no function was compilable, or no batch full"

    def _guarded(
        self, function: Callable[..., Tensor], compiled: Callable[..., Tensor]
    ) -> Callable[..., Tensor]:
        from torch._dynamo.exc import TorchDynamoException  # takes a second to import

        def call(*args: object, **kwargs: object) -> Tensor:
            if self.problem:
                return function(*args, **kwargs)
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")  # the compiler looks at gradients that nobody asked for
                    return compiled(*args, **kwargs)
            except TorchDynamoException as error:  # of compiling, not of the compiled code
                self.problem = first_line(error)
                return function(*args, **kwargs)

        return call


def choose_compiler(request: Request, device: torch.device, pixels: int) -> Compiler | None:
    """A compiler, if it is asked for, or if `auto` finds one and this many pixels are worth it."""
    if request == "off" or (request == "auto" and (pixels < WORTH or not can_compile(device))):
        return None
    return Compiler()


def can_compile(device: torch.device) -> bool:
    """Whether there is what torch.compile calls: a C++ compiler for the CPU, Triton for a GPU."""
    if device.type == "cuda":
        from torch.utils._triton import has_triton

        return bool(has_triton())
    return any(shutil.which(name) for name in (os.environ.get("CXX", "g++"), "clang++"))
