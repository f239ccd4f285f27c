"""A donor made to read the target's tokens, for a graft to carry."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.initialization import no_init_weights

from stages.anatomy.blocks import blocks, path_of
from stages.anatomy.vocabulary import shared, spelling
from stages.graft.donor import Donor


@dataclass(frozen=True)
class Reading:
    """A donor cut after the last block that is used, and what the graft's configuration says of it."""

    donor: Donor
    spec: dict[str, Any]


def reading(
    giving: PreTrainedModel,
    giving_tokenizer: PreTrainedTokenizerBase,
    target: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    taken: Sequence[int],
) -> Reading:
    """`giving` as a donor that reads the target's tokens and gives the states leaving its blocks `taken`, frozen.

    The weights are those of `giving`, not copies; its blocks after the last one taken are left out.
    """
    table = None
    if not shared(tokenizer, giving_tokenizer):
        table = spelling(tokenizer, giving_tokenizer, target.get_input_embeddings().num_embeddings)
    config = cut(giving.config, max(taken) + 1)
    backbone = giving.base_model
    spec = {
        "config": plain(config),
        "blocks": path_of(backbone, blocks(giving)),
        "spelled": None if table is None else [len(table[1]) - 1, len(table[0])],
        "taken": list(taken),
    }
    with no_init_weights(), torch.device("meta"):  # drawing weights that are replaced takes seconds
        donor = Donor(config, spec["blocks"], spec["spelled"], spec["taken"])
    kept = donor.donor.state_dict().keys()
    whole = {**dict(backbone.named_parameters()), **dict(backbone.named_buffers())}
    donor.donor.load_state_dict(
        {k: v for k, v in backbone.state_dict(keep_vars=True).items() if k in kept}, assign=True
    )
    for name, _ in list(donor.donor.named_buffers()):  # those that no file holds, such as a rotation's frequencies
        if name not in kept:
            owner, _, leaf = name.rpartition(".")
            setattr(donor.donor.get_submodule(owner), leaf, whole[name])
    if table is not None:
        donor.spelling, donor.spelling_start = (t.to(giving.device) for t in table)
    return Reading(donor.requires_grad_(False).eval(), spec)


def cut(config: PreTrainedConfig, count: int) -> PreTrainedConfig:
    """The configuration of the same model with `count` blocks."""
    values = config.to_dict()
    values[config.attribute_map.get("num_hidden_layers", "num_hidden_layers")] = count
    if isinstance(values.get("layer_types"), list):
        values["layer_types"] = values["layer_types"][:count]
    return type(config).from_dict(values)


def around(target: PreTrainedModel) -> dict[str, Any]:
    """What the configuration of every graft says of its target."""
    names = ("bos_token_id", "eos_token_id", "pad_token_id")
    return {
        "target": plain(target.config),
        "target_blocks": path_of(target, blocks(target)),
        "dtype": "bfloat16",
        **{name: getattr(target.config, name) for name in names},
    }


def plain(config: PreTrainedConfig) -> dict[str, Any]:
    """A configuration as a dict without traces of where it lay."""
    left_out = ("_name_or_path", "transformers_version", "dtype", "architectures")
    return {k: v for k, v in config.to_dict().items() if k not in left_out}
