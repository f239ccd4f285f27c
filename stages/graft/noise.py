"""Noise that a position in a text always receives alike."""

import torch


class Normal:
    """Standard normal rows by index: the same row whenever and in whatever order they are asked for."""

    def __init__(self, seed: int):
        self._generator = torch.Generator().manual_seed(seed)
        self._rows: list[torch.Tensor] = []

    def rows(self, index: torch.Tensor, width: int) -> torch.Tensor:
        """[batch, tokens, width] for `index` [batch, tokens]; all calls ask for one width."""
        while len(self._rows) <= int(index.max()):
            self._rows.append(torch.randn(width, generator=self._generator))
        return torch.stack(self._rows).to(index.device)[index]
