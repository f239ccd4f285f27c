"""A blade that carries no donor: a direction, or features of the state itself, added to the target while it runs."""

import torch
from torch import nn

from .call import Call
from .gate import Gate


class Vector(nn.Module):
    """The same direction for every token."""

    vector: torch.Tensor

    def __init__(self, width: int):
        super().__init__()
        self.register_buffer("vector", torch.zeros(width))

    def forward(self, h: torch.Tensor) -> torch.Tensor:
        """The direction for each of the states `h` [..., width]."""
        return self.vector.expand_as(h)


class Features(nn.Module):
    """What some features of a sparse autoencoder give back of a state: f D with f = p where p > θ, p = (h − c) Eᵀ + b.

    Adding α times it scales these features by 1 + α and leaves all else of the state as it is. For states longer than
    `longest`, such as a first token's massive one, which no feature describes, it is zero.
    """

    encoder: torch.Tensor  # [count, width]
    encoder_bias: torch.Tensor  # [count]
    threshold: torch.Tensor  # [count]
    decoder: torch.Tensor  # [count, width]
    centre: torch.Tensor  # [width]
    longest: torch.Tensor  # [1]

    def __init__(self, width: int, count: int):
        super().__init__()
        self.register_buffer("encoder", torch.zeros(count, width))
        self.register_buffer("encoder_bias", torch.zeros(count))
        self.register_buffer("threshold", torch.zeros(count))
        self.register_buffer("decoder", torch.zeros(count, width))
        self.register_buffer("centre", torch.zeros(width))
        self.register_buffer("longest", torch.full((1,), torch.inf))

    def forward(self, h: torch.Tensor) -> torch.Tensor:
        """The features' part of each of the states `h` [..., width]."""
        pre = (h - self.centre) @ self.encoder.T + self.encoder_bias
        described = h.norm(dim=-1, keepdim=True) <= self.longest
        return (pre * (pre > self.threshold)) @ self.decoder * described


class Stored(nn.Module):
    """h ← h + α · g(h, x) ⊙ x with x the `source` of h, a vector or features, and g the gate.

    A mean difference as a vector: arXiv 2308.10248, 2312.06681; features: arXiv 2406.04093.
    """

    def __init__(self, source: str, gate: str, alpha: float, width: int, count: int = 0, layer: int = 0):
        super().__init__()
        if source not in ("vector", "features"):
            raise ValueError(f"Expected a source vector or features, got {source!r}; name one of these.")
        self.source = Vector(width) if source == "vector" else Features(width, count)
        self.gate = Gate(gate, width)
        self.alpha, self.layer = alpha, layer

    def forward(self, h: torch.Tensor) -> torch.Tensor:
        """New states [batch, tokens, width] from the target's `h`."""
        x = self.source(h)
        return h + self.alpha * self.gate(h, x) * x

    def change(self, call: Call, h: torch.Tensor) -> torch.Tensor:
        """New states for the target's `h` [batch, new tokens, width]."""
        return h if self.gate.kind == "closed" else self(h)

    def attach(self, call: Call) -> None:
        """Takes hold of the target's block for one pass."""
        call.after(call.block(self.layer), lambda h: self.change(call, h))
