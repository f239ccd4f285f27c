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


def own_share(whole: Float[Tensor, "rows width"], local: Float[Tensor, "rows width"]) -> float:
    """Σ ⟨local, whole⟩ / Σ ‖whole‖², the part of a change that a module's own weights make.

    `whole` is the change at a site when each model runs on its own input, `local` when the donor's module there is
    given the target's input. 1 where the change arises in the module, 0 where it is handed on from before it; above 1
    or below 0 where what comes in works against it. NaN where nothing changes.
    """
    return ((local.double() * whole.double()).sum() / whole.double().square().sum()).item()
