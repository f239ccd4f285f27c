"""Whether two models are built alike, so that a weight of one means in the other what it meant in its own."""

from transformers import PreTrainedConfig

from stages.errors import BadInput

_SAME = ("model_type", "hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_dim",
         "intermediate_size", "num_local_experts", "num_experts")  # fmt: skip
"""Two models with as many heads twice as wide can have matrices of one shape."""


def check_geometry(target: PreTrainedConfig, donor: PreTrainedConfig, name: str) -> None:
    """Raises BadInput unless the donor `name` has the target's architecture, width, depth, heads and experts."""
    ours, theirs = target.get_text_config(), donor.get_text_config()
    for key in _SAME:
        wanted, got = (getattr(each, key, None) for each in (ours, theirs))
        if wanted != got:
            raise BadInput(
                f"Expected donor {name!r} to have the target's {key} {wanted}, got {got}; take weights from models of "
                "one architecture and geometry, or use a blade with a bridge."
            )
