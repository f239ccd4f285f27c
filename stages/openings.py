"""How far gates open on kept texts."""

from collections.abc import Sequence

import torch

from stages.anatomy.encoding import batches
from stages.blades import logits
from stages.graft.shared import Shared
from stages.recipes.blade import Parts, changing
from stages.training import Kept


@torch.inference_mode()
def openings(parts: Parts, kept: Sequence[Kept]) -> list[torch.Tensor]:
    """[tokens, gates] of each text: the amount that each gate lets through, a channel gate's mean over channels.

    A gate that shares a budget counts as one for each of its blades.
    """
    seen: dict[int, torch.Tensor] = {}
    handles = [
        part.gate.register_forward_hook(lambda m, a, out, place=place: seen.__setitem__(place, out))
        for place, part in enumerate(changing(parts.parts))
    ]
    found: dict[int, torch.Tensor] = {}
    try:
        for group in batches([len(k.ids) for k in kept], budget=512):
            seen.clear()
            logits(parts, [kept[i] for i in group])
            shape = len(group), max(len(kept[i].ids) for i in group)
            amounts = []
            for place, part in enumerate(changing(parts.parts)):
                each = seen.get(place, kept[0].h.new_zeros(1))  # a closed gate is not asked
                each = each if isinstance(part, Shared) else each.mean(-1, keepdim=True)
                amounts.append(each.expand(*shape, each.shape[-1]))
            whole = torch.cat(amounts, dim=-1)
            for row, i in enumerate(group):
                found[i] = whole[row, : len(kept[i].ids)].clone()
    finally:
        for handle in handles:
            handle.remove()
    return [found[i] for i in range(len(kept))]
