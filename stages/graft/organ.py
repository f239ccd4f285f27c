"""One block of a donor, or a part of it, run on states from elsewhere."""

import contextlib

import torch
from torch import nn
from transformers import AutoModel, PreTrainedConfig

from .donor import places, taken_by
from .heard import Heard


class _Given(Exception):
    """Ends a pass once the part has given its output."""


class Organ(nn.Module):
    """What a donor's block, or a part inside it, adds to the residual stream for a state that enters the block.

    The donor is a backbone of that one block, so masks, positions, rotations and caches are its own; what its
    embedding gives is replaced by the states where they enter the block. `part` is the dotted name inside the block,
    empty for the block itself; a `lone` expert, the one left in its stack, gets every token with weight 1.
    """

    def __init__(self, config: PreTrainedConfig, blocks: str, part: str, lone: bool):
        super().__init__()
        self.donor = AutoModel.from_config(config)
        self.blocks, self.part, self.lone = blocks, part, lone

    def module(self) -> nn.Module:
        """The part of the donor."""
        return self.donor.get_submodule(f"{self.blocks}.0").get_submodule(self.part)

    def forward(self, states: torch.Tensor, mask: torch.Tensor | None, heard: Heard | None) -> torch.Tensor:
        """What is added [batch, new tokens, donor width], for `states` of that shape.

        `mask` [batch, tokens so far and new] is 1 at real tokens, None where all are; `heard` is what earlier calls
        left.
        """
        block, module = self.donor.get_submodule(f"{self.blocks}.0"), self.module()
        given: list[torch.Tensor] = []

        def enter(_, args, kwargs):
            if args:
                return (states, *args[1:]), kwargs
            return args, kwargs | {"hidden_states": states}

        def alone(_, args):
            entering, routed, weights = args
            return entering, torch.zeros_like(routed[:, :1]), torch.ones_like(weights[:, :1])

        def leave(_, args, output):
            given.append(output[0] if isinstance(output, tuple) else output)
            raise _Given

        handles = [
            block.register_forward_pre_hook(enter, with_kwargs=True),
            module.register_forward_hook(leave),
        ]
        if self.lone:
            handles.append(module.register_forward_pre_hook(alone))
        try:
            width = self.donor.get_input_embeddings().weight.shape[1]
            passed = {
                "inputs_embeds": states.new_zeros(*states.shape[:2], width),
                "attention_mask": mask,
                "position_ids": places(mask, states.shape[1]),
            }
            cache = {"use_cache": False} if heard is None else {"use_cache": True, "past_key_values": heard.cache}
            with contextlib.suppress(_Given):
                self.donor(**taken_by(self.donor, passed), **cache)
        finally:
            for handle in handles:
                handle.remove()
        if not given:
            raise RuntimeError(f"{self.part or 'The block'} of the donor did not run.")
        told = given[0].view(states.shape)
        return told if self.part else told - states
