"""A map from a donor's hidden space to the target's."""

import torch
from torch import nn

KINDS = ("identity", "linear", "residual")


class Bridge(nn.Module):
    """`identity` leaves states of equal width as they are; `linear` is a layer norm n and an affine map A n(d) + b.

    `residual` is d + A n(d) + b for equal widths, and starts as the identity.
    """

    def __init__(self, kind: str, donor_width: int, target_width: int):
        super().__init__()
        if kind not in KINDS:
            raise ValueError(f"Expected a bridge of kind {', '.join(KINDS)}, got {kind!r}; name one of these.")
        if kind != "linear" and donor_width != target_width:
            raise ValueError(
                f"The donor has width {donor_width} and the target {target_width}, which {kind!r} cannot bridge; "
                "set bridge: linear."
            )
        self.kind = kind
        if kind != "identity":
            self.norm = nn.LayerNorm(donor_width)
            self.map = nn.Linear(donor_width, target_width)
        if kind == "residual":
            nn.init.zeros_(self.map.weight)
            nn.init.zeros_(self.map.bias)

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        """Donor states [..., donor width] as target states [..., target width]."""
        if self.kind == "identity":
            return states
        mapped = self.map(self.norm(states))
        return states + mapped if self.kind == "residual" else mapped
