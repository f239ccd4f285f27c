"""Second moments of paired rows, gathered chunk by chunk: all that a closed-form bridge needs to know of them."""

from collections.abc import Iterable

import torch
from jaxtyping import Float
from torch import Tensor

from stages.errors import BadInput

Rows = Iterable[tuple[Float[Tensor, "rows source"], Float[Tensor, "rows target"]]]
"""Chunks of paired rows; those that are read several times begin anew at each reading."""


class Moments:
    """Means, XᵀY and XᵀX of rows that are seen once and not kept: memory width², any number of rows.

    Sums are taken of rows less a shift, the first chunk's mean, so that nothing cancels where means are far from zero
    (Chan, Golub and LeVeque 1983, doi:10.1080/00031305.1983.10483115), on the device where the first chunk lies,
    and kept in float64. Each chunk's products are taken in `products`. An entry of XᵀY then errs by about u times
    the product of its two columns' norms (u = 1e-16 in float64, 6e-8 in float32), and a rotation fitted to it by up
    to 2 ‖E‖ / (sum of the two least singular values) (Higham 2008, doi:10.1137/1.9780898717778, theorem 8.10). So
    float64 recovers Y = X R to 1e-5 where the singular values of XᵀY span a factor of 1e10, float32 where they span
    about 100: it is for rows known to be well conditioned, where speed counts.
    """

    rows: int
    """Rows seen."""

    def __init__(self, products: torch.dtype = torch.float64, cross_only: bool = False):
        """`cross_only` leaves out all but XᵀY of the rows as they are, enough for a rotation at half the work."""
        self.rows = 0
        self._products, self._cross_only = products, cross_only

    def add(self, x: Float[Tensor, "rows source"], y: Float[Tensor, "rows target"]) -> None:
        """Takes in a chunk; one of as many rows as columns or more makes good use of the machine.

        Raises BadInput for a chunk of other widths or of rows that are not in pairs, and for float32 products where
        torch is set to round their factors (TF32, bfloat16).
        """
        if len(x) != len(y):
            raise BadInput(f"Expected rows in pairs, got {len(x)} source and {len(y)} target rows; pair them first.")
        precision = torch.get_float32_matmul_precision()
        if self._products == torch.float32 and precision != "highest":
            raise BadInput(
                f"Expected float32 products of whole factors, got torch's {precision!r} precision for them; call "
                "torch.set_float32_matmul_precision('highest')."
            )
        if not len(x):
            return
        self._begin(x, y)
        if self._cross_only:
            x, y = x.to(self._products), y.to(self._products)
        else:
            x, y = self._shifted(x, self._shift[0]), self._shifted(y, self._shift[1])
            self._sums[0].add_(x.sum(0))
            self._sums[1].add_(y.sum(0))
            self._square.add_(x.T @ x)
        self._cross.add_(x.T @ y)
        self.rows += len(x)

    def merge(self, other: "Moments") -> None:
        """Takes in all rows that `other` has seen, as though they had been seen here; `other` stays as it is.

        Raises BadInput where `other` is of other widths or only one of both is of XᵀY alone.
        """
        if self._cross_only != other._cross_only:
            raise BadInput("Expected moments of one kind, got some of XᵀY alone; gather both with the same cross_only.")
        if not other.rows:
            return
        self._begin(*(shift[None] for shift in other._shift))
        x_move, y_move = (theirs - ours for theirs, ours in zip(other._shift, self._shift, strict=True))
        self._cross += _moved(other._cross, other._sums, (x_move, y_move), other.rows)
        self._square += _moved(other._square, other._sums[:1] * 2, (x_move, x_move), other.rows)
        self._sums[0].add_(other._sums[0] + other.rows * x_move)
        self._sums[1].add_(other._sums[1] + other.rows * y_move)
        self.rows += other.rows

    @property
    def means(self) -> tuple[Float[Tensor, "source"], Float[Tensor, "target"]]:
        """The mean source and target row. Raises BadInput where only XᵀY was kept."""
        self._need_all()
        x, y = (shift + total / self.rows for shift, total in zip(self._shift, self._sums, strict=True))
        return x, y

    def cross(self, centred: bool = True) -> Float[Tensor, "source target"]:
        """XᵀY, of deviations from the means where `centred` (BadInput as above), else of the rows as they are."""
        return _moved(self._cross, self._sums, self._moves(centred), self.rows)

    def gram(self, centred: bool = True) -> Float[Tensor, "source source"]:
        """XᵀX, likewise. Raises BadInput where only XᵀY was kept."""
        self._need_all()
        return _moved(self._square, self._sums[:1] * 2, self._moves(centred)[:1] * 2, self.rows)

    def _begin(self, x: Tensor, y: Tensor) -> None:
        """Lays out the sums at the first rows; checks widths at later ones."""
        widths = x.shape[1], y.shape[1]
        if self.rows:
            if widths != tuple(self._cross.shape):
                raise BadInput(f"Expected rows of widths {tuple(self._cross.shape)}, got {widths}; use other moments.")
            return
        wide = {"dtype": torch.float64, "device": x.device}
        self._sums = torch.zeros(widths[0], **wide), torch.zeros(widths[1], **wide)
        self._shift = self._sums if self._cross_only else (x.double().mean(0), y.double().mean(0))
        self._cross = torch.zeros(widths, **wide)
        self._square = torch.zeros((0, 0) if self._cross_only else (widths[0], widths[0]), **wide)

    def _shifted(self, rows: Tensor, shift: Tensor) -> Tensor:
        """Deviations, rounded after the subtraction."""
        wide = torch.promote_types(rows.dtype, self._products)
        return (rows.to(wide) - shift.to(wide)).to(self._products)

    def _need_all(self) -> None:
        if self._cross_only:
            raise BadInput("Expected moments with means and XᵀX, got XᵀY alone; gather them without cross_only.")

    def _moves(self, centred: bool) -> tuple[Tensor, Tensor]:
        """What to add to shifted rows for deviations from the means, or for rows as they are."""
        if not centred:
            return self._shift
        self._need_all()
        return self._sums[0] / -self.rows, self._sums[1] / -self.rows


def _moved(total: Tensor, sums: tuple[Tensor, ...], moves: tuple[Tensor, ...], rows: int) -> Tensor:
    """Σ (a + s)(b + t)ᵀ from Σ a bᵀ, the sums of a and b, and the moves s and t."""
    if not total.numel():
        return total
    outer = torch.outer(sums[0], moves[1]) + torch.outer(moves[0], sums[1])
    return total + outer + rows * torch.outer(*moves)


def moments(rows: Rows, products: torch.dtype = torch.float64, cross_only: bool = False) -> Moments:
    """The moments of all chunks of `rows`, in one pass."""
    gathered = Moments(products, cross_only)
    for x, y in rows:
        gathered.add(x, y)
    return gathered
