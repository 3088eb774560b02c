"""Dinomaly's networks: a bottleneck with dropout, and transformer blocks with linear attention."""

from torch import Tensor, nn
from torch.nn.functional import elu, scaled_dot_product_attention

from kdbench.method import full_precision


class Bottleneck(nn.Sequential):
    """[B,N,C] -> [B,N,C] by way of 4C channels; its dropout keeps the decoder from copying anomalies."""

    def __init__(self, width: int, dropout: float) -> None:
        fc1, fc2 = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        super().__init__(nn.Dropout(dropout), fc1, nn.GELU(), nn.Dropout(dropout), fc2, nn.Dropout(dropout))


class Block(nn.Module):
    """A transformer block with linear or with softmax attention: [B,N,C] -> [B,N,C]."""

    def __init__(self, width: int, attention: str = "linear") -> None:
        super().__init__()
        self.attend = linear_attention if attention == "linear" else scaled_dot_product_attention
        self.heads = max(1, width // 64)
        self.norm1, self.norm2 = nn.LayerNorm(width, eps=1e-8), nn.LayerNorm(width, eps=1e-8)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(self.norm1(x)).unflatten(2, (3, self.heads, -1)).transpose(1, 3).unbind(2)
        attended = self.attend(q.float(), k.float(), v.float())  # [B,heads,N,C/heads]
        x = x + self.out(attended.transpose(1, 2).flatten(2).to(x.dtype))
        return x + self.mlp(self.norm2(x))


class Decoder(nn.ModuleList):
    """Blocks in a row: [B,N,C] -> a map [B,C,N] for each level; the last block rebuilds the first level."""

    def __init__(self, num_levels: int, width: int, attention: str) -> None:
        super().__init__(Block(width, attention) for _ in range(num_levels))

    def forward(self, x: Tensor) -> list[Tensor]:
        rebuilt = []
        for block in self:
            x = block(x)
            rebuilt.append(x.transpose(1, 2))
        return rebuilt[::-1]


def linear_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """sum_j f(q_i) f(k_j) v_j / sum_j f(q_i) f(k_j) with f = elu + 1, for [...,N,D], in time linear in N."""
    q, k = elu(q) + 1, elu(k) + 1
    with full_precision(q):
        return (q @ (k.transpose(-2, -1) @ v)) / (q @ k.sum(-2)[..., None])
