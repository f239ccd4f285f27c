"""A graft as a Hugging Face model: the target, and parts that take hold of it while it runs."""

import torch
from torch import nn
from transformers import AutoConfig, Cache, DynamicCache, PreTrainedConfig
from transformers.modeling_outputs import CausalLMOutputWithPast

from .blade import Injection
from .call import Call
from .condition import Condition
from .donor import Donor, accepted
from .fusion import Fusion
from .heard import Heard
from .host import HostConfig, HostForCausalLM
from .implant import Implant
from .router import RouterBias
from .shared import Shared
from .stored import Stored

KINDS: dict[str, type[nn.Module]] = {
    "condition": Condition,
    "fusion": Fusion,
    "implant": Implant,
    "injection": Injection,
    "router": RouterBias,
    "shared": Shared,
    "stored": Stored,
}
"""The parts that a graft can have: modules with a method `attach` that takes the pass under way."""


class GraftConfig(HostConfig):
    """The configurations of target and donors, and the parts between them.

    A donor is `{config, blocks, spelled, taken}`, as Donor takes them; a part is `{kind, ...}` with what its class
    takes, where `donor` counts in the list of donors.
    """

    model_type = "graft"

    def __init__(self, donors: list[dict] | None = None, parts: list[dict] | None = None, **kwargs):
        self.donors, self.parts = donors or [], parts or []
        super().__init__(**kwargs)


class GraftCache(DynamicCache):
    """The target's cache, and what the parts remember; beams and batches rearrange both."""

    def __init__(self, config: PreTrainedConfig):
        super().__init__(config=config)
        self.memories: dict[str, Heard] = {}

    def reorder_cache(self, beam_idx):
        super().reorder_cache(beam_idx)
        for heard in self.memories.values():
            heard.reorder(beam_idx)

    def batch_select_indices(self, indices):
        super().batch_select_indices(indices)
        for heard in self.memories.values():
            heard.select(indices)

    def batch_repeat_interleave(self, repeats):
        super().batch_repeat_interleave(repeats)
        for heard in self.memories.values():
            heard.repeat(repeats)

    def crop(self, tokens_to_remove):
        for heard in self.memories.values():
            heard.crop(tokens_to_remove)
        super().crop(tokens_to_remove)

    def reset(self):
        super().reset()
        self.memories.clear()


class GraftForCausalLM(HostForCausalLM):
    """The target with its parts; it takes and gives what the target does."""

    config_class = GraftConfig
    cache_class = GraftCache
    called = "graft"

    def __init__(self, config: GraftConfig):
        super().__init__(config)
        self.donors = nn.ModuleList(
            Donor(AutoConfig.for_model(**d["config"]), d["blocks"], d["spelled"], d["taken"]) for d in config.donors
        )
        self.parts = nn.ModuleList(_part(**spec) for spec in config.parts)
        self.post_init()

    def new_cache(self) -> GraftCache:
        return GraftCache(self.config.target_config())

    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.LongTensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        **kwargs,
    ) -> CausalLMOutputWithPast:
        """Logits [batch, tokens kept, vocabulary]; every argument as in the target's forward, but text as ids only."""
        if input_ids is None or inputs_embeds is not None:
            raise ValueError("A graft may read text through a donor too: pass input_ids, not inputs_embeds.")
        use_cache = past_key_values is not None if use_cache is None else use_cache
        cache = self.own_cache(past_key_values) if use_cache else None
        if attention_mask is not None and attention_mask.dim() != 2:
            raise ValueError(
                f"Expected an attention mask [batch, tokens], got {attention_mask.dim()} dimensions; pass the padding "
                "mask."
            )
        if position_ids is None and attention_mask is not None:
            position_ids = (attention_mask.cumsum(1) - 1).clamp(min=0)[:, -input_ids.shape[1] :]
        positions = {"position_ids": position_ids} if "position_ids" in accepted(self.target) else {}
        memories = None if cache is None else cache.memories
        with Call(self.target, self.config.target_blocks, self.donors, input_ids, attention_mask, memories) as call:
            for part in self.parts:
                part.attach(call)
            return self.target(
                input_ids=input_ids,
                attention_mask=attention_mask,
                past_key_values=cache,
                labels=labels,
                use_cache=use_cache,
                logits_to_keep=logits_to_keep,
                **positions,
                **kwargs,
            )


def _part(kind: str, **given) -> nn.Module:
    if kind not in KINDS:
        raise ValueError(f"Expected a part of kind {', '.join(sorted(KINDS))}, got {kind!r}; name one of these.")
    return KINDS[kind](**given)


GraftConfig.register_for_auto_class()
GraftForCausalLM.register_for_auto_class("AutoModelForCausalLM")
