"""An affine map between hidden spaces, however it was fitted."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True)
class Affine:
    """The map x ↦ x W + b."""

    weight: Float[Tensor, "source target"]
    bias: Float[Tensor, "target"]

    def __call__(self, x: Float[Tensor, "rows source"]) -> Float[Tensor, "rows target"]:
        return x @ self.weight + self.bias

    def to(self, dtype: torch.dtype) -> "Affine":
        """The same map in another precision."""
        return Affine(self.weight.to(dtype), self.bias.to(dtype))
