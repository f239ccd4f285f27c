"""Whether a donor is worth running: a cheap read of the target's early states."""

import torch
from torch import nn
from torch.nn.functional import layer_norm

from .call import Call


class Condition(nn.Module):
    """A row opens at its first real token where w · n(h) + b > 0, with h leaving an early block and n the layer norm.

    It stays open from that token on; before it, and in rows that never open, the donor is not heard. So what a token
    gets depends on nothing to its right and on no other row, with a cache as without. In a pass where no row is open
    the donor does not run.
    """

    def __init__(self, donor: int, layer: int, width: int):
        super().__init__()
        self.donor, self.layer = donor, layer
        self.read = nn.Linear(width, 1)

    def forward(self, h: torch.Tensor) -> torch.Tensor:
        """Evidence [batch, tokens] that the gate will open, from states [batch, tokens, width]."""
        return self.read(layer_norm(h, h.shape[-1:])).squeeze(-1)

    def attach(self, call: Call) -> None:
        """Takes hold of the target's block for one pass, and changes nothing in it."""
        call.after(call.block(self.layer), lambda h: self._decide(call, h))

    def _decide(self, call: Call, h: torch.Tensor) -> torch.Tensor:
        opened = self(h) > 0
        if call.mask is not None:
            opened = opened & call.mask[:, -h.shape[1] :].bool()
        opened = opened.cumsum(1) > 0
        heard = call.memory(f"condition of donor {self.donor}")
        if heard is not None:
            if heard.opened is not None:
                opened = opened | heard.opened[:, -1:]
            heard.opened = opened if heard.opened is None else torch.cat([heard.opened, opened], dim=1)
        call.limit(self.donor, opened)
        return h
