"""How many of an MLP's neurons are at work, how unevenly, and whether they are another model's."""

import torch
from jaxtyping import Float
from torch import Tensor


def active_share(neurons: Float[Tensor, "rows neurons"]) -> float:
    """Mean over rows of (mean |a|)² / mean a², the sparseness of Treves and Rolls (1991, Network 2:371).

    The share of neurons at work, without a threshold: f where a share f of them are equally active and the others
    silent; 2/π for Gaussian values. Rows of zeros count as 0.
    """
    sizes = neurons.double().abs()
    square = sizes.square().mean(1)
    return torch.where(square > 0, sizes.mean(1).square() / square, 0.0).mean().item()


def gini(neurons: Float[Tensor, "rows neurons"]) -> float:
    """Mean over rows of the Gini coefficient of |a|: 0 where all neurons are equally active, 1 - 1/n for one of n.

    (2 Σ i·a₍ᵢ₎ / Σ a - (n + 1)) / n with a₍ᵢ₎ in rising order, i from 1. Rows of zeros count as 0.
    """
    sizes = neurons.double().abs().sort(dim=1).values
    count, total = sizes.shape[1], sizes.sum(1)
    ranked = 2 * (sizes @ torch.arange(1, count + 1, dtype=torch.float64, device=sizes.device))
    return torch.where(total > 0, (ranked / total - (count + 1)) / count, 0.0).mean().item()


def top_overlap(one: Float[Tensor, "rows neurons"], other: Float[Tensor, "rows neurons"], share: float = 0.05) -> float:
    """Which part of the neurons most active in one, by mean |a| over rows, is also among those of the other.

    1 for the same neurons; about `share` by chance. At least one neuron is taken of each.
    """
    count = max(1, round(share * one.shape[1]))
    top = [set(each.abs().double().mean(0).topk(count).indices.tolist()) for each in (one, other)]
    return len(top[0] & top[1]) / count
