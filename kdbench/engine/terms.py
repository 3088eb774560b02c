"""Measure what drives a training: the size and the gradient of each term of the loss, at a few steps."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

# A backward pass takes about half of a step: so all of them take less than 1 % of the training.
MOST = 1 / 60  # backward passes for these gradients, as a share of the steps


@dataclass(frozen=True, kw_only=True)
class TermAtStep:
    """One term of the loss at one step, or another number that the method observes."""

    step: int
    name: str
    value: float
    gradient: float | None  # norm over all trained parameters; None: not measured


def watched_steps(num_steps: int) -> tuple[int, ...]:
    """The first step, the last, and those at 10 % and 1 %: the more important first."""
    return tuple(dict.fromkeys((0, num_steps - 1, num_steps // 10, num_steps // 100)))


def differentiated_steps(num_steps: int, num_terms: int) -> tuple[int, ...]:
    """The watched steps whose gradients can be measured at less than 1 % of the time."""
    return watched_steps(num_steps)[: int(MOST * num_steps) // num_terms]


def gradient_norms(
    terms: Mapping[str, Tensor], parameters: Sequence[nn.Parameter], scaler: torch.amp.GradScaler
) -> dict[str, float]:
    """Name -> the norm of a term's gradient over all parameters; the graph is kept for the training step."""
    norms = {}
    for name, term in terms.items():
        scaled = scaler.scale(term.sum())  # fp16 gradients underflow without it
        found = torch.autograd.grad(scaled, parameters, retain_graph=True, allow_unused=True)
        parts = torch.stack([g.float().norm() for g in found if g is not None])
        norms[name] = parts.norm().item() / scaler.get_scale()
    return norms


def columns_of(
    terms: Sequence[TermAtStep],
) -> dict[str, list[int] | list[str] | list[float] | list[float | None]]:
    """The columns of a row that hold these numbers: lists of equal length."""
    return {
        "term_steps": [term.step for term in terms],
        "term_names": [term.name for term in terms],
        "term_values": [term.value for term in terms],
        "term_gradients": [term.gradient for term in terms],
    }
