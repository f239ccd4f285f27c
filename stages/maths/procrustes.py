"""Linear maps between hidden spaces: the best rotation, and ridge regression where the widths differ."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from stages.errors import BadInput


@dataclass(frozen=True)
class Affine:
    """The map x ↦ x W + b."""

    weight: Float[Tensor, "source target"]
    bias: Float[Tensor, "target"]

    def __call__(self, x: Float[Tensor, "rows source"]) -> Float[Tensor, "rows target"]:
        return x @ self.weight + self.bias


def orthogonal(x: Float[Tensor, "rows source"], y: Float[Tensor, "rows target"]) -> Affine:
    """The orthogonal R, without intercept, that minimises ‖X R - Y‖: source rows times R are target rows.

    R = U Vᵀ for Xᵀ Y = U S Vᵀ (Schönemann 1966, doi:10.1007/BF02289451), in float64. It is not unique where Xᵀ Y
    lacks rank, so fewer rows than `width` leave part of the space to chance. Raises BadInput for unequal widths.
    """
    if x.shape[1] != y.shape[1]:
        raise BadInput(
            f"Expected equal widths for a rotation, got {x.shape[1]} and {y.shape[1]}; use ridge regression instead."
        )
    u, _, vt = torch.linalg.svd(x.double().T @ y.double())
    return Affine((u @ vt).to(y.dtype), y.new_zeros(y.shape[1]))


def ridge(x: Float[Tensor, "rows source"], y: Float[Tensor, "rows target"], strength: float = 1e-3) -> Affine:
    """The affine map that minimises ‖X W + b - Y‖² + λ ‖W‖², in float64; the intercept is not penalised.

    λ is `strength` times the mean squared deviation of a column of X, summed over the rows, so that scaling or
    rotating X scales or rotates W and changes no prediction. Strength 0 needs more rows than `source` columns.
    """
    wide_x, wide_y = x.double(), y.double()
    mean_x, mean_y = wide_x.mean(0), wide_y.mean(0)
    centred = wide_x - mean_x
    gram = centred.T @ centred
    penalty = strength * gram.diagonal().mean()
    gram.diagonal().add_(penalty)
    weight = torch.linalg.solve(gram, centred.T @ (wide_y - mean_y))
    return Affine(weight.to(y.dtype), (mean_y - mean_x @ weight).to(y.dtype))


@dataclass(frozen=True)
class Agreement:
    """How near predicted rows come to actual ones."""

    cosine: float
    """Mean over rows."""
    mse: float
    """Mean over rows and columns."""
    r2: float
    """1 - residual / total sum of squares about the actual rows' mean, over all columns at once."""


def agreement(predicted: Float[Tensor, "rows width"], actual: Float[Tensor, "rows width"]) -> Agreement:
    """Cosine, mean squared error and R² of `predicted` against `actual`."""
    residual = (predicted - actual).double().square()
    total = (actual - actual.mean(0)).double().square().sum()
    cosine = torch.nn.functional.cosine_similarity(predicted.double(), actual.double(), dim=1).mean()
    return Agreement(cosine.item(), residual.mean().item(), (1 - residual.sum() / total).item())
