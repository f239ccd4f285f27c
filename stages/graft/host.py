"""What model classes of grafts share: the target inside them, whose inputs and outputs are theirs."""

from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    Cache,
    DynamicCache,
    GenerationMixin,
    PreTrainedConfig,
    PreTrainedModel,
)


class HostConfig(PreTrainedConfig):
    """The target's configuration, and the dotted name of its list of blocks."""

    def __init__(self, target: dict | None = None, target_blocks: str = "", **kwargs):
        self.target, self.target_blocks = target or {}, target_blocks
        kwargs.setdefault("tie_word_embeddings", bool(self.target.get("tie_word_embeddings", True)))
        super().__init__(**kwargs)

    def target_config(self) -> PreTrainedConfig:
        return AutoConfig.for_model(**self.target)

    def get_text_config(self, decoder=None, encoder=None) -> PreTrainedConfig:
        """The target's, which is what generation asks sizes of."""
        return self.target_config() if self.target else self


class HostForCausalLM(PreTrainedModel, GenerationMixin):
    """The target as a part of another model."""

    config_class = HostConfig
    base_model_prefix = "target"
    _supports_sdpa = True
    _supports_attention_backend = True
    called = "model"

    def __init__(self, config: HostConfig):
        super().__init__(config)
        self.target = AutoModelForCausalLM.from_config(config.target_config())

    def get_input_embeddings(self):
        return self.target.get_input_embeddings()

    def set_input_embeddings(self, value):
        self.target.set_input_embeddings(value)

    def get_output_embeddings(self):
        return self.target.get_output_embeddings()

    def _init_weights(self, module):
        """Every weight comes from the file."""

    cache_class: type[DynamicCache]
    """This model's own kind of cache."""

    def new_cache(self) -> DynamicCache:
        """An empty one."""
        raise NotImplementedError

    def own_cache(self, given: Cache | None):
        """`given` where this model returned it, else a new one. Raises ValueError for a cache that holds tokens."""
        if isinstance(given, self.cache_class):
            return given
        if given is not None and (given.get_seq_length() or type(given) is not DynamicCache):
            raise ValueError(
                f"Expected the cache that this {self.called} returned, or an empty DynamicCache, got "
                f"{type(given).__name__} with {given.get_seq_length()} tokens; start without one."
            )
        return self.new_cache()
