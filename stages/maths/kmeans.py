"""Clusters of a hidden space's rows, as a first guess at which rows one map may serve."""

from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from stages.maths.moments import Moments, Rows

_SAMPLE = 4096
_ROUNDS = 10

Owner = Callable[[Float[Tensor, "rows source"], Float[Tensor, "rows target"]], Int[Tensor, "rows"]]
"""Tells which cluster each pair of rows belongs to."""


def nearest_centre(rows: Rows, whole: Moments, count: int, generator: torch.Generator) -> Owner:
    """The nearest of `count` centres of the source rows, each column divided by its standard deviation.

    k-means by Lloyd (1982, doi:10.1109/TIT.1982.1056489) from k-means++ seeds (Arthur and Vassilvitskii 2007), on a
    sample of about 4,096 rows evenly spread over `rows`, whose moments are `whole`. A local optimum.
    """
    mean, scale = whole.means[0], deviations(whole)
    every = -(-whole.rows // _SAMPLE)
    points = (torch.cat([x[::every].double() for x, _ in rows]) - mean) / scale
    centres = points[torch.randint(len(points), (1,), generator=generator)]
    while len(centres) < count:
        far = torch.cdist(points, centres).amin(1).square()
        far = far if far.sum() > 0 else torch.ones_like(far)
        centres = torch.cat([centres, points[torch.multinomial(far, 1, generator=generator)]])
    for _ in range(_ROUNDS):
        mine = torch.cdist(points, centres).argmin(1) == torch.arange(count)[:, None]
        sizes = mine.sum(1, keepdim=True)
        centres = torch.where(sizes > 0, mine.double() @ points / sizes.clamp(min=1), centres)
    return lambda x, _: torch.cdist((x - mean) / scale, centres).argmin(1)


def deviations(whole: Moments) -> Float[Tensor, "source"]:
    """Standard deviations of the source's columns, 1 for one that does not vary."""
    found = (whole.gram().diagonal() / whole.rows).sqrt()
    return torch.where(found > 0, found, 1.0)
