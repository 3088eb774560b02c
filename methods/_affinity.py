"""Structural distances between two maps, after SNL's abstract: a divergence and affinities of several kinds.

Two public codes have such distances, and the arguments of the functions choose theirs: DCAM's code
(arXiv:2405.06467) has the divergence and an affinity, VAND-GNL's code has the divergence.
"""

from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d, mse_loss, normalize

from kdbench.method import divergence, full_precision, unit_vectors

Reduction = Literal["channel_mean", "sum", "mean_all"]
Scaling = Literal["token", "channel"]
Over = Literal["images", "tokens", "levels"]
Power = Literal[1, 2]


def spatial_divergence(
    t: Tensor, s: Tensor, tau: float, reduction: Reduction = "channel_mean", *, times_tau2: bool = True
) -> Tensor:
    """tau^2 KL(teacher || student) of each channel's softmax over positions, of maps [B,C,h,w]; a scalar.

    The value is a mean over images. Over channels it is a mean, or a sum (DCAM's code); "mean_all" also
    divides by the number of positions (VAND-GNL's code). Neither code multiplies by tau^2.
    """
    each = divergence(t, s, tau)  # [B,C], summed over positions
    kl = each.sum(1).mean() if reduction == "sum" else each.mean()
    kl = kl / t[0, 0].numel() if reduction == "mean_all" else kl
    return tau**2 * kl if times_tau2 else kl


def pooled(features: Tensor, size: int) -> Tensor:
    """[B,C,h,w] -> [B,C,n,n] in float32, n at most `size`."""
    return adaptive_avg_pool2d(features.float(), min(size, features.shape[-1]))


def unit_channels(features: Tensor) -> Tensor:
    """[B,C,h,w] -> [B,C,hw], every channel scaled to length 1 over its positions."""
    return normalize(features.flatten(2), dim=2, eps=1e-6)


def within(features: Tensor, size: int, scaling: Scaling = "token") -> Tensor:
    """Products of the vectors of all pairs of positions within an image: [B,N,N], N at most size^2.

    Scaling "token": each vector has length 1, so that products are cosines. Scaling "channel": each channel
    has length 1 over the positions (DCAM's code).
    """
    small = pooled(features, size)
    tokens = unit_vectors(small).flatten(2) if scaling == "token" else unit_channels(small)
    with full_precision(tokens):
        return tokens.transpose(1, 2) @ tokens


def between(features: Tensor) -> Tensor:
    """Cosines of all pairs of images of the batch: [B,B]; an image is its mean vector over positions."""
    vectors = unit_vectors(features.float().mean((2, 3), keepdim=True)).flatten(1)
    with full_precision(vectors):
        return vectors @ vectors.T


def between_tokens(features: Tensor, size: int) -> Tensor:
    """Cosines of all pairs of positions of all images of the batch: [BN,BN], N at most size^2."""
    tokens = unit_vectors(pooled(features, size)).flatten(2).transpose(1, 2).flatten(0, 1)
    with full_precision(tokens):
        return tokens @ tokens.T


def between_levels(fine: Tensor, coarse: Tensor, size: int) -> Tensor:
    """Cosines over positions of each channel of one level with each channel of another level: [B,C,D]."""
    size = min(size, coarse.shape[-1])
    c, d = unit_channels(pooled(fine, size)), unit_channels(pooled(coarse, size))
    with full_precision(c):
        return c @ d.transpose(1, 2)


def gap(s: Tensor, t: Tensor, power: Power) -> Tensor:
    """Mean squared difference of affinities [...,N,M]; with power 1 its root, per image (DCAM's code)."""
    if power == 2:
        return mse_loss(s, t)
    # The root has no finite gradient where both are equal.
    return (torch.square(s - t).mean((-2, -1)) + 1e-12).sqrt().mean()


def divergences(
    taught: list[Tensor], learned: list[Tensor], tau: float, reduction: Reduction, *, times_tau2: bool
) -> Tensor:
    """The spatial divergence of every level [L]."""
    pairs = zip(taught, learned, strict=True)
    return torch.stack([spatial_divergence(t, s, tau, reduction, times_tau2=times_tau2) for t, s in pairs])


def gaps_within(
    taught: list[Tensor], learned: list[Tensor], scaling: Scaling, size: int, power: Power
) -> Tensor:
    """The gap of affinities between the positions of each image, per level [L]."""
    pairs = [[within(f, size, scaling) for f in both] for both in zip(learned, taught, strict=True)]
    return torch.stack([gap(s, t, power) for s, t in pairs])


def gaps_between(taught: list[Tensor], learned: list[Tensor], over: Over, size: int, power: Power) -> Tensor:
    """The gap of affinities between images or between positions of all images, per level [L].

    With over="levels": between the channels of neighbouring levels, per pair of levels [L-1].
    """
    if over == "images":
        pairs = [[between(f) for f in both] for both in zip(learned, taught, strict=True)]
    elif over == "tokens":  # (B N)^2 values: with a quarter of the side, 16 images have N^2
        pairs = [[between_tokens(f, size // 4) for f in both] for both in zip(learned, taught, strict=True)]
    else:
        sides = zip(pairwise(learned), pairwise(taught), strict=True)
        pairs = [[between_levels(*side, size) for side in both] for both in sides]
    return torch.stack([gap(s, t, power) for s, t in pairs])
