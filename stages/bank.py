"""A bank: components of a model in one safetensors file, with a catalog of what they are and where they fit."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from stages.anatomy.blocks import blocks
from stages.anatomy.components import Component, component_kind, components
from stages.errors import BadInput
from stages.storage import read_json, write_json

_NEEDS = {
    "head": ("heads", "key_value_heads", "positions"),
    "attention": ("heads", "key_value_heads", "positions"),
    "mlp": ("activation",),
    "expert": ("activation",),
    "block": ("family", "heads", "key_value_heads", "positions", "activation"),
    "embed": ("vocabulary",),
    "lm_head": ("vocabulary",),
}
"""What a kind of component needs its target to share, beside the shapes of its weights."""


def geometry(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """What decides where a model's components fit."""
    config = model.config.get_text_config()
    heads = getattr(config, "num_attention_heads", None)
    vocabulary = hashlib.sha256(repr(sorted(tokenizer.get_vocab().items())).encode()).hexdigest()
    found = {
        "family": config.model_type,
        "blocks": len(blocks(model)),
        "width": config.hidden_size,
        "heads": heads,
        "key_value_heads": getattr(config, "num_key_value_heads", None) or heads,
        "neurons": next((getattr(config, n) for n in ("intermediate_size", "n_inner", "ffn_dim") if hasattr(config, n)),
                        None),
        "experts": next((getattr(config, n) for n in ("num_local_experts", "num_experts") if hasattr(config, n)), None),
        "activation": next((getattr(config, n) for n in ("hidden_activation", "hidden_act", "activation_function")
                            if getattr(config, n, None)), None),
        "positions": getattr(config, "rope_parameters", None),
        "vocabulary": vocabulary,
    }  # fmt: skip
    return json.loads(json.dumps(found))  # as a catalog that was read tells it


def deposit(model: PreTrainedModel, sites: Sequence[str], about: Mapping[str, Any], directory: Path) -> dict[str, Any]:
    """Writes the components at `sites` into `directory` and gives the catalog: `components.safetensors` holds each
    piece under `SITE:NAME`, `catalog.json` what they are, with a SHA-256 of each component's bytes."""
    known, tensors, rows = components(model), {}, []
    for site in sites:
        pieces = {name: piece.view.detach().cpu().clone().contiguous() for name, piece in known[site].items()}
        tensors |= {f"{site}:{name}": tensor for name, tensor in pieces.items()}
        rows.append(
            {
                "site": site,
                "kind": component_kind(site),
                "shapes": {name: list(tensor.shape) for name, tensor in pieces.items()},
                "parameters": sum(tensor.numel() for tensor in pieces.values()),
                "sha256": _digest(pieces),
            }
        )
    catalog = {**about, "components": rows}
    save_file(tensors, directory / "components.safetensors")
    write_json(directory / "catalog.json", catalog)
    return catalog


def withdrawn(directory: Path, row: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """One component's tensors; no other's are read. Raises BadInput where they are not what the catalog says."""
    site = row["site"]
    try:
        with safe_open(directory / "components.safetensors", "pt") as file:
            pieces = {name: file.get_tensor(f"{site}:{name}") for name in row["shapes"]}
    except (OSError, SafetensorError) as error:
        raise BadInput(f"{directory} does not hold {site} ({error}); run `dvc repro` to make the bank anew.") from error
    if _digest(pieces) != row["sha256"]:
        raise BadInput(f"{site} in {directory} is not what its catalog says; run `dvc repro` to make the bank anew.")
    return pieces


def read_catalog(directory: Path) -> dict[str, Any]:
    """The catalog of a bank; BadInput where there is none."""
    return read_json(directory / "catalog.json")


def check_fits(
    row: Mapping[str, Any], site: str, component: Component | None, catalog: Mapping[str, Any], ours: Mapping[str, Any]
) -> None:
    """Raises BadInput, in one sentence, unless a component of the bank can stand at `site` of a target."""
    for each in _NEEDS.get(row["kind"], ()):
        if catalog["geometry"][each] != ours[each]:
            told = (_short(catalog["geometry"][each]), _short(ours[each]))
            raise BadInput(
                f"Expected a target with the {each.replace('_', ' ')} of the bank's model for {row['site']}, "
                f"{told[0]}, got {told[1]}; take other components, or inject a blade, which runs the donor's own parts."
            )
    shapes = {name: list(piece.view.shape) for name, piece in (component or {}).items()}
    if shapes != row["shapes"]:
        raise BadInput(
            f"Expected {site} of the target to hold {_told(row['shapes'])} as the bank's {row['site']} does, got "
            f"{_told(shapes) or 'no such component'}; take components of a model of the target's geometry."
        )


def _digest(pieces: Mapping[str, torch.Tensor]) -> str:
    sha = hashlib.sha256()
    for name, tensor in sorted(pieces.items()):
        sha.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        sha.update(tensor.contiguous().view(torch.uint8).numpy().tobytes())
    return sha.hexdigest()


def _told(shapes: Mapping[str, Sequence[int]]) -> str:
    """Shapes in a sentence, the first few of them."""
    told = [f"{name} {' × '.join(map(str, shape))}" for name, shape in shapes.items()]
    return ", ".join(told[:4]) + (", …" if len(told) > 4 else "")


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) < 80 else f"{text[:16]}…"
