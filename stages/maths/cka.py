"""How alike two representations of the same rows are, whatever their widths."""

from jaxtyping import Float
from torch import Tensor

from stages.errors import BadInput


def debiased_cka(x: Float[Tensor, "rows width_x"], y: Float[Tensor, "rows width_y"]) -> float:
    """Linear CKA (arXiv 1905.00414) from the unbiased estimate of HSIC (Song et al. 2012, JMLR 13:1393).

    1 for representations that differ by a rotation, a shift or a scale; about 0, and at times below, for independent
    ones however wide, where the biased estimate nears 1 as the widths near the number of rows. Costs rows × width²:
    no rows × rows matrix is made. NaN when either does not vary. Raises BadInput for fewer than four rows.
    """
    if len(x) < 4:
        raise BadInput(f"Expected at least four rows for the debiased CKA, got {len(x)}; capture more tokens.")
    x, y = _scaled(x), _scaled(y)
    xy, xx, yy = _hsic(x, y), _hsic(x, x), _hsic(y, y)
    return (xy / (xx * yy).clamp(min=0).sqrt()).item()


def _scaled(x: Tensor) -> Tensor:
    """Centred, with rows of mean square norm 1: the ratio stays, sums neither overflow nor cancel."""
    centred = x - x.mean(0)
    return centred / centred.square().sum(1).mean().sqrt()


def _hsic(x: Tensor, y: Tensor) -> Tensor:
    """Unbiased HSIC times rows × (rows - 3), from kernels x xᵀ and y yᵀ without their diagonals."""
    rows = len(x)
    x_diagonal, y_diagonal = x.double().square().sum(1), y.double().square().sum(1)
    x_sums = (x @ x.sum(0)).double() - x_diagonal
    y_sums = (y @ y.sum(0)).double() - y_diagonal
    trace = (x.T @ y).double().square().sum() - x_diagonal @ y_diagonal
    return trace + x_sums.sum() * y_sums.sum() / ((rows - 1) * (rows - 2)) - 2 / (rows - 2) * (x_sums @ y_sums)
