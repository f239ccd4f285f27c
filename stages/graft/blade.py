"""A donor whose hidden states are injected into the target while it runs."""

import torch
from torch import nn

from .bridge import Bridge
from .call import Call
from .gate import Gate


class Injection(nn.Module):
    """h ← h + α · g(h, B d) ⊙ (B d − m · h), with m = 1 for the mix `delta` and 0 for `add`.

    d is the donor's state for the same text, B the bridge, g the gate. `add` with an identity gate is the formula of
    the literature. A learned α is 2 σ(a) with a = 0 at the start: it stays between 0 and 2 whatever training does.
    """

    def __init__(
        self,
        gate: str,
        bridge: str,
        mix: str,
        alpha: float | str,
        donor_width: int,
        target_width: int,
        layer: int = 0,
        donor: int = 0,
        taken: int = 0,
        bridges: int = 1,
    ):
        super().__init__()
        if mix not in ("delta", "add"):
            raise ValueError(f"Expected mix delta or add, got {mix!r}; name one of these.")
        if isinstance(alpha, str) and alpha != "learned":
            raise ValueError(f"Expected alpha to be a number or learned, got {alpha!r}; give one of these.")
        self.gate = Gate(gate, target_width)
        self.bridge = Bridge(bridge, donor_width, target_width, bridges)
        self.mix = mix
        self.alpha = nn.Parameter(torch.zeros(1)) if isinstance(alpha, str) else alpha
        self.layer, self.donor, self.taken = layer, donor, taken  # the target's block, and whose states it takes

    def forward(self, h: torch.Tensor, d: torch.Tensor, known: torch.Tensor | None = None) -> torch.Tensor:
        """New states [batch, tokens, width] from the target's `h` and the donor's `d` [batch, tokens, donor width].

        Tokens where `known` [batch, tokens] is False, since the donor has read nothing yet, stay as they are.
        """
        x = self.bridge(d)
        change = self.gate(h, x) * (x - h if self.mix == "delta" else x)
        if known is not None:
            change = change * known[..., None].to(change.dtype)
        return h + (2 * self.alpha.sigmoid() if isinstance(self.alpha, nn.Parameter) else self.alpha) * change

    def change(self, call: Call, h: torch.Tensor) -> torch.Tensor:
        """New states for the target's `h` [batch, new tokens, width]; a closed gate lets the donor rest."""
        return h if self.gate.kind == "closed" else self(h, *call.states(self.donor, self.taken))

    def attach(self, call: Call) -> None:
        """Takes hold of the target's block for one pass."""
        call.after(call.block(self.layer), lambda h: self.change(call, h))
