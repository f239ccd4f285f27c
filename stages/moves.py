"""How far a graft's weights are from the target's, tensor by tensor."""

import re
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch

from stages.making import Curve, curve


@dataclass
class Moves:
    """Gathered as tensors pass, sums in float64."""

    moved: int = 0
    """Entries that differ."""
    size: dict[int, float] = field(default_factory=lambda: defaultdict(float))
    """‖target‖² by block, -1 for what is in none."""
    move: dict[int, float] = field(default_factory=lambda: defaultdict(float))
    """‖graft − target‖², likewise."""

    def note(self, name: str, before: torch.Tensor, after: torch.Tensor) -> None:
        """Takes in a tensor by its dotted name, whose first number is the block's."""
        match = re.search(r"\.(\d+)\.", name)
        block = int(match[1]) if match else -1
        change = after.float() - before.float()
        self.moved += int((change != 0).sum())
        self.size[block] += float(before.double().square().sum())
        self.move[block] += float(change.double().square().sum())

    @property
    def length(self) -> float:
        """‖graft − target‖"""
        return sum(self.move.values()) ** 0.5

    @property
    def figures(self) -> dict[str, float | None]:
        """The move's length over that of the target's weights."""
        whole = sum(self.size.values()) ** 0.5
        return {"relative_move": self.length / whole if whole else None}

    @property
    def curves(self) -> Mapping[str, Curve]:
        """The same by block."""
        points = [
            (block, (self.move[block] / size) ** 0.5) for block, size in sorted(self.size.items()) if block >= 0 < size
        ]
        return {"Change of the weights by block": curve("block", "‖graft − target‖ / ‖target‖", points)}
