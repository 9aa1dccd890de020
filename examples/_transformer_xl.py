"""Transformer-XL (Dai et al. 2019, arXiv 1901.02860): relative positions and a segment memory.

Hidden states of the segment before are kept, without gradient, and attended to; positions enter the
attention as distances only, so that kept states need no new positions. Layers normalise before
attention and feed-forward instead of after, which trains from the first step without a long
warm-up. The softmax is adaptive (arXiv 1609.04309): rare symbols share two clusters of lower rank.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional


@dataclass(frozen=True)
class Shape:
    """Sizes of a model; the default has 2.4 million parameters with 8,192 symbols."""

    symbols: int
    layers: int = 4
    width: int = 128
    heads: int = 4
    inner: int = 512
    memory: int = 64
    dropout: float = 0.0


class RelativeAttention(nn.Module):
    """Causal attention over memory and segment; the score of query t and key s is

        (q_t + u) · k_s + (q_t + v) · r_{t−s}

    with r the projected sinusoids of the distance (arXiv 1901.02860 section 3.3).
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        if width % heads:
            raise ValueError(f"--width {width} is no multiple of --heads {heads}")
        self.heads, self.size = heads, width // heads
        self.query = nn.Linear(width, width, bias=False)
        self.key_value = nn.Linear(width, 2 * width, bias=False)
        self.distance = nn.Linear(width, width, bias=False)
        self.output = nn.Linear(width, width, bias=False)
        self.content_bias = nn.Parameter(torch.zeros(heads, self.size))
        self.distance_bias = nn.Parameter(torch.zeros(heads, self.size))

    def forward(self, x: Tensor, memory: Tensor, sinusoids: Tensor) -> Tensor:
        """x [n, t, width], memory [n, m, width], sinusoids [m + t, width], farthest first."""
        n, t, width = x.shape
        context = torch.cat([memory, x], dim=1)
        q = self.query(x).view(n, t, self.heads, self.size)
        k, v = self.key_value(context).view(n, -1, 2, self.heads, self.size).unbind(2)
        r = self.distance(sinusoids).view(-1, self.heads, self.size)
        content = torch.einsum("nthd,nshd->nhts", q + self.content_bias, k)
        position = torch.einsum("nthd,shd->nhts", q + self.distance_bias, r)
        scores = (content + by_distance(position)) / math.sqrt(self.size)
        later = torch.ones(t, context.shape[1], dtype=torch.bool).triu(memory.shape[1] + 1)
        weights = scores.masked_fill(later, -math.inf).softmax(dim=-1)
        return self.output(torch.einsum("nhts,nshd->nthd", weights, v).reshape(n, t, width))


def by_distance(scores: Tensor) -> Tensor:
    """From [..., t, j] by distance, farthest first, to [..., t, s] by key.

    Query t is t + 1 steps nearer to the end of the context than the first of the segment, so its
    row moves left by T − 1 − t: one column of padding and a reshape do that for all rows. Entries
    of later keys are meaningless and must be masked.
    """
    t, keys = scores.shape[-2:]
    padded = functional.pad(scores, (1, 0))
    moved = padded.reshape(*scores.shape[:-2], keys + 1, t)[..., 1:, :]
    return moved.reshape(*scores.shape[:-2], t, keys)


class Layer(nn.Module):
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.norm_attention = nn.LayerNorm(shape.width)
        self.attention = RelativeAttention(shape.width, shape.heads)
        self.norm_feed_forward = nn.LayerNorm(shape.width)
        self.feed_forward = nn.Sequential(
            nn.Linear(shape.width, shape.inner),
            nn.GELU(),
            nn.Linear(shape.inner, shape.width),
        )
        self.dropout = nn.Dropout(shape.dropout)

    def forward(self, x: Tensor, memory: Tensor, sinusoids: Tensor) -> Tensor:
        kept = self.norm_attention(memory)
        attended = self.attention(self.norm_attention(x), kept, sinusoids)
        x = x + self.dropout(attended)
        return x + self.dropout(self.feed_forward(self.norm_feed_forward(x)))


class TransformerXL(nn.Module):
    """Predicts the next symbol of every position.

    ``model(symbols, targets, memory)`` takes [n, t] int64 twice and a list of one [n, m, width] a
    layer (``model.no_memory(n)`` at the start of a text), and returns the mean loss in nats and the
    memory for the segment that follows.
    """

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        self.embedding = nn.Embedding(shape.symbols, shape.width)
        self.dropout = nn.Dropout(shape.dropout)
        self.layers = nn.ModuleList(Layer(shape) for _ in range(shape.layers))
        self.norm = nn.LayerNorm(shape.width)
        self.softmax = nn.AdaptiveLogSoftmaxWithLoss(
            shape.width, shape.symbols, cutoffs(shape.symbols), div_value=2.0
        )
        for module in self.modules():
            if isinstance(module, nn.Linear):
                # The scale of GPT-2 and of Transformer-XL's code; a residual sum needs small ones.
                nn.init.normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        nn.init.normal_(self.embedding.weight, std=1 / math.sqrt(shape.width))

    def no_memory(self, count: int) -> list[Tensor]:
        return [torch.zeros(count, 0, self.shape.width) for _ in self.layers]

    def forward(
        self, symbols: Tensor, targets: Tensor, memory: list[Tensor]
    ) -> tuple[Tensor, list[Tensor]]:
        x = self.dropout(self.embedding(symbols) * math.sqrt(self.shape.width))
        sinusoids = distances(memory[0].shape[1] + symbols.shape[1], self.shape.width)
        kept = []
        for layer, before in zip(self.layers, memory, strict=True):
            kept.append(torch.cat([before, x], dim=1)[:, -self.shape.memory :].detach())
            x = layer(x, before, sinusoids)
        hidden = self.norm(x).reshape(-1, self.shape.width)
        return self.softmax(hidden, targets.reshape(-1)).loss, kept


def cutoffs(symbols: int) -> list[int]:
    """First symbols of the two clusters of rare ones: an eighth and a half of the vocabulary."""
    return [max(1, symbols // 8), max(2, symbols // 2)]


def distances(count: int, width: int) -> Tensor:
    """Sinusoids of the distances count − 1 … 0, [count, width] (arXiv 1706.03762 section 3.5)."""
    distance = torch.arange(count - 1, -1, -1.0)
    frequency = 10000.0 ** (-torch.arange(0, width, 2.0) / width)
    angle = distance[:, None] * frequency
    return torch.cat([angle.sin(), angle.cos()], dim=1)[:, :width]
