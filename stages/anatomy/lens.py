"""What a model would predict if it stopped at some block: the logit lens."""

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedModel

from stages.anatomy.blocks import blocks
from stages.anatomy.restart import resumed

_AT_ONCE = 128


@torch.inference_mode()
def lens(model: PreTrainedModel, states: Float[Tensor, "positions width"]) -> Float[Tensor, "positions vocabulary"]:
    """The logits that the model makes of residual states as though they left its last block (nostalgebraist 2020).

    Everything after the blocks (final norm, projection, head, soft caps) is the model's own forward's, so states of the
    last block give the model's own logits. Nothing there looks from one position to another.
    """
    told = []
    for part in states.split(_AT_ONCE):
        with resumed(model, len(blocks(model)) - 1, part[None]):
            ids = torch.zeros(1, len(part), dtype=torch.long, device=model.device)
            told.append(model(input_ids=ids, use_cache=False).logits[0])
    return torch.cat(told)
