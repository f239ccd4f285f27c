"""How near the rows that bridges predict come to the actual ones."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from stages.errors import BadInput
from stages.maths.moments import Rows


@dataclass(frozen=True)
class Agreement:
    """How near predicted rows come to actual ones."""

    cosine: float
    """Mean over rows."""
    mse: float
    """Mean over rows and columns."""
    r2: float
    """1 - residual / total sum of squares about the actual rows' mean, over all columns at once."""


def agreement(
    bridges: Mapping[str, Callable[[Float[Tensor, "rows source"]], Float[Tensor, "rows target"]]],
    rows: Rows,
) -> dict[str, Agreement]:
    """Each bridge's cosine, mean squared error and R² on chunks of (source, target) rows, in one pass over them.

    Products are taken in the rows' precision, sums over rows in float64, those of squares about the first chunk's
    mean. R² is NaN where the target rows are all alike. Raises BadInput when there is no row.
    """
    count, width = 0, 0
    cosines, residuals = dict.fromkeys(bridges, 0.0), dict.fromkeys(bridges, 0.0)
    shift = sums = squares = torch.zeros(())
    for x, y in rows:
        if not len(y):
            continue
        if not count:
            shift, width = y.double().mean(0), y.shape[1]
        moved = y.double() - shift
        sums, squares, count = sums + moved.sum(0), squares + moved.square().sum(), count + len(y)
        for name, bridge in bridges.items():
            predicted = bridge(x)
            residuals[name] += (predicted - y).double().square().sum().item()
            cosines[name] += torch.cosine_similarity(predicted.double(), y.double(), dim=1).sum().item()
    if not count:
        raise BadInput("Expected rows to judge bridges on, got none; hold out more.")
    total = (squares - sums.square().sum() / count).item()
    return {
        name: Agreement(cosines[name] / count, residual / count / width, 1 - residual / total if total else math.nan)
        for name, residual in residuals.items()
    }
