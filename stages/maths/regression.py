"""Linear regression from one hidden space to another, of full or limited rank, from second moments alone."""

import torch

from stages.errors import BadInput
from stages.maths.affine import Affine
from stages.maths.moments import Moments


def least_squares(moments: Moments) -> Affine:
    """The affine map that minimises ‖X W + b - Y‖², the W of least norm where that is not unique.

    W = (XᵀX)⁺ XᵀY of deviations from the means. Directions of X whose variance is below width × 1e-16 of the greatest
    count as none. Overfits where rows are not many times `source`: see `ridge`.
    """
    values, vectors = torch.linalg.eigh(moments.gram())
    known = values > len(values) * torch.finfo(values.dtype).eps * values[-1]
    vectors = vectors[:, known]
    return _through_the_means(moments, vectors @ ((vectors.T @ moments.cross()) / values[known, None]))


def ridge(moments: Moments, strength: float = 1e-3, intercept: bool = True) -> Affine:
    """The affine map that minimises ‖X W + b - Y‖² + λ ‖W‖²; the intercept is not penalised.

    λ is `strength` times the mean squared deviation of a column of X, summed over the rows, so that scaling or
    rotating X scales or rotates W and changes no prediction. Without `intercept` b is 0, and rows are taken as they
    are in place of their deviations. Raises BadInput where XᵀX + λ is singular, as at strength 0 with fewer rows than
    columns: see `least_squares`.
    """
    penalised = _penalised(moments, strength, intercept)
    factor, info = torch.linalg.cholesky_ex(penalised)
    if info.item():
        raise BadInput(
            f"Expected columns that vary independently, got {moments.rows} rows of {len(penalised)} columns with "
            f"strength {strength}; raise the strength."
        )
    weight = torch.cholesky_solve(moments.cross(intercept), factor)
    return _through_the_means(moments, weight) if intercept else Affine(weight, weight.new_zeros(weight.shape[1]))


def low_rank(moments: Moments, rank: int, strength: float = 1e-3) -> Affine:
    """The affine map of at most `rank` that minimises what `ridge` minimises.

    W = W₁ V Vᵀ, with W₁ ridge's map and V the leading eigenvectors of W₁ᵀ (XᵀX + λ) W₁, the principal directions of
    what it fits (Izenman 1975, doi:10.1016/0047-259X(75)90042-1; with a penalty Mukherjee and Zhu 2011,
    doi:10.1002/sam.10138). Raises BadInput for a rank of zero and where `ridge` does.
    """
    if rank < 1:
        raise BadInput(f"Expected a rank of 1 or more, got {rank}; use ridge for no limit.")
    whole = ridge(moments, strength).weight
    _, directions = torch.linalg.eigh(whole.T @ moments.cross())
    leading = directions[:, -rank:]
    return _through_the_means(moments, whole @ leading @ leading.T)


def _penalised(moments: Moments, strength: float, centred: bool) -> torch.Tensor:
    """XᵀX + λ, of deviations from the means where `centred`."""
    gram = moments.gram(centred)
    gram.diagonal().add_(strength * gram.diagonal().mean())
    return gram


def _through_the_means(moments: Moments, weight: torch.Tensor) -> Affine:
    """The map with the intercept that carries the mean source row to the mean target row."""
    x_mean, y_mean = moments.means
    return Affine(weight, y_mean - x_mean @ weight)
