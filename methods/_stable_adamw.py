"""StableAdamW: AdamW whose step is shortened where gradients grew faster than their averages.

Wortsman et al.: Stable and low-precision training for large-scale vision-language models, NeurIPS 2023,
arXiv:2304.13013, algorithm 2: the rate of a tensor is divided by max(1, RMS(g / sqrt(v))).
"""

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer


def warm_cosine(progress: float, warmup: float, end: float) -> float:
    """The factor of the rate at progress 0 to 1: linear from 0 to 1 at `warmup`, then a cosine to `end`."""
    if progress < warmup:
        return progress / warmup
    along = min(1.0, (progress - warmup) / (1 - warmup))
    return end + (1 - end) * (1 + math.cos(math.pi * along)) / 2


class StableAdamW(Optimizer):
    """The optimizer, with AMSGrad's maximum of the second moment.

    Before each step the gradients of all parameters together are clipped to the norm `clip`.
    """

    def __init__(
        self,
        params: Iterable[nn.Parameter],
        *,
        lr: float,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        clip: float = float("inf"),
    ) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})
        self.clip = clip

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        assert closure is None
        every = [p for group in self.param_groups for p in group["params"] if p.grad is not None]
        nn.utils.clip_grad_norm_(every, self.clip)
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    self._update(p, p.grad, group)

    def _update(self, p: nn.Parameter, gradient: Tensor, group: dict[str, Any]) -> None:
        state, (beta1, beta2), eps = self.state[p], group["betas"], group["eps"]
        if not state:
            state["step"] = torch.zeros(())
            state |= {name: torch.zeros_like(p) for name in ("mean", "square", "largest_square")}
        state["step"] += 1
        state["mean"].lerp_(gradient, 1 - beta1)
        state["square"].mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
        torch.maximum(state["largest_square"], state["square"], out=state["largest_square"])
        mean = state["mean"] / (1 - beta1 ** state["step"].item())
        square = state["largest_square"] / (1 - beta2 ** state["step"].item())
        growth = (gradient.square() / square.clamp(min=eps**2)).mean().sqrt()
        rate = group["lr"] / growth.clamp(min=1)
        p.mul_(1 - rate * group["weight_decay"]).sub_(rate * mean / (square.sqrt() + eps))
