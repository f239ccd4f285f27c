"""LoRA adapters (arXiv 2106.09685) as PEFT's directories hold them, read for a model's modules and written anew."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig
from peft.utils.other import get_pattern_key
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from stages.errors import BadInput
from stages.maths.lowrank import LowRank
from stages.storage import read_json, write_json

Changes = Mapping[str, LowRank]
"""A model's own dotted name of a linear module → ΔW, which is added to W as it maps inputs to outputs."""
_PREFIX = "base_model.model."
_OTHER = ("use_dora", "use_qalora", "use_bdlora", "target_parameters", "layer_replication", "alora_invocation_tokens",
          "arrow_config", "kasa_config", "trainable_token_indices", "modules_to_save", "lora_bias")  # fmt: skip
"""Settings of variants whose effect is not W + s·B·A."""


def weight_of(module: nn.Module) -> torch.Tensor:
    """A linear module's weight as it maps inputs to outputs, [out, in]; a view, GPT-2's transposed."""
    assert isinstance(module.weight, torch.Tensor)
    return module.weight.T if isinstance(module, Conv1D) else module.weight


def read_adapter(directory: Path, model: PreTrainedModel) -> dict[str, LowRank]:
    """The adapter's change of each of `model`'s linear modules: s·B·A, with s = alpha / rank, or alpha / √rank where
    the adapter is rank-stabilised (arXiv 2312.03732), each by its own pattern.

    Any linear modules. Only safetensors are read. Raises BadInput for a directory that is no such adapter, for modules
    that the model lacks or has in another shape, and for what is no plain LoRA: DoRA, biases, embeddings, experts fused
    into one tensor (`target_parameters`) and whole modules saved beside (`modules_to_save`).
    """
    if not (directory / "adapter_config.json").is_file():
        raise BadInput(f"Expected an adapter with adapter_config.json at {directory}, got none; name a PEFT directory.")
    config, path = read_json(directory / "adapter_config.json"), directory / "adapter_model.safetensors"
    other = next((key for key in _OTHER if config.get(key)), None)
    if config.get("peft_type") != "LORA" or other or config.get("bias", "none") != "none":
        got = other or (config.get("peft_type") if config.get("peft_type") != "LORA" else f"bias {config['bias']}")
        raise BadInput(
            f"Expected a plain LoRA adapter at {directory}, got {got}; merge it with PEFT and merge or transplant the "
            "whole model instead."
        )
    try:
        tensors = load_file(path)
    except (FileNotFoundError, SafetensorError) as error:
        raise BadInput(
            f"Expected a readable {path}, got {' '.join(str(error).split())}; save the adapter as safetensors (pickled "
            "weights are not read)."
        ) from error
    modules, found = dict(model.named_modules()), {}
    names = {name.removesuffix(".lora_A.weight").removesuffix(".lora_B.weight") for name in tensors}
    for name in sorted(names):
        factors = [tensors.get(f"{name}.lora_{letter}.weight") for letter in "BA"]
        module = modules.get(inner := name.removeprefix(_PREFIX))
        if None in factors or not isinstance(module, nn.Linear | Conv1D):
            raise BadInput(
                f"Expected factors of the model's linear modules in {path}, got {name}, which is none; use the model "
                "that the adapter was trained on."
            )
        up, down = (each.float() for each in factors if each is not None)
        if (up.shape[0], down.shape[1]) != tuple(weight_of(module).shape) or up.shape[1] != down.shape[0]:
            raise BadInput(
                f"Expected a change of {inner} with the model's shape {list(weight_of(module).shape)}, got "
                f"{[up.shape[0], down.shape[1]]}; carry the adapter over by source: bridge."
            )
        found[inner] = LowRank(up, down).scaled(_scaling(config, inner, up.shape[1]))
    if not found:
        raise BadInput(f"Expected factors of some module in {path}, got an empty file; train the adapter first.")
    return found


def _scaling(config: Mapping[str, Any], name: str, rank: int) -> float:
    patterns = config.get("alpha_pattern") or {}
    alpha = patterns.get(get_pattern_key(list(patterns), name), config["lora_alpha"])
    return alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)


def write_adapter(directory: Path, changes: Changes, model: PreTrainedModel) -> None:
    """A PEFT directory of `changes` in float32, each module with its own rank and a scaling of 1."""
    ranks = {name: change.rank for name, change in changes.items()}
    rank = max(ranks.values())
    others = {name: own for name, own in sorted(ranks.items()) if own != rank}
    modules = dict(model.named_modules())
    config = LoraConfig(
        r=rank, lora_alpha=rank, target_modules=sorted(ranks), rank_pattern=others, alpha_pattern=others,
        lora_dropout=0.0, bias="none", task_type="CAUSAL_LM", base_model_name_or_path="target", inference_mode=True,
        fan_in_fan_out=all(isinstance(modules[name], Conv1D) for name in ranks),
    ).to_dict()  # fmt: skip
    directory.mkdir(parents=True, exist_ok=True)
    write_json(directory / "adapter_config.json", config | {"target_modules": sorted(ranks)})
    tensors = {
        f"{_PREFIX}{name}.lora_{letter}.weight": factor.float().contiguous()
        for name, change in changes.items()
        for letter, factor in (("A", change.down), ("B", change.up))
    }
    save_file(tensors, directory / "adapter_model.safetensors", {"format": "pt"})


@torch.no_grad()
def fuse(model: PreTrainedModel, changes: Changes) -> None:
    """Adds each change to its module's weight, in place."""
    modules = dict(model.named_modules())
    for name, change in changes.items():
        weight = weight_of(modules[name])
        weight.add_(change.dense.to(weight))
