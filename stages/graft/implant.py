"""A donor's module that works between two bridges inside the target."""

import torch
from torch import nn
from transformers import AutoConfig

from .bridge import Bridge
from .call import Call
from .gate import Gate
from .organ import Organ


class Implanted(nn.Module):
    """B_out M(B_in h): bridge, donor's module, bridge.

    For the mix `add`, a learned bridge that is not near the identity starts with B_out = 0 (as adapters do, arXiv
    1902.00751); `silent` says so.
    """

    def __init__(self, organ: dict, bridge: str, mix: str, donor_width: int, target_width: int, name: str):
        super().__init__()
        if mix not in ("delta", "add"):
            raise ValueError(f"Expected mix delta or add, got {mix!r}; name one of these.")
        self.enter = Bridge(bridge, target_width, donor_width)
        self.organ = Organ(AutoConfig.for_model(**organ["config"]), organ["blocks"], organ["part"], organ["lone"])
        self.leave = Bridge(bridge, donor_width, target_width)
        self.mix, self.name = mix, name  # what it remembers in a generation goes by the name
        self.silent = bridge == "linear" and mix == "add"
        if self.silent:
            nn.init.zeros_(self.leave.map.weight)
            nn.init.zeros_(self.leave.map.bias)

    def forward(self, call: Call, h: torch.Tensor) -> torch.Tensor:
        """What the module gives [batch, new tokens, width] for the target's states `h` of that shape."""
        return self.leave(self.organ(self.enter(h), call.mask, call.memory(self.name)))


class Implant(nn.Module):
    """b ← b + α · r · g(h, y) ⊙ (y − m · b) with y = B_out M(B_in h), m = 1 for the mix `delta` and 0 for `add`.

    h is the state that enters the target's block `layer`, b what the block, its attention or its MLP (`site`, a dotted
    name in the target) adds to the stream. Whatever is learned, the graft starts as the target bit for bit: r, learned
    too, is 0 at first (arXiv 2003.04887), or 1 where B_out is 0. With nothing to learn r is 1.
    """

    def __init__(
        self,
        organ: dict,
        gate: str,
        bridge: str,
        mix: str,
        alpha: float,
        donor_width: int,
        target_width: int,
        layer: int,
        site: str,
        name: str = "implant",
    ):
        super().__init__()
        self.implanted = Implanted(organ, bridge, mix, donor_width, target_width, name)
        self.gate = Gate(gate, target_width)
        self.alpha, self.layer, self.site = alpha, layer, site
        self.rise = None
        if gate not in ("identity", "closed") or bridge != "identity":
            self.rise = nn.Parameter(torch.full((1,), float(self.implanted.silent)))

    def forward(self, call: Call, h: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        """The change of `b` [batch, tokens, width], for the states `h` of that shape."""
        y = self.implanted(call, h)
        change = self.gate(h, y) * (y - b if self.implanted.mix == "delta" else y)
        return self.alpha * (change if self.rise is None else self.rise * change)

    def attach(self, call: Call) -> None:
        """Takes hold of the target's block for one pass; behind a closed gate the donor's module rests."""
        block, module = call.block(self.layer), call.target.get_submodule(self.site)
        entered: list[torch.Tensor] = []

        def enter(h: torch.Tensor) -> torch.Tensor:
            entered.append(h)
            return h

        def leave(out: torch.Tensor) -> torch.Tensor:
            (h,) = entered
            if self.gate.kind == "closed":
                return out
            told = out.view(h.shape)
            return (told + self(call, h, told - h if module is block else told)).view(out.shape)

        call.before(block, enter)
        call.after(module, leave)
