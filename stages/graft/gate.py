"""The learned amount of an injection."""

import torch
from torch import nn
from torch.nn.functional import layer_norm

KINDS = ("identity", "closed", "scalar", "sigmoid", "linear", "softmax", "token", "channel")
"""`sigmoid`, `linear` and `softmax` are the vector gates: one amount a channel, the same for every token."""


class Gate(nn.Module):
    """How much of an injection each token, or each channel of it, receives.

    `identity` is 1 and `closed` 0; `scalar` is sigmoid(a); the vector gates are sigmoid(a), a and width · softmax(a)
    for a in R^width; `token` is sigmoid(u · n(h) + v · n(x) + b), one amount a token from the target's state h and the
    incoming state x, with n the layer norm; `channel` is sigmoid(U tanh(V [n(h), n(x)]) + b) with V of 32 rows.
    """

    def __init__(self, kind: str, width: int):
        super().__init__()
        if kind not in KINDS:
            raise ValueError(f"Expected a gate of kind {', '.join(KINDS)}, got {kind!r}; name one of these.")
        self.kind = kind
        if kind == "scalar":
            self.amount = nn.Parameter(torch.zeros(1))
        elif kind in ("sigmoid", "softmax"):
            self.amount = nn.Parameter(torch.zeros(width))
        elif kind == "linear":
            self.amount = nn.Parameter(torch.full((width,), 0.5))
        elif kind == "token":
            self.read = nn.Linear(2 * width, 1)
            nn.init.zeros_(self.read.weight)
            nn.init.zeros_(self.read.bias)
        elif kind == "channel":
            self.read = nn.Linear(2 * width, 32, bias=False)
            self.open = nn.Linear(32, width)
            nn.init.zeros_(self.open.weight)
            nn.init.zeros_(self.open.bias)

    def forward(self, h: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        """Amounts that broadcast over [batch, tokens, width], for states `h` and `x` of that shape."""
        if self.kind in ("identity", "closed"):
            return h.new_full((1,), float(self.kind == "identity"))
        if self.kind in ("scalar", "sigmoid"):
            return self.amount.sigmoid()
        if self.kind == "softmax":
            return self.amount.softmax(-1) * self.amount.numel()
        if self.kind == "linear":
            return self.amount
        both = torch.cat([layer_norm(h, h.shape[-1:]), layer_norm(x, x.shape[-1:])], dim=-1)
        if self.kind == "token":
            return self.read(both).sigmoid()
        return self.open(self.read(both).tanh()).sigmoid()

    @torch.no_grad()
    def shut(self) -> None:
        """Begins at sigmoid(−4) = 0.018 where the amount is a sigmoid; other kinds stay as they are."""
        deciding = {"token": "read.bias", "channel": "open.bias", "scalar": "amount", "sigmoid": "amount"}
        if self.kind in deciding:
            self.get_parameter(deciding[self.kind]).fill_(-4.0)
