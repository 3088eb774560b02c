"""Convolutional attention as DCAM's code has it: CBAM's blocks without biases and normalisation."""

from typing import Literal

import torch
from torch import Tensor, nn

Hidden = Literal["relu", "leaky", "bias"]


class ChannelAttention(nn.Module):
    """f * sigmoid(MLP(average of f) + MLP(maximum of f)), one gate per channel, 2C^2/r parameters.

    A ReLU whose input is negative for every image stays 0 for good; if all do, the gate is 0.5 everywhere.
    "leaky" units can recover; "bias" gives biases to both layers, as CBAM does.
    """

    def __init__(self, channels: int, ratio: int, hidden: Hidden = "relu") -> None:
        super().__init__()
        width, bias = max(1, channels // ratio), hidden == "bias"
        activation = nn.LeakyReLU(0.1) if hidden == "leaky" else nn.ReLU()
        self.mlp = nn.Sequential(
            nn.Linear(channels, width, bias=bias), activation, nn.Linear(width, channels, bias=bias)
        )
        self.gate = torch.zeros(0)  # of the last batch: [B,C,1,1]

    def forward(self, f: Tensor) -> Tensor:
        gate = torch.sigmoid(self.mlp(f.mean((2, 3))) + self.mlp(f.amax((2, 3))))[:, :, None, None]
        self.gate = gate.detach()
        return f * gate


class SpatialAttention(nn.Module):
    """f * sigmoid(conv7x7(mean and maximum over the channels)), one gate per position, 98 parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 1, 7, padding=3, bias=False)
        self.gate = torch.zeros(0)  # of the last batch: [B,1,H,W]

    def forward(self, f: Tensor) -> Tensor:
        gate = torch.sigmoid(self.conv(torch.stack((f.mean(1), f.amax(1)), 1)))
        self.gate = gate.detach()
        return f * gate


class MeanGate(nn.Module):
    """f * the running mean of a gate per channel: a channel attention, folded into a factor per channel."""

    MOMENTUM = 0.1  # as in BatchNorm

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.full((channels, 1, 1), 0.5))  # sigmoid(0)

    def follow(self, gate: Tensor) -> None:
        """Move towards the gates [B,C,1,1] of a batch."""
        self.mean: Tensor = self.mean.lerp(gate.float().mean(0), self.MOMENTUM)

    def forward(self, f: Tensor) -> Tensor:
        return f * self.mean


def attention_behind(channels: list[int], kind: str, ratio: int, hidden: Hidden) -> nn.ModuleList:
    """The attention blocks behind each level: "none", "channel", "spatial", or "both" (channel first)."""
    both = [[ChannelAttention(c, ratio, hidden), SpatialAttention()] for c in channels]
    kept = {"none": slice(0), "channel": slice(1), "spatial": slice(1, 2), "both": slice(2)}[kind]
    return nn.ModuleList(nn.Sequential(*blocks[kept]) for blocks in both)


def gates(attention: nn.ModuleList) -> list[Tensor]:
    """The gates of each level in the last batch, from the first attention block behind it."""
    first = [block for blocks in attention for block in [*blocks.children()][:1]]
    return [block.gate for block in first if isinstance(block, ChannelAttention | SpatialAttention)]


def spreads(attention: nn.ModuleList) -> dict[str, Tensor]:
    """The standard deviation of each level's gate over the images; 0 if the gate ignores them."""
    values = [gate.std(0, correction=0).mean() for gate in gates(attention)]
    return {f"spread of gate {i}": value for i, value in enumerate(values, start=1)}
