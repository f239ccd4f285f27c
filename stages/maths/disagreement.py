"""How far two models' predictions of the next token are apart."""

from jaxtyping import Float
from torch import Tensor


def jensen_shannon(one: Float[Tensor, "rows vocab"], other: Float[Tensor, "rows vocab"]) -> Float[Tensor, "rows"]:
    """(KL(p ‖ m) + KL(q ‖ m)) / 2 with m = (p + q) / 2, in nats, of two models' logits: from 0 to ln 2, symmetric.

    Lin 1991 (DOI 10.1109/18.61115).
    """
    p, q = one.double().softmax(-1), other.double().softmax(-1)
    m = (p + q) / 2
    return sum((each * (each.clamp(min=1e-300) / m.clamp(min=1e-300)).log()).sum(-1) for each in (p, q)) / 2  # type: ignore[return-value]
