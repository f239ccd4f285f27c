"""A block's feed-forward network as neurons, whatever matrices hold them: read, chosen, put into another."""

from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from stages.anatomy.blocks import blocks, mlp_of
from stages.anatomy.places import Channels
from stages.anatomy.sites import sites_of
from stages.errors import BadInput
from stages.maths.affine import Affine

WIDTHS = ("ffn_hidden_size", "ffn_dim", "n_inner", "intermediate_size")
"""The configuration's names for the number of neurons."""


@dataclass(frozen=True)
class Neurons:
    """h ↦ Σ_j a_j down_j + out_bias, with a_j = f(up_j · h + up_bias_j), or f(gate_j · h + …) (up_j · h + …)."""

    up: Float[Tensor, "neurons width"]
    down: Float[Tensor, "neurons width"]
    gate: Float[Tensor, "neurons width"] | None = None
    up_bias: Float[Tensor, "neurons"] | None = None
    gate_bias: Float[Tensor, "neurons"] | None = None
    out_bias: Float[Tensor, "width"] | None = None

    def __len__(self) -> int:
        return len(self.up)

    @property
    def parameters(self) -> int:
        """Of one neuron."""
        rows = (getattr(self, f.name) for f in fields(self) if f.name != "out_bias")
        return sum(each[0].numel() for each in rows if each is not None)

    def _each(self, change: Any) -> "Neurons":
        """Neurons whose rows `change` made of these; the bias of the whole stays."""
        rows = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "out_bias"}
        made = {name: change(name, value) for name, value in rows.items() if value is not None}
        return replace(self, **made)

    def __getitem__(self, index: Tensor) -> "Neurons":
        """Those of `index` [chosen], in its order."""
        return self._each(lambda _, rows: rows[index])

    def widened(self, count: int) -> "Neurons":
        """`count` neurons: these, and others of zeros, which write nothing."""
        return self._each(lambda _, rows: torch.cat([rows, rows.new_zeros(count - len(rows), *rows.shape[1:])]))

    def beside(self, others: "Neurons") -> "Neurons":
        """These and `others`, whose sum is the sum of both."""
        joined = self._each(lambda name, rows: torch.cat([rows, getattr(others, name).to(rows)]))
        bias = None if self.out_bias is None or others.out_bias is None else self.out_bias + others.out_bias
        return replace(joined, out_bias=bias)

    def scaled(self, strength: float) -> "Neurons":
        """What they write, times `strength`."""
        bias = None if self.out_bias is None else self.out_bias * strength
        return replace(self, down=self.down * strength, out_bias=bias)

    def bridged(self, into: Affine, out: Affine) -> "Neurons":
        """The same neurons in another hidden space: `into` maps its states to the ones that they read, `out` what they
        write to it. Intercepts are not used."""
        gate = None if self.gate is None else self.gate @ into.weight.T
        bias = None if self.out_bias is None else self.out_bias @ out.weight
        return Neurons(self.up @ into.weight.T, self.down @ out.weight, gate, self.up_bias, self.gate_bias, bias)

    def sizes(self) -> Float[Tensor, "neurons"]:
        """‖up_j‖ ‖down_j‖, times ‖gate_j‖ if gated; scaling a neuron's input up and its output down changes nothing."""
        read = self.up.norm(dim=1) * (1 if self.gate is None else self.gate.norm(dim=1))
        return read * self.down.norm(dim=1)


@dataclass(frozen=True)
class FeedForward:
    """The matrices of one block's feed-forward network."""

    up: nn.Module
    """Where gates and values come out of one matrix, that one: gates first."""
    gate: nn.Module | None
    down: nn.Module
    fused: bool
    activation: str

    @property
    def form(self) -> str:
        """What two must share for neurons of one to work in the other."""
        gated = "gated" if self.fused or self.gate is not None else "plain"
        biases = "".join(" biased" if _bias(each) is not None else " unbiased" for each in (self.up, self.down))
        return f"{gated} {self.activation}{biases}"

    def neurons(self) -> Neurons:
        """Its neurons, copied."""
        up, bias = _rows(self.up).clone(), _bias(self.up)
        gate, gate_bias = (None, None) if self.gate is None else (_rows(self.gate).clone(), _bias(self.gate))
        if self.fused:
            gate, up = up.chunk(2)
            gate_bias, bias = (None, None) if bias is None else bias.chunk(2)
        return Neurons(up, _rows(self.down).T.clone(), gate, *map(_copied, (bias, gate_bias, _bias(self.down))))

    def put(self, neurons: Neurons) -> None:
        """Makes it of these neurons alone, however many they are."""
        up, bias = neurons.up, neurons.up_bias
        if self.fused and neurons.gate is not None:
            up = torch.cat([neurons.gate, up])
            bias = None if neurons.gate_bias is None or bias is None else torch.cat([neurons.gate_bias, bias])
        elif self.gate is not None and neurons.gate is not None:
            _set(self.gate, neurons.gate, neurons.gate_bias)
        _set(self.up, up, bias)
        _set(self.down, neurons.down.T, neurons.out_bias)


