"""Noise that a position in a text always receives alike."""

import torch


class Normal:
    """Standard normal rows by index: the same row whenever and in whatever order they are asked for."""

    def __init__(self, seed: int):
        self.seed = seed
        self._rows = torch.empty(0, 0)

    def rows(self, index: torch.Tensor, width: int) -> torch.Tensor:
        """[batch, tokens, width] for `index` [batch, tokens]."""
        needed = int(index.max()) + 1
        if len(self._rows) < needed or self._rows.shape[1] != width:
            generator = torch.Generator().manual_seed(self.seed)
            # Row by row, so that a longer table begins with the shorter one
            self._rows = torch.stack([torch.randn(width, generator=generator) for _ in range(2 * needed)])
        return self._rows.to(index.device)[index]

    def disturb(self, state: torch.Tensor, amount: float, index: torch.Tensor) -> torch.Tensor:
        """state + amount · rms(state) · ε [batch, tokens, width], rms the token's own, ε the row of its `index`."""
        rms = state.float().square().mean(-1, keepdim=True).sqrt()
        return (state + amount * rms * self.rows(index.to(state.device), state.shape[-1])).to(state.dtype)
