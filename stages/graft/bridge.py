"""A map from a donor's hidden space to the target's."""

import torch
from torch import nn

KINDS = ("identity", "linear")


class Bridge(nn.Module):
    """`identity` leaves states of equal width as they are; `linear` is a layer norm and an affine map."""

    def __init__(self, kind: str, donor_width: int, target_width: int):
        super().__init__()
        if kind not in KINDS:
            raise ValueError(f"Expected a bridge of kind {', '.join(KINDS)}, got {kind!r}; name one of these.")
        if kind == "identity" and donor_width != target_width:
            raise ValueError(
                f"The donor has width {donor_width} and the target {target_width}, so the identity cannot bridge them; "
                "set bridge: linear."
            )
        self.kind = kind
        if kind == "linear":
            self.norm = nn.LayerNorm(donor_width)
            self.map = nn.Linear(donor_width, target_width)

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        """Donor states [..., donor width] as target states [..., target width]."""
        return states if self.kind == "identity" else self.map(self.norm(states))
