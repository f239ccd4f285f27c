"""Several donors' hidden states injected at one place under one gate that shares a budget."""

import torch
from torch import nn
from torch.nn.functional import layer_norm

from .bridge import Bridge
from .call import Call


class Budget(nn.Module):
    """What each of several blades gets at a token, out of less than 1 for all.

    g = softmax(0, l_1, …, l_n) without its first entry, the amount of nothing at all; l_i = u_i · n(h) + v_i · n(x_i)
    + b_i from the target's state h and the incoming state x_i, with n the layer norm. With one blade this is the token
    gate, σ(l_1). It fails where two blades are needed at one token in full.
    """

    def __init__(self, count: int, width: int):
        super().__init__()
        self.reads = nn.ModuleList(nn.Linear(2 * width, 1) for _ in range(count))
        for read in self.reads:
            nn.init.zeros_(read.weight)
            nn.init.zeros_(read.bias)

    def forward(self, h: torch.Tensor, x: list[torch.Tensor], known: list[torch.Tensor | None]) -> torch.Tensor:
        """Amounts [batch, tokens, blades] from states `h` and each of `x` [batch, tokens, width].

        A blade whose donor has read nothing yet, where `known` [batch, tokens] is False, gets nothing.
        """
        own = layer_norm(h, h.shape[-1:])
        logits = [h.new_zeros(*h.shape[:-1], 1)]
        for read, incoming, where in zip(self.reads, x, known, strict=True):
            logit = read(torch.cat([own, layer_norm(incoming, incoming.shape[-1:])], dim=-1))
            logits.append(logit if where is None else logit.masked_fill(~where[..., None], -torch.inf))
        return torch.cat(logits, dim=-1).softmax(-1)[..., 1:]


class Shared(nn.Module):
    """h ← h + α · Σ_i g_i (B_i d_i − m · h), with m = 1 for the mix `delta` and 0 for `add`.

    d_i is the state of a donor for the same text, B_i its bridge, g the amounts that share a budget.
    """

    def __init__(self, mix: str, alpha: float, target_width: int, layer: int, sources: list[dict]):
        """`sources`: for each blade `{donor, taken, bridge, donor_width}`."""
        super().__init__()
        if mix not in ("delta", "add"):
            raise ValueError(f"Expected mix delta or add, got {mix!r}; name one of these.")
        self.mix, self.alpha, self.layer = mix, alpha, layer
        self.sources = [(each["donor"], each["taken"]) for each in sources]
        self.bridges = nn.ModuleList(Bridge(each["bridge"], each["donor_width"], target_width) for each in sources)
        self.gate = Budget(len(sources), target_width)

    def forward(self, h: torch.Tensor, d: list[torch.Tensor], known: list[torch.Tensor | None]) -> torch.Tensor:
        """New states [batch, tokens, width] from `h` and each blade's donor's states [batch, tokens, donor width]."""
        x = [bridge(states) for bridge, states in zip(self.bridges, d, strict=True)]
        change = torch.zeros_like(h)
        for incoming, amount in zip(x, self.gate(h, x, known).unbind(-1), strict=True):
            change = change + amount[..., None] * (incoming - h if self.mix == "delta" else incoming)
        return h + self.alpha * change

    def change(self, call: Call, h: torch.Tensor) -> torch.Tensor:
        """New states for the target's `h` [batch, new tokens, width]."""
        d, known = zip(*(call.states(donor, taken) for donor, taken in self.sources), strict=True)
        return self(h, list(d), list(known))

    def attach(self, call: Call) -> None:
        """Takes hold of the target's block for one pass."""
        call.after(call.block(self.layer), lambda h: self.change(call, h))
