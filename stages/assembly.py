"""A graft put together from models in memory: the target, donors, parts, and the directory that holds them."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.initialization import no_init_weights

from stages.graft.modeling import GraftConfig, GraftForCausalLM
from stages.reading import Reading, around
from stages.saving import save
from stages.storage import new_directory


def write_graft(
    target: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    donors: Sequence[Reading],
    parts: Sequence[tuple[torch.nn.Module, dict[str, Any]]],
    out: Path,
) -> None:
    """Writes the graft `out`: config, code, bfloat16 safetensors, tokenizer.

    Each part comes with its specification, `kind` and what its class takes. The models are used up: their weights
    are turned to bfloat16 in place, so that nothing is held twice.
    """
    config = GraftConfig(donors=[each.spec for each in donors], parts=[spec for _, spec in parts], **around(target))
    with no_init_weights(), torch.device("meta"):
        graft = GraftForCausalLM(config)
    graft.target = target
    graft.donors = torch.nn.ModuleList(each.donor for each in donors)
    graft.parts = torch.nn.ModuleList(part for part, _ in parts)
    graft.generation_config = target.generation_config
    with new_directory(out) as directory:
        save(graft, tokenizer, directory)
