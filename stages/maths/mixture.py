"""Several affine maps between hidden spaces under one gate that chooses among them row by row."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from stages.errors import BadInput
from stages.maths.affine import Affine
from stages.maths.agreement import agreement
from stages.maths.kmeans import Owner, deviations, nearest_centre
from stages.maths.moments import Moments, Rows
from stages.maths.regression import ridge

_ROUNDS = 10
_BATCH = 256


@dataclass(frozen=True)
class Mixture:
    """The map x ↦ Σⱼ gⱼ(x) (x Wⱼ + bⱼ) with g = softmax(x G + c)."""

    weight: Float[Tensor, "bridges source target"]
    bias: Float[Tensor, "bridges target"]
    gate_weight: Float[Tensor, "source bridges"]
    gate_bias: Float[Tensor, "bridges"]

    def __call__(self, x: Float[Tensor, "rows source"]) -> Float[Tensor, "rows target"]:
        shares = (x @ self.gate_weight + self.gate_bias).softmax(1)
        mapped = shares @ self.bias
        for share, weight in zip(shares.unbind(1), self.weight.unbind(0), strict=True):
            mapped = mapped + share[:, None] * (x @ weight)
        return mapped

    def to(self, dtype: torch.dtype) -> "Mixture":
        """The same map in another precision."""
        return Mixture(*(each.to(dtype) for each in vars(self).values()))


def mixture(
    rows: Rows,
    whole: Moments,
    bridges: int,
    strength: float = 1e-3,
    epochs: int = 4,
    learning_rate: float = 3e-4,
    seed: int = 0,
) -> Mixture:
    """A mixture of so many `bridges` with little squared error on `rows`, chunks that are read several times.

    `whole` holds the moments of the same rows. Begins with k-means over the source rows, then gives each row to the
    map that errs least on it and fits the maps anew, in turn, from moments; the gate is the linear discriminant of
    who got which rows (Fisher 1936, doi:10.1111/j.1469-1809.1936.tb02137.x), and the maps are fitted a last time to
    the rows that it sends them. Then epochs of Adam (arXiv 1412.6980) on everything, kept where they lower the error
    on `rows`. Maps are shrunk towards the one ridge map of all rows by ridge's penalty, so one with few rows stays
    near it. A local optimum: judge it on other rows beside that one map. The same seed gives the same mixture.
    Raises BadInput for fewer than two bridges.
    """
    if bridges < 2:
        raise BadInput(f"Expected a mixture of two bridges or more, got {bridges}; leave the mixture out for one.")
    generator = torch.Generator().manual_seed(seed)
    single = ridge(whole, strength)
    owner: Owner = nearest_centre(rows, whole, bridges, generator)
    before: Tensor | None = None
    for _ in range(_ROUNDS):
        parts, given = _divided(rows, owner, bridges)
        if before is not None and torch.equal(given, before):
            break
        before, maps = given, [_fitted(part, whole, single, strength) for part in parts]
        owner = _least_error(maps)
    gate = _discriminant(parts, whole, strength)
    parts, _ = _divided(rows, lambda x, _: gate(x.double()).argmax(1), bridges)
    maps, gate = [_fitted(part, whole, single, strength) for part in parts], _discriminant(parts, whole, strength)
    begun = Mixture(torch.stack([m.weight for m in maps]), torch.stack([m.bias for m in maps]), gate.weight, gate.bias)
    trained = _trained(begun, rows, whole, epochs, learning_rate, generator)
    judged = agreement({"begun": lambda x: begun(x.double()), "trained": lambda x: trained(x.double())}, rows)
    return trained if judged["trained"].mse < judged["begun"].mse else begun


def _least_error(maps: list[Affine]) -> Owner:
    return lambda x, y: torch.stack([(each(x.double()) - y).square().sum(1) for each in maps]).argmin(0)


def _divided(rows: Rows, owner: Owner, count: int) -> tuple[list[Moments], Int[Tensor, "all_rows"]]:
    """Moments of each owner's rows, and the owner of each row."""
    parts, given = [Moments() for _ in range(count)], []
    for x, y in rows:
        given.append(owner(x, y))
        for number, part in enumerate(parts):
            mine = given[-1] == number
            part.add(x[mine], y[mine])
    return parts, torch.cat(given)


def _penalty(whole: Moments, strength: float) -> float:
    """Ridge's, and never nothing, since a part may have no rows."""
    return max(strength, 1e-9) * whole.gram().diagonal().mean().item()


def _fitted(part: Moments, whole: Moments, single: Affine, strength: float) -> Affine:
    """The map that minimises ‖X W + b - Y‖² + λ ‖W - W₁‖² on a part of the rows, W₁ the map of all of them."""
    if not part.rows:
        return single
    gram = part.gram()
    error = part.cross() - gram @ single.weight
    gram.diagonal().add_(_penalty(whole, strength))
    weight = single.weight + torch.linalg.solve(gram, error)
    x_mean, y_mean = part.means
    return Affine(weight, y_mean - x_mean @ weight)


def _discriminant(parts: list[Moments], whole: Moments, strength: float) -> Affine:
    """Log odds of each part at a row, were each normal about its mean with one covariance for all."""
    within = sum((part.gram() for part in parts if part.rows), torch.zeros_like(whole.gram())) / whole.rows
    within.diagonal().add_(_penalty(whole, strength) / whole.rows)
    means = torch.stack([part.means[0] if part.rows else whole.means[0] for part in parts])
    weight = torch.linalg.solve(within, means.T)
    share = torch.tensor([part.rows / whole.rows for part in parts], dtype=torch.float64).clamp(min=1e-9)
    return Affine(weight, share.log() - (means * weight.T).sum(1) / 2)


def _trained(
    begun: Mixture, rows: Rows, whole: Moments, epochs: int, learning_rate: float, generator: torch.Generator
) -> Mixture:
    """Adam on the mean squared error, in standardised columns and with a rate that falls to nothing."""
    (mean, y_mean), scale = whole.means, deviations(whole)
    size = (torch.cat([(y - y_mean).square().sum(1) for _, y in rows]).mean() / len(y_mean)).sqrt()
    size = size if size > 0 else torch.ones_like(size)
    inner = Mixture(  # of standardised columns
        begun.weight * scale[:, None] / size,
        (begun.bias + mean @ begun.weight - y_mean) / size,
        begun.gate_weight * scale[:, None],
        begun.gate_bias + mean @ begun.gate_weight,
    ).to(torch.float32)
    learned = [each.clone().requires_grad_() for each in vars(inner).values()]
    optimizer = torch.optim.Adam(learned, learning_rate)
    steps = max(1, epochs * whole.rows // _BATCH)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: max(0.0, 1 - step / steps))
    for _ in range(epochs):
        for x, y in rows:
            for batch in torch.randperm(len(x), generator=generator).split(_BATCH):
                inputs, wanted = ((x[batch] - mean) / scale).float(), ((y[batch] - y_mean) / size).float()
                (Mixture(*learned)(inputs) - wanted).square().mean().backward()
                optimizer.step()
                optimizer.zero_grad()
                schedule.step()
    weight, bias, gate_weight, gate_bias = (each.detach().double() for each in learned)
    weight, gate_weight = weight * size / scale[:, None], gate_weight / scale[:, None]
    return Mixture(weight, bias * size + y_mean - mean @ weight, gate_weight, gate_bias - mean @ gate_weight)