def feed_forwards(model: PreTrainedModel) -> list[FeedForward]:
    """That of each block. Raises BadInput where one is a mixture of experts, or of a form unknown."""
    places, found = sites_of(model), []
    for layer, block in enumerate(blocks(model)):
        inside = [p for name, p in places.items() if name.startswith(f"layers.{layer}.mlp.neurons.")]
        holder = mlp_of(block) or block
        matrices = {name: m for name, m in holder.named_children() if isinstance(m, nn.Linear | Conv1D)}
        place = inside[0] if inside else None
        if not isinstance(place, Channels) or not any(m is place.module for m in matrices.values()):
            raise BadInput(
                f"Expected a feed-forward network of plain or gated neurons in block {layer}, got a mixture of experts "
                "or none; name layers that have one, or transplant experts from a bank."
            )
        readers = {name: m for name, m in matrices.items() if m is not place.module}
        gates = [m for name, m in readers.items() if name.startswith("gate") and len(readers) == 2]
        ups = [m for m in readers.values() if m not in gates]
        count = place.channels.stop
        if len(ups) != 1 or len(_rows(ups[0])) not in (count, 2 * count):
            raise BadInput(
                f"Expected one reading matrix, or a gate beside one, in the feed-forward network of block {layer}, got "
                f"{', '.join(readers)}; leave this model's neurons as they are."
            )
        quiet = [m for m in holder.children() if not list(m.parameters()) and not isinstance(m, nn.Dropout)]
        activation = str(quiet[0]) if quiet else "unnamed"
        found.append(
            FeedForward(ups[0], gates[0] if gates else None, place.module, len(_rows(ups[0])) == 2 * count, activation)
        )
    return found


def resize(model: PreTrainedModel, layers: dict[int, Neurons]) -> int:
    """Makes the feed-forward networks of `layers` of these neurons; gives how many each block has then.

    All blocks have as many, as configurations know one number: the most that any needs; the others are filled with
    zeros. An architecture whose configuration has no such number keeps its own. Raises BadInput, before anything is
    changed, where that is too few.
    """
    networks, config = feed_forwards(model), model.config.get_text_config()
    own = [len(_rows(each.down).T) for each in networks]
    count = max(len(layers[layer]) if layer in layers else own[layer] for layer in range(len(own)))
    known = next((name for name in WIDTHS if hasattr(config, name)), None)
    if known is None and count > own[0]:
        raise BadInput(
            f"Expected at most {own[0]} neurons a block, since {type(config).__name__} has no setting for more, got "
            f"{count}; keep fewer."
        )
    count = own[0] if known is None else count
    for layer, network in enumerate(networks):
        if layer in layers or own[layer] != count:
            neurons = layers[layer] if layer in layers else network.neurons()
            network.put(neurons.widened(count))
    if known is not None:
        setattr(config, known, count)
    return count


def _rows(matrix: nn.Module) -> Tensor:
    """The weight [outputs, inputs]."""
    weight = matrix.get_parameter("weight")
    return weight.data.T if isinstance(matrix, Conv1D) else weight.data


def _bias(matrix: nn.Module) -> Tensor | None:
    bias = getattr(matrix, "bias", None)
    return None if bias is None else bias.data


def _copied(value: Tensor | None) -> Tensor | None:
    return None if value is None else value.clone()


def _set(matrix: nn.Module, rows: Tensor, bias: Tensor | None) -> None:
    old = matrix.get_parameter("weight")
    weight = rows.T if isinstance(matrix, Conv1D) else rows
    matrix.weight = nn.Parameter(weight.to(old).contiguous(), requires_grad=False)
    if bias is not None:
        matrix.bias = nn.Parameter(bias.to(old).contiguous(), requires_grad=False)
    names = ("nf", "nx") if isinstance(matrix, Conv1D) else ("out_features", "in_features")
    for name, size in zip(names, rows.shape, strict=True):
        setattr(matrix, name, size)
