"""How two factors act together on a figure: a two-way table taken apart into its additive part and the rest."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float


@dataclass(frozen=True)
class Interaction:
    """Shares of the sum of squares between the cells of a table [levels of a, levels of b]; they add up to 1."""

    first: float
    """Of the first factor alone."""
    second: float
    """Of the second factor alone."""
    together: float
    """Of what neither explains: the effect of one depends on the other."""


def interaction(cells: Float[np.ndarray, "a b"]) -> Interaction | None:
    """The shares in which two factors and their interaction explain how the cells differ.

    With m_ij the cell, m_i. and m_.j the means of its row and column and m the mean of all, m_ij − m is
    (m_i. − m) + (m_.j − m) + (m_ij − m_i. − m_.j + m), three orthogonal parts (Fisher's two-way analysis of variance).
    None where all cells are equal or one is missing (NaN). With one measurement a cell the last part holds its noise
    as well, so a share near 0 rules an interaction out, and a large one does not prove it.
    """
    mean = cells.mean()
    rows, columns = cells.mean(1, keepdims=True) - mean, cells.mean(0, keepdims=True) - mean
    rest = cells - mean - rows - columns
    squares = [float(np.square(np.broadcast_to(part, cells.shape)).sum()) for part in (rows, columns, rest)]
    total = sum(squares)
    if not total > 1e-18 * max(1.0, float(mean) ** 2):  # NaN is not greater either
        return None
    return Interaction(*(square / total for square in squares))
