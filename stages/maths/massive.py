"""Rows whose state is massive, as at attention sinks."""

from jaxtyping import Bool, Float
from torch import Tensor

FACTOR = 10.0


def massive(states: Float[Tensor, "rows width"], factor: float = FACTOR) -> Bool[Tensor, "rows"]:
    """Which rows have a norm above `factor` times the median row's.

    Some models park attention on the first token, and on another early one where a text begins with a digit, with
    states a hundred times as long as all others and alike in every text (arXiv 2402.17762). A handful of them decides
    every mean, regression and similarity, so those leave them out.
    """
    norms = states.norm(dim=1)
    return norms > factor * norms.median()
