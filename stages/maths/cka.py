"""How alike two representations of the same rows are, whatever their widths."""

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from stages.errors import BadInput


def debiased_cka(x: Float[Tensor, "rows width_x"], y: Float[Tensor, "rows width_y"]) -> float:
    """Linear CKA (arXiv 1905.00414) from the unbiased estimate of HSIC (Song et al. 2012, JMLR 13:1393).

    1 for representations that differ by a rotation, a shift or a scale; about 0, and at times below, for independent
    ones however wide, where the biased estimate nears 1 as the widths near the number of rows. Costs rows × width²:
    no rows × rows matrix is made. NaN when either does not vary. Raises BadInput for fewer than four rows.
    """
    return cka_of(scaled(x), scaled(y))


@dataclass(frozen=True)
class Scaled:
    """A representation made ready to be compared with many others."""

    rows: Float[Tensor, "rows width"]
    """Centred, with mean square norm 1: the ratio stays, sums neither overflow nor cancel."""
    own: Float[Tensor, ""]
    """Its HSIC with itself."""


def scaled(x: Float[Tensor, "rows width"]) -> Scaled:
    """What `cka_of` takes; raises BadInput for fewer than four rows."""
    if len(x) < 4:
        raise BadInput(f"Expected at least four rows for the debiased CKA, got {len(x)}; capture more tokens.")
    centred = x - x.mean(0)
    rows = centred / centred.square().sum(1).mean().sqrt()
    return Scaled(rows, _hsic(rows, rows))


def cka_of(x: Scaled, y: Scaled) -> float:
    """As `debiased_cka`, at the cost of one product instead of three."""
    return (_hsic(x.rows, y.rows) / (x.own * y.own).clamp(min=0).sqrt()).item()


def _hsic(x: Tensor, y: Tensor) -> Tensor:
    """Unbiased HSIC times rows × (rows - 3), from kernels x xᵀ and y yᵀ without their diagonals."""
    rows = len(x)
    x_diagonal, y_diagonal = x.double().square().sum(1), y.double().square().sum(1)
    x_sums = (x @ x.sum(0)).double() - x_diagonal
    y_sums = (y @ y.sum(0)).double() - y_diagonal
    trace = (x.T @ y).double().square().sum() - x_diagonal @ y_diagonal
    return trace + x_sums.sum() * y_sums.sum() / ((rows - 1) * (rows - 2)) - 2 / (rows - 2) * (x_sums @ y_sums)
