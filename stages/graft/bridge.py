"""A map from a donor's hidden space to the target's."""

import torch
from torch import nn

KINDS = ("identity", "linear", "residual", "mixture")


class Bridge(nn.Module):
    """`identity` leaves states of equal width as they are; `linear` is a layer norm n and an affine map A n(d) + b.

    `residual` is d + A n(d) + b for equal widths, and starts as the identity. `mixture` is Σ gⱼ (Aⱼ n(d) + bⱼ) over so
    many `bridges`, with the shares g = softmax(G n(d) + c), which start equal.
    """

    def __init__(self, kind: str, donor_width: int, target_width: int, bridges: int = 1):
        super().__init__()
        if kind not in KINDS:
            raise ValueError(f"Expected a bridge of kind {', '.join(KINDS)}, got {kind!r}; name one of these.")
        if kind not in ("linear", "mixture") and donor_width != target_width:
            raise ValueError(
                f"The donor has width {donor_width} and the target {target_width}, which {kind!r} cannot bridge; "
                "set bridge: linear."
            )
        self.kind, self.bridges = kind, bridges
        if kind != "identity":
            self.norm = nn.LayerNorm(donor_width)
            self.map = nn.Linear(donor_width, bridges * target_width)
        if kind == "mixture":
            self.share = nn.Linear(donor_width, bridges)
            nn.init.zeros_(self.share.weight)
            nn.init.zeros_(self.share.bias)
        if kind == "residual":
            nn.init.zeros_(self.map.weight)
            nn.init.zeros_(self.map.bias)

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        """Donor states [..., donor width] as target states [..., target width]."""
        if self.kind == "identity":
            return states
        normed = self.norm(states)
        mapped = self.map(normed)
        if self.kind == "mixture":
            shares = self.share(normed).softmax(-1)  # [..., bridges]
            return (shares[..., None] * mapped.unflatten(-1, (self.bridges, -1))).sum(-2)
        return states + mapped if self.kind == "residual" else mapped
