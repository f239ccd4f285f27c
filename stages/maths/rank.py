"""How many directions a set of rows spans, counted by how evenly it spans them."""

import torch
from jaxtyping import Float
from torch import Tensor


def effective_rank(rows: Float[Tensor, "rows width"]) -> float:
    """The exponential of the entropy of the singular values, taken as shares (Roy and Vetterli 2007, EUSIPCO).

    1 where all rows lie along one direction, k where they spread evenly over k; whatever the scale and the rotation.
    Never more than the number of rows, so figures compare only between sets of as many rows. Rows are taken as they
    are: centre them first to count the directions in which they vary. Singular values below 1e-8 of the largest are
    lost, as they come from the smaller Gram matrix in float64. NaN where all rows are zero.
    """
    x = rows.double()
    gram = x @ x.T if len(x) < x.shape[1] else x.T @ x
    sizes = torch.linalg.eigvalsh(gram).clamp(min=0).sqrt()
    return torch.special.entr(sizes / sizes.sum()).sum().exp().item()
