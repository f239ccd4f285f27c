"""Several donors' modules and states that change one block of the target together."""

import torch
from torch import nn
from torch.nn.functional import layer_norm

from .bridge import Bridge
from .call import Call
from .implant import Implanted

COMBINERS = ("softmax", "attention")


class Spoken(nn.Module):
    """A donor's states as a change of the target's: B d − m · h, with m = 1 for the mix `delta` and 0 for `add`.

    For `add` a linear bridge starts at 0; `silent` says so.
    """

    def __init__(self, bridge: str, mix: str, donor_width: int, target_width: int, donor: int, taken: int):
        super().__init__()
        self.bridge = Bridge(bridge, donor_width, target_width)
        self.mix, self.donor, self.taken = mix, donor, taken
        self.silent = bridge == "linear" and mix == "add"
        if self.silent:
            nn.init.zeros_(self.bridge.map.weight)
            nn.init.zeros_(self.bridge.map.bias)

    def forward(self, call: Call, h: torch.Tensor) -> torch.Tensor:
        """The change [batch, new tokens, width] of `h` of that shape; none where the donor has read nothing yet."""
        states, known = call.states(self.donor, self.taken)
        x = self.bridge(states)
        change = x - h if self.mix == "delta" else x
        return change if known is None else change * known[..., None].to(change.dtype)


class Fusion(nn.Module):
    """h ← h + Σⱼ wⱼ rⱼ xⱼ over the members' changes xⱼ, where the shares w, and that of doing nothing, sum to 1.

    `attention`: w = softmax([0, q · kⱼ / √32 + bⱼ]) with q = Q n(h) and kⱼ = K n(xⱼ), as AdapterFusion combines
    adapters (arXiv 2005.00247), but with a null option and the values as they are. `softmax`: w = softmax([0, uⱼ · n(h)
    + vⱼ · n(xⱼ) + bⱼ]). n is the layer norm. A member that is a donor's module sees what enters the block; h is what
    leaves it. The graft starts as the target bit for bit: r, learned, is 0 at first, or 1 for a member that is silent.
    """

    def __init__(self, layer: int, combiner: str, members: list[dict], target_width: int):
        super().__init__()
        if combiner not in COMBINERS:
            raise ValueError(f"Expected a combiner {' or '.join(COMBINERS)}, got {combiner!r}; name one of these.")
        self.layer, self.combiner = layer, combiner
        self.members = nn.ModuleList(
            (Implanted if "organ" in each else Spoken)(**each, target_width=target_width) for each in members
        )
        count = len(members)
        self.rise = nn.Parameter(torch.tensor([float(member.silent) for member in self.members]))
        self.bias = nn.Parameter(torch.zeros(count))
        if combiner == "attention":
            self.query = nn.Linear(target_width, 32, bias=False)
            self.key = nn.Linear(target_width, 32, bias=False)
        else:
            self.read = nn.Parameter(torch.zeros(count, 2, target_width))

    def shares(self, h: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        """[batch, tokens, 1 + members], of nothing and of each, for `h` and `x` [batch, tokens, members, width]."""
        h, x = layer_norm(h, h.shape[-1:]), layer_norm(x, x.shape[-1:])
        if self.combiner == "attention":
            query, key = self.query(h), self.key(x)
            told = (key * query[..., None, :]).sum(-1) / key.shape[-1] ** 0.5
        else:
            told = (h[..., None, :] * self.read[:, 0] + x * self.read[:, 1]).sum(-1)
        told = told + self.bias
        return torch.cat([torch.zeros_like(told[..., :1]), told], dim=-1).softmax(-1)

    def forward(self, call: Call, entered: torch.Tensor, h: torch.Tensor) -> torch.Tensor:
        """New states [batch, tokens, width], for `entered` and `h` of that shape, before and after the block."""
        x = torch.stack([m(call, entered if isinstance(m, Implanted) else h) for m in self.members], dim=-2)
        weights = self.shares(h, x)[..., 1:] * self.rise
        return h + (weights[..., None] * x).sum(-2)

    def attach(self, call: Call) -> None:
        """Takes hold of the target's block for one pass."""
        entered: list[torch.Tensor] = []

        def enter(h: torch.Tensor) -> torch.Tensor:
            entered.append(h)
            return h

        call.before(call.block(self.layer), enter)
        call.after(call.block(self.layer), lambda h: self(call, entered[0], h))
