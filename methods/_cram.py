"""CRAM: residuals to learned centres, softly assigned. This is our reading of SNL's abstract, all we know."""

import torch
from torch import Tensor, nn

from kdbench.method import full_precision


class CRAM(nn.Module):
    """Express features [B,C,h,w] by K learned centres of normal features; the shape stays.

    A place i belongs to a centre k by a_ik = softmax_k(-s_k |x_i - c_k|^2), as in residual encoding. Per
    position, the output is sum_k a_ik (c_k + W r_ik) with r_ik = x_i - c_k, then 1x1 convolution, BatchNorm,
    ReLU. W has rank C/4: with W = identity the sum would be x_i itself. Otherwise ("global") the residuals of
    the whole image give one gate per channel.
    """

    def __init__(self, channels: int, centres: int, *, per_position: bool = True) -> None:
        super().__init__()
        bound = (centres * channels) ** -0.5
        self.centres = nn.Parameter(torch.empty(centres, channels).uniform_(-bound, bound))
        self.scales = nn.Parameter(torch.empty(centres).uniform_(-bound, bound))
        self.per_position = per_position
        if per_position:
            rank = max(1, channels // 4)
            self.residual = nn.Sequential(
                nn.Linear(channels, rank, bias=False), nn.Linear(rank, channels, bias=False)
            )
            self.output = nn.Sequential(
                nn.Conv2d(channels, channels, 1, bias=False), nn.BatchNorm2d(channels), nn.ReLU()
            )
        else:
            self.norm = nn.BatchNorm1d(centres)
            self.gate = nn.Linear(channels, channels)

    def assignment(self, tokens: Tensor) -> Tensor:
        """[B,N,C] -> weights of the centres [B,N,K], summing to 1."""
        distance = (
            tokens.square().sum(-1, keepdim=True)
            - 2 * tokens @ self.centres.T
            + self.centres.square().sum(-1)
        )
        return torch.softmax(-self.scales * distance, -1)

    def mixed(self, tokens: Tensor) -> Tensor:
        """[B,N,C] -> sum_k a_k (c_k + W r_k); the weights sum to 1, so the residuals sum to x - mean."""
        mean = self.assignment(tokens) @ self.centres
        return mean + self.residual(tokens - mean)

    def forward(self, x: Tensor) -> Tensor:
        with full_precision(x):  # residuals are small differences
            tokens = x.float().flatten(2).transpose(1, 2)  # [B,N,C]
            if not self.per_position:
                return x * self.gates(tokens)[:, :, None, None]
            mixed = self.mixed(tokens)
        return self.output(mixed.transpose(1, 2).reshape(x.shape))

    def gates(self, tokens: Tensor) -> Tensor:
        """[B,N,C] -> a gate per channel [B,C], from the residuals to all centres."""
        weights = self.assignment(tokens)  # [B,N,K]
        sums = weights.transpose(1, 2) @ tokens - weights.sum(1)[..., None] * self.centres  # [B,K,C]
        return torch.sigmoid(self.gate(torch.relu(self.norm(sums)).mean(1)))
