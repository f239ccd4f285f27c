"""Matrices of low rank by their two factors: added, cut to fewer ranks, and found in a matrix of any rank."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from stages.errors import BadInput


@dataclass(frozen=True)
class LowRank:
    """The matrix up · down, which maps inputs to outputs."""

    up: Float[Tensor, "out rank"]
    down: Float[Tensor, "rank in"]

    @property
    def rank(self) -> int:
        """Columns of `up`; the matrix's own rank may be less."""
        return self.up.shape[1]

    @property
    def dense(self) -> Float[Tensor, "out in"]:
        """The matrix itself."""
        return self.up @ self.down

    @property
    def energy(self) -> float:
        """‖up · down‖², the sum of its squared entries and of its squared singular values."""
        up, down = self.up.double(), self.down.double()
        return float(((up.T @ up) * (down @ down.T)).sum().clamp(min=0))

    def scaled(self, factor: float) -> "LowRank":
        """factor · up · down."""
        return LowRank(factor * self.up, self.down)

    def singular(self) -> tuple["LowRank", Float[Tensor, "rank"]]:
        """The same matrix by its singular vectors, the values shared by both factors, and those values, falling.

        With up = Q₁R₁ and downᵀ = Q₂R₂ only R₁R₂ᵀ [rank, rank] is decomposed.
        """
        one, first = torch.linalg.qr(self.up.double())
        other, second = torch.linalg.qr(self.down.double().T)
        u, values, vt = torch.linalg.svd(first @ second.T, full_matrices=False)
        shared = values.sqrt()
        return LowRank((one @ u * shared).to(self.up), (shared[:, None] * vt @ other.T).to(self.down)), values

    def truncated(self, rank: int) -> "LowRank":
        """The nearest matrix of at most `rank`, as far as squared entries go (Eckart and Young 1936,
        doi:10.1007/BF02288367). Raises BadInput for a rank below 1."""
        if rank < 1:
            raise BadInput(f"Expected a rank of 1 or more, got {rank}; leave the adapter out instead.")
        parts, _ = self.singular()
        return LowRank(parts.up[:, :rank], parts.down[:rank])


def total(matrices: Sequence[LowRank]) -> LowRank:
    """The sum, exactly: the factors side by side, so ranks add up.

    Sums of ups times sums of downs would add products of one matrix's up with another's down.
    """
    return LowRank(torch.cat([each.up for each in matrices], 1), torch.cat([each.down for each in matrices]))


def factored(matrix: Float[Tensor, "out in"], rank: int) -> LowRank:
    """The nearest matrix of at most `rank`, by singular values, each factor holding their square roots.

    Raises BadInput for a rank below 1.
    """
    out, width = matrix.shape
    eye = torch.eye(min(out, width), dtype=matrix.dtype)
    return (LowRank(matrix, eye) if width <= out else LowRank(eye, matrix)).truncated(rank)


def drawn_like(matrix: LowRank, generator: torch.Generator) -> LowRank:
    """Normal factors of the same shapes, scaled to the same energy."""
    up, down = (torch.randn(each.shape, generator=generator) for each in (matrix.up, matrix.down))
    found = LowRank(up, down)
    return found.scaled((matrix.energy / found.energy) ** 0.5 if found.energy else 0.0)
