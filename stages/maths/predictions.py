"""How near one next-token prediction is to another."""

from jaxtyping import Float
from torch import Tensor


def top_agreement(final: Float[Tensor, "positions vocabulary"], other: Float[Tensor, "positions vocabulary"]) -> float:
    """The share of positions at which both logits put the same token first."""
    return (final.argmax(1) == other.argmax(1)).double().mean().item()


def divergence(final: Float[Tensor, "positions vocabulary"], other: Float[Tensor, "positions vocabulary"]) -> float:
    """Mean over positions of KL(final ‖ other), from logits, nats."""
    p, q = final.log_softmax(1), other.log_softmax(1)
    return (p.exp() * (p - q)).sum(1).double().mean().item()
