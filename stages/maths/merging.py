"""Several models' weights as one: means, arcs and sums of task vectors, one tensor at a time.

θ is a tensor of the target, θᵢ the same tensor of donor i, τᵢ = θᵢ − θ its task vector, wᵢ its weight, d the density.
All of it is computed in the precision that comes in: give float32.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from stages.errors import BadInput


def linear(
    target: Float[Tensor, "*shape"], donors: Float[Tensor, "donors *shape"], weights: Float[Tensor, "donors"]
) -> Float[Tensor, "*shape"]:
    """The weighted mean (1 − Σ wᵢ) θ + Σ wᵢ θᵢ (model soups, arXiv 2203.05482).

    It is θ plus `task_arithmetic` of the same weights, written as a mean. Raises BadInput unless every share, the
    target's included, lies in [0, 1].
    """
    own = 1 - float(weights.sum())
    if float(weights.min()) < 0 or own < -1e-6:
        raise BadInput(
            f"Expected shares of a mean, of 0 or more and at most 1 together, got {weights.tolist()}; use task "
            "arithmetic for other weights."
        )
    return own * target + task_arithmetic(donors, weights)


def slerp(target: Float[Tensor, "*shape"], donor: Float[Tensor, "*shape"], share: float) -> Float[Tensor, "*shape"]:
    """The point at `share` t of the way from θ to θ₁ along the arc between their directions.

    (sin((1 − t) Ω) θ + sin(t Ω) θ₁) / sin Ω, with Ω the angle between both tensors taken as vectors (Shoemake 1985,
    doi:10.1145/325334.325242); lengths are interpolated with the directions. Ω is 2 atan2(|u − v|, |u + v|) of the unit
    vectors in float64, exact for the small angles between models of one origin, for which arccos loses all digits. The
    straight line is taken where there is no arc: between parallel vectors, where it is the limit; between opposite
    ones, where no arc is the shortest; and where either vector is zero.
    """
    one, other = target.double(), donor.double()
    lengths = one.norm(), other.norm()
    if not min(lengths) > 0:
        return target + share * (donor - target)
    unit, second = one / lengths[0], other / lengths[1]
    angle = 2 * torch.atan2((unit - second).norm(), (unit + second).norm())
    sine = torch.sin(angle)
    if float(sine) < 1e-12:
        return target + share * (donor - target)
    return ((torch.sin((1 - share) * angle) * one + torch.sin(share * angle) * other) / sine).to(target.dtype)


def task_arithmetic(
    vectors: Float[Tensor, "donors *shape"], weights: Float[Tensor, "donors"]
) -> Float[Tensor, "*shape"]:
    """Σ wᵢ τᵢ (arXiv 2212.04089); a negative weight forgets. Donors that learned opposite things cancel."""
    return torch.tensordot(weights.to(vectors), vectors, dims=1)


def trimmed(vector: Float[Tensor, "*shape"], density: float) -> Float[Tensor, "*shape"]:
    """The ⌊d n⌋ of n entries largest in magnitude, the first ones where magnitudes tie, and zero elsewhere.

    Raises BadInput for a density outside [0, 1].
    """
    flat = vector.abs().flatten()
    count = int(_checked(density) * flat.numel())
    if count in (0, flat.numel()):
        return vector * float(count > 0)
    least = flat.kthvalue(flat.numel() - count + 1).values
    kept = flat > least
    kept |= (tied := flat == least) & (tied.cumsum(0) <= count - kept.sum())
    return vector * kept.view(vector.shape)


def elected(vectors: Float[Tensor, "donors *shape"]) -> Float[Tensor, "*shape"]:
    """The sign with the greater total magnitude at each entry, sgn Σ τᵢ; 0 where both totals are equal."""
    return vectors.sum(0).sign()


def disjoint_mean(vectors: Float[Tensor, "donors *shape"], weights: Float[Tensor, "donors"]) -> Float[Tensor, "*shape"]:
    """At each entry the mean of wᵢ τᵢ over the donors whose τᵢ has the elected sign; 0 where none has."""
    agree = (vectors.sign() == elected(vectors)) & (vectors != 0)
    return task_arithmetic(vectors * agree, weights) / agree.sum(0).clamp(min=1)


def ties(
    vectors: Float[Tensor, "donors *shape"], weights: Float[Tensor, "donors"], density: float
) -> Float[Tensor, "*shape"]:
    """`disjoint_mean` of each donor's `trimmed` vector: trim, elect a sign, merge (TIES, arXiv 2306.01708).

    The paper's λ is wᵢ, equal for all. It trims over all of a model's entries at once, this over each tensor's own, so
    that no tensor is left out and none but one is in memory. With one donor it is w₁ times the trimmed vector.
    """
    return disjoint_mean(torch.stack([trimmed(vector, density) for vector in vectors]), weights)


def dropped(vector: Float[Tensor, "*shape"], density: float, generator: torch.Generator) -> Float[Tensor, "*shape"]:
    """Each entry kept with probability d and divided by it, else zero, so that the expectation is the vector itself
    (DARE, arXiv 2311.03099); all zero at density 0, where there is nothing to rescale.

    It works where entries are small beside the weights, and fails where they are large, as after long training.
    Raises BadInput for a density outside [0, 1].
    """
    if _checked(density) in (0, 1):
        return vector * density
    return vector * (torch.rand(vector.shape, generator=generator) < density) / density


def dare(
    vectors: Float[Tensor, "donors *shape"],
    weights: Float[Tensor, "donors"],
    density: float,
    generator: torch.Generator,
) -> Float[Tensor, "*shape"]:
    """`task_arithmetic` of each donor's `dropped` vector."""
    return task_arithmetic(torch.stack([dropped(vector, density, generator) for vector in vectors]), weights)


def dare_ties(
    vectors: Float[Tensor, "donors *shape"],
    weights: Float[Tensor, "donors"],
    density: float,
    generator: torch.Generator,
) -> Float[Tensor, "*shape"]:
    """`disjoint_mean` of each donor's `dropped` vector: TIES with chance in the place of magnitude."""
    return disjoint_mean(torch.stack([dropped(vector, density, generator) for vector in vectors]), weights)


def random(
    vectors: Float[Tensor, "donors *shape"], weights: Float[Tensor, "donors"], generator: torch.Generator
) -> Float[Tensor, "*shape"]:
    """Σ wᵢ ‖τᵢ‖ gᵢ / ‖gᵢ‖ with normal gᵢ: as far from the target as task arithmetic goes, and nowhere in particular."""
    drawn = torch.randn(vectors.shape, generator=generator).flatten(1)
    lengths = vectors.flatten(1).norm(dim=1) / drawn.norm(dim=1).clamp(min=torch.finfo(drawn.dtype).tiny)
    return task_arithmetic((drawn * lengths[:, None]).view(vectors.shape), weights)


def conflicts(vectors: Float[Tensor, "donors *shape"]) -> Int[Tensor, ""]:
    """How many entries two donors would move in opposite directions."""
    return ((vectors > 0).any(0) & (vectors < 0).any(0)).sum()


def _checked(density: float) -> float:
    if not 0 <= density <= 1:
        raise BadInput(f"Expected a density from 0 to 1, got {density}; give the share of entries that are kept.")
    return density
