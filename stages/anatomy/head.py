"""Next-token logits of chosen states, without those of all the others."""

import torch
from transformers import PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPast

from stages.anatomy.blocks import stack
from stages.anatomy.restart import forward_replaced


class _Final(BaseModelOutputWithPast):
    """Final states alone; whatever else an architecture's output may have (router logits, cross attentions) is None."""

    def __getattr__(self, name: str) -> None:
        if name.startswith("_"):
            raise AttributeError(name)


def logits_of(model: PreTrainedModel, states: torch.Tensor) -> torch.Tensor:
    """The logits [rows, vocabulary] that `model` gives for states [rows, width] after its final norm.

    The model's own forward computes them, so that whatever it does to its head's output (soft caps, scales) is done.
    """

    def give(*_: object, **__: object) -> _Final:
        return _Final(last_hidden_state=states[None])

    ids = torch.zeros(1, len(states), dtype=torch.long, device=states.device)
    with forward_replaced(stack(model), give):
        return model(input_ids=ids, use_cache=False).logits[0]
