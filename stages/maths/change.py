"""How far and how steadily one model's states depart from another's on the same tokens."""

import torch
from jaxtyping import Float, Int
from torch import Tensor


def relative_change(target: Float[Tensor, "rows width"], donor: Float[Tensor, "rows width"]) -> float:
    """Mean over rows of ‖d - t‖ / ‖t‖; 0 for equal states, not finite where a target's state is zero."""
    return ((donor - target).norm(dim=1) / target.norm(dim=1)).double().mean().item()


def norm_ratio(target: Float[Tensor, "rows width"], donor: Float[Tensor, "rows width"]) -> float:
    """The donor's mean row norm over the target's."""
    return (donor.norm(dim=1).double().mean() / target.norm(dim=1).double().mean()).item()


def consistency(
    target: Float[Tensor, "rows width"], donor: Float[Tensor, "rows width"], prompt: Int[Tensor, "rows"]
) -> float:
    """Mean over prompts of the cosine between a prompt's mean change d - t and the mean change of all other prompts.

    1 when every prompt moves the same way; about 0 when they move independently, however few they are, because a
    prompt is not compared with itself. NaN for a single prompt and where nothing changes.
    """
    index = torch.unique(prompt, return_inverse=True)[1]
    sums = torch.zeros(int(index.max()) + 1, target.shape[1], dtype=torch.float64)
    sums.index_add_(0, index, (donor - target).double())
    means = sums / index.bincount()[:, None]
    others = (means.sum(0) - means) / (len(means) - 1)
    lengths = means.norm(dim=1) * others.norm(dim=1)
    return ((means * others).sum(1) / lengths).mean().item()
