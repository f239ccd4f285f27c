"""Random rows and rotations for the tests of maps between hidden spaces."""

import numpy as np
import scipy.stats
import torch

from stages.maths.moments import Moments, moments


def normal(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def rotation(seed: int, width: int) -> torch.Tensor:
    return torch.from_numpy(np.atleast_2d(scipy.stats.ortho_group.rvs(width, random_state=seed)))


def chunks(x: torch.Tensor, y: torch.Tensor, size: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    return list(zip(x.split(size), y.split(size), strict=True))


def seen(x: torch.Tensor, y: torch.Tensor, **how) -> Moments:
    """The moments of rows that come in two chunks."""
    return moments(chunks(x, y, len(x) // 2 + 1), **how)
