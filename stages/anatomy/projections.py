"""Where attention keeps each head's queries, keys and values: in three matrices, or in one that is fused."""

from torch import nn
from transformers.pytorch_utils import Conv1D

_BY_GROUP = "query_key_value"
"""The fused projection that holds, group by group, the group's queries, its key and its value; others hold all queries,
then all keys, then all values."""
_FUSED = ("qkv_proj", "c_attn", _BY_GROUP)
Slot = tuple[nn.Linear | Conv1D, int]
"""A matrix, and which run of its outputs, each as wide as a head."""


def projections(attention: nn.Module, count: int, width: int) -> list[dict[str, Slot]]:
    """For each of `count` heads of `width` channels, where its `q`, `k` and `v` come from; grouped heads share k and v.

    Empty for projections of an unknown form.
    """
    inside = {name: module for name, module in attention.named_children() if isinstance(module, nn.Linear | Conv1D)}
    fused = next((name for name in _FUSED if name in inside), None)
    if fused is not None:
        groups = (outputs(inside[fused]) // width - count) // 2
    elif all(f"{letter}_proj" in inside for letter in "qkv"):
        groups = outputs(inside["k_proj"]) // width
    else:
        return []
    share, found = count // groups, []
    for head in range(count):
        group = head // share
        slots = {"q": head, "k": group, "v": group}
        if fused == _BY_GROUP:
            first = group * (share + 2)
            slots = {"q": first + head % share, "k": first + share, "v": first + share + 1}
        elif fused is not None:
            slots |= {"k": count + group, "v": count + groups + group}
        found.append({letter: (inside[fused or f"{letter}_proj"], slot) for letter, slot in slots.items()})
    return found


def outputs(matrix: nn.Linear | Conv1D) -> int:
    """Channels of a matrix's output."""
    return matrix.weight.shape[1 if isinstance(matrix, Conv1D) else 0]
