"""A graft as a Hugging Face model: the target, and a blade injected after one of its blocks."""

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    Cache,
    DynamicCache,
    GenerationMixin,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.modeling_outputs import CausalLMOutputWithPast

from .blade import Blade, Heard, Injection, accepted


class GraftConfig(PreTrainedConfig):
    """The configurations of target and donor, and the injection between them."""

    model_type = "graft"

    def __init__(
        self,
        target: dict | None = None,
        donor: dict | None = None,
        target_blocks: str = "",
        donor_blocks: str = "",
        layer: int = 0,
        gate: str = "token",
        bridge: str = "identity",
        mix: str = "delta",
        alpha: float = 1.0,
        spelled: tuple[int, int] | None = None,
        **kwargs,
    ):
        self.target, self.donor = target or {}, donor or {}
        self.target_blocks, self.donor_blocks, self.layer = target_blocks, donor_blocks, layer
        self.gate, self.bridge, self.mix, self.alpha = gate, bridge, mix, alpha
        self.spelled = spelled
        kwargs.setdefault("tie_word_embeddings", bool(self.target.get("tie_word_embeddings", True)))
        super().__init__(**kwargs)

    def target_config(self) -> PreTrainedConfig:
        return AutoConfig.for_model(**self.target)

    def donor_config(self) -> PreTrainedConfig:
        return AutoConfig.for_model(**self.donor)

    def get_text_config(self, decoder=None, encoder=None) -> PreTrainedConfig:
        """The target's, which is what generation asks sizes of."""
        return self.target_config() if self.target else self


class GraftCache(DynamicCache):
    """The target's cache, and what the blade has heard; beams and batches rearrange both."""

    def __init__(self, config: PreTrainedConfig):
        super().__init__(config=config)
        self.heard = Heard()

    def reorder_cache(self, beam_idx):
        super().reorder_cache(beam_idx)
        self.heard.cache.reorder_cache(beam_idx)
        self.heard.apply(lambda t: t.index_select(0, beam_idx.to(t.device)))

    def batch_select_indices(self, indices):
        super().batch_select_indices(indices)
        self.heard.cache.batch_select_indices(indices)
        self.heard.apply(lambda t: t[indices])

    def batch_repeat_interleave(self, repeats):
        super().batch_repeat_interleave(repeats)
        self.heard.cache.batch_repeat_interleave(repeats)
        self.heard.apply(lambda t: t.repeat_interleave(repeats, dim=0))

    def crop(self, tokens_to_remove):
        if self.heard.mask is not None and tokens_to_remove:
            raise NotImplementedError(
                "A donor with another tokenizer cannot forget tokens; generate without assistance."
            )
        super().crop(tokens_to_remove)
        self.heard.cache.crop(tokens_to_remove)

    def reset(self):
        super().reset()
        self.heard = Heard()


class GraftForCausalLM(PreTrainedModel, GenerationMixin):
    """The target with a blade; it takes and gives what the target does."""

    config_class = GraftConfig
    base_model_prefix = "target"
    _supports_sdpa = True
    _supports_attention_backend = True

    def __init__(self, config: GraftConfig):
        super().__init__(config)
        target, donor = config.target_config(), config.donor_config()
        self.target = AutoModelForCausalLM.from_config(target)
        self.blade = Blade(donor, config.donor_blocks, config.spelled)
        self.injection = Injection(
            config.gate, config.bridge, config.mix, config.alpha, donor.hidden_size, target.hidden_size
        )
        self.post_init()

    def get_input_embeddings(self):
        return self.target.get_input_embeddings()

    def set_input_embeddings(self, value):
        self.target.set_input_embeddings(value)

    def get_output_embeddings(self):
        return self.target.get_output_embeddings()

    def _init_weights(self, module):
        """Every weight comes from the file."""

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
            raise ValueError("A graft reads text through its donor too: pass input_ids, not inputs_embeds.")
        use_cache = past_key_values is not None if use_cache is None else use_cache
        cache = self._cache(past_key_values) if use_cache else None
        seen = 0 if cache is None else cache.get_seq_length()
        mask = attention_mask
        if mask is None:
            mask = input_ids.new_ones(len(input_ids), seen + input_ids.shape[1])
        if mask.dim() != 2:
            raise ValueError(
                f"Expected an attention mask [batch, tokens], got {mask.dim()} dimensions; pass the padding mask."
            )
        shut = self.config.gate == "closed"  # nothing is injected, so the donor need not read
        if not shut:
            states, known = self.blade.states(input_ids, mask, None if cache is None else cache.heard)
        fired = []

        def inject(module, args, output):
            fired.append(True)
            if shut:
                return output
            if isinstance(output, tuple):
                return (self.injection(output[0], states, known), *output[1:])
            return self.injection(output, states, known)

        if position_ids is None and attention_mask is not None:
            position_ids = (mask.cumsum(1) - 1).clamp(min=0)[:, -input_ids.shape[1] :]
        handle = self.target.get_submodule(self.config.target_blocks)[self.config.layer].register_forward_hook(inject)
        try:
            positions = {"position_ids": position_ids} if "position_ids" in accepted(self.target) else {}
            output = self.target(
                input_ids=input_ids,
                attention_mask=attention_mask,
                past_key_values=cache,
                labels=labels,
                use_cache=use_cache,
                logits_to_keep=logits_to_keep,
                **positions,
                **kwargs,
            )
        finally:
            handle.remove()
        if len(fired) != 1:
            raise RuntimeError(
                f"Block {self.config.layer} of the target ran {len(fired)} times in one pass, expected once."
            )
        return output

    def _cache(self, given: Cache | None) -> GraftCache:
        if isinstance(given, GraftCache):
            return given
        if given is not None and (given.get_seq_length() or type(given) is not DynamicCache):
            raise ValueError(
                f"Expected the cache that this graft returned, or an empty DynamicCache, got {type(given).__name__} "
                f"with {given.get_seq_length()} tokens; start without one."
            )
        return GraftCache(self.config.target_config())


GraftConfig.register_for_auto_class()
GraftForCausalLM.register_for_auto_class("AutoModelForCausalLM")
