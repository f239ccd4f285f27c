"""How widely heads attend, and how alike two models' heads attend."""

import math

import torch
from jaxtyping import Float
from torch import Tensor


def attention_entropy(patterns: Float[Tensor, "heads queries keys"]) -> Float[Tensor, "heads"]:
    """Mean over queries of the entropy of what each attends to, nats.

    0 for a head that looks at one token, log(keys) for one that looks at all alike; keys of weight 0 add nothing.
    """
    return torch.special.entr(patterns.double()).sum(-1).mean(-1)


def head_similarity(
    one: Float[Tensor, "heads queries keys"], other: Float[Tensor, "heads queries keys"]
) -> Float[Tensor, "heads"]:
    """Mean over queries of 1 less the Jensen-Shannon divergence in bits (Lin 1991, doi:10.1109/18.61115).

    1 where both attend alike, 0 where they never look at the same token. Heads are compared in order, which means
    something only between models of one ancestry.
    """
    first, second = one.double(), other.double()
    mixed = torch.special.entr((first + second) / 2).sum(-1)
    apart = (torch.special.entr(first).sum(-1) + torch.special.entr(second).sum(-1)) / 2
    return 1 - ((mixed - apart) / math.log(2)).mean(-1)
