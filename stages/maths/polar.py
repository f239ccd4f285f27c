"""The orthogonal matrix nearest to a given one."""

import torch
from jaxtyping import Float
from torch import Tensor

_ITERATIONS = 30


def polar_factor(matrix: Float[Tensor, "source target"]) -> Float[Tensor, "source target"]:
    """U Vᵀ of the thin singular value decomposition U S Vᵀ, in float64.

    Newton's iteration X ← (ζ X + X⁻ᵀ / ζ) / 2 with Higham's scaling ζ (1986, doi:10.1137/0907079), on the triangular
    factor where `matrix` is not square: about nine inverses. Both ways err by u times the condition number
    (u = 1e-16), so they differ by less than 1e-6 up to a condition of 1e9. A `matrix` without full rank in float64,
    whose factor is not unique, goes to the singular value decomposition itself.
    """
    rows, columns = matrix.shape
    if rows < columns:
        return polar_factor(matrix.T).T
    if rows > columns:
        basis, triangle = torch.linalg.qr(matrix.double())
        return basis @ polar_factor(triangle)
    x = matrix.double()
    scaled = True
    for step in range(_ITERATIONS):
        inverse, info = torch.linalg.inv_ex(x)
        norms = [torch.linalg.matrix_norm(each, order) for each in (inverse, x) for order in (1, torch.inf)]
        condition = (norms[0] * norms[2]).item()
        if info.item() or (step == 0 and not condition < 1 / (rows * torch.finfo(x.dtype).eps)):
            break
        scale = (norms[0] * norms[1] / norms[2] / norms[3]) ** 0.25 if scaled else 1.0
        following = (scale * x + inverse.T / scale) / 2
        change = (torch.linalg.matrix_norm(following - x) / torch.linalg.matrix_norm(following)).item()
        x, scaled = following, scaled and change > 1e-2
        if change < 1e-8:  # convergence is quadratic: the next step would change 1e-16
            return x @ (3 * torch.eye(columns, dtype=x.dtype, device=x.device) - x.T @ x) / 2
    u, _, vt = torch.linalg.svd(matrix.double(), full_matrices=False)
    return u @ vt
