"""Where a site's state passes while a model runs, how it is read there, and how another is put in its place.

The hook of a place sees a module's positional inputs and, unless it stands before the module, its output. `read` gives
the state as the module holds it, [batch, tokens, width] or flattened to [batch · tokens, width]; `write` gives what
goes on in place of the module's output, or of its inputs.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from stages.errors import BadInput


@dataclass(frozen=True)
class Output:
    """The first or only thing that a module gives: a block's, an attention's or an MLP's output."""

    module: nn.Module
    before = False

    def read(self, inputs: tuple[Any, ...], output: Any) -> torch.Tensor:
        """The output's first tensor."""
        return output if isinstance(output, torch.Tensor) else output[0]

    def write(self, inputs: tuple[Any, ...], output: Any, state: torch.Tensor) -> Any:
        """The output with `state` as its first tensor."""
        return state if isinstance(output, torch.Tensor) else (state, *output[1:])


@dataclass(frozen=True)
class Overwritten(Output):
    """An output that what follows adds to in place: a copy is read, and a copy goes on."""

    def read(self, inputs: tuple[Any, ...], output: Any) -> torch.Tensor:
        """The output's first tensor as it is now."""
        return super().read(inputs, output).clone()

    def write(self, inputs: tuple[Any, ...], output: Any, state: torch.Tensor) -> Any:
        """The output with a copy of `state` as its first tensor."""
        return super().write(inputs, output, state.clone())


@dataclass(frozen=True)
class Channels:
    """Some channels of what enters a matrix: of attention's W_O one head's output, of an MLP's last matrix neurons."""

    module: nn.Module
    """The matrix."""
    channels: slice
    before = True

    def read(self, inputs: tuple[Any, ...], output: Any) -> torch.Tensor:
        """A view of the channels."""
        return inputs[0][..., self.channels]

    def write(self, inputs: tuple[Any, ...], output: Any, state: torch.Tensor) -> Any:
        """The matrix's inputs with `state` in these channels; the others keep theirs."""
        whole = inputs[0].clone()
        whole[..., self.channels] = state
        return (whole, *inputs[1:])


@dataclass(frozen=True)
class Router(Output):
    """The logits [batch · tokens, experts] by which a mixture chooses its experts."""

    def write(self, inputs: tuple[Any, ...], output: Any, state: torch.Tensor) -> Any:
        """What the router itself makes of the logits `state`: the experts that it chooses and their weights.

        Raises BadInput when this router's first output is not what its linear map gives.
        """
        if isinstance(output, torch.Tensor):
            return state
        with _Logits(state):
            chosen = self.module.forward(*inputs)
        if not torch.equal(chosen[0], state):
            raise BadInput(
                f"Expected a router that gives its logits first, got {type(self.module).__name__}, which does not; "
                "read this site without replacing it."
            )
        return chosen


class _Logits(TorchFunctionMode):
    """Inside the block every linear map gives `logits`; a router has one."""

    def __init__(self, logits: torch.Tensor) -> None:
        super().__init__()
        self.logits = logits

    def __torch_function__(self, func, types, args=(), kwargs=None):
        return self.logits if func is nn.functional.linear else func(*args, **(kwargs or {}))


@dataclass(frozen=True)
class Expert:
    """What one expert gives, before the router's weight, for the tokens routed to it; zero for the others.

    A mixture's experts are stacked in one module, which gives the weighted sum alone; so this expert runs once more, on
    its own tokens. MLP output without shared experts = sum over experts of weight · expert.
    """

    module: nn.Module
    """The stack: forward(states [tokens, width], experts [tokens, k], weights [tokens, k])."""
    index: int
    before = False

    def read(self, inputs: tuple[Any, ...], output: torch.Tensor) -> torch.Tensor:
        """The expert's output [batch · tokens, width]."""
        states, chosen, weights = inputs
        rows = (chosen == self.index).any(-1).nonzero()[:, 0]
        own = torch.zeros_like(output)
        if len(rows):
            alone = chosen.new_full((len(rows), 1), self.index)
            own[rows] = self.module.forward(states[rows], alone, weights.new_ones(len(rows), 1)).to(own.dtype)
        return own

    def write(self, inputs: tuple[Any, ...], output: torch.Tensor, state: torch.Tensor) -> torch.Tensor:
        """The sum with `state` in place of the expert's output, at the tokens routed to it."""
        _, chosen, weights = inputs
        weight = (weights * (chosen == self.index)).sum(-1, keepdim=True)
        return output + (weight * (state - self.read(inputs, output))).to(output.dtype)


Place = Output | Channels | Expert
