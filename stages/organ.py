"""A block of a donor, or a part inside it, cut out so that a graft can run it by itself."""

from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.initialization import no_init_weights

from stages.anatomy.blocks import blocks, path_of
from stages.anatomy.places import Expert
from stages.anatomy.sites import sites_of
from stages.errors import BadInput
from stages.graft.organ import Organ
from stages.reading import plain

_EXPERTS = ("num_local_experts", "num_experts", "n_routed_experts")
_TOKENS = 8


@dataclass(frozen=True)
class Cut:
    """The organ with the donor's weights, frozen, and what the graft's configuration says of it."""

    organ: Organ
    spec: dict[str, Any]


def cut_out(giving: PreTrainedModel, layer: int, part: str) -> Cut:
    """`part` of block `layer` of a donor: `block`, `self_attn`, `mlp`, or `mlp.experts.J` for one expert of a mixture.

    The weights are copies, so that the donor can be used for other things too. Raises BadInput when the block has no
    such part, and when it computes something else without the blocks around it.
    """
    inner, places = blocks(giving), sites_of(giving)
    site = f"layers.{layer}" if part == "block" else f"layers.{layer}.{part}"
    if site not in places:
        there = [name.removeprefix(f"layers.{layer}.") for name in places if name.startswith(f"layers.{layer}.")]
        known = ["block", *(name for name in there if name in ("self_attn", "mlp") or ".experts." in name)]
        raise BadInput(f"Expected a part of the donor's block, {', '.join(known)}, got {part!r}; name one of these.")
    place = places[site]
    expert = place.index if isinstance(place, Expert) else None
    config = _alone(giving.config, layer, len(inner), expert is not None)
    spec = {
        "config": plain(config),
        "blocks": path_of(giving.base_model, inner),
        "part": "" if part == "block" else path_of(inner[layer], place.module),
        "lone": expert is not None,
    }
    with no_init_weights(), torch.device("meta"):
        organ = Organ(config, spec["blocks"], spec["part"], spec["lone"])
    _fill(organ, giving, layer, expert)
    organ.requires_grad_(False).eval()
    _check(giving, organ, layer, place)
    return Cut(organ, spec)


def _fill(organ: Organ, giving: PreTrainedModel, layer: int, expert: int | None) -> None:
    """Gives the organ's tensors the values that they have in the donor."""
    backbone, first, saved = giving.base_model, f"{organ.blocks}.0.", organ.donor.state_dict().keys()
    theirs = {**dict(backbone.named_parameters()), **dict(backbone.named_buffers())}
    for name, own in [*organ.donor.named_parameters(), *organ.donor.named_buffers()]:
        inside = name.startswith(first)
        value = theirs.get(name.replace(first, f"{organ.blocks}.{layer}.", 1) if inside else name)
        if value is None:
            raise BadInput(_refusal(layer))
        if value.shape != own.shape and inside and expert is not None:
            value = value[expert : expert + 1]
        elif value.shape != own.shape and not inside:  # an embedding with one row left, as its states are replaced
            value = value[tuple(slice(size) for size in own.shape)]
        if value.shape != own.shape:
            raise BadInput(_refusal(layer))
        owner, _, leaf = name.rpartition(".")
        copied = value.detach().clone()
        parameter = name in saved and isinstance(own, torch.nn.Parameter)
        setattr(organ.donor.get_submodule(owner), leaf, torch.nn.Parameter(copied, False) if parameter else copied)


def _refusal(layer: int) -> str:
    return (
        f"Expected a block that can be run by itself, got block {layer} of the donor, which depends on where it "
        "stands; name another block, or inject the donor's states."
    )


def _alone(config: PreTrainedConfig, layer: int, count: int, expert: bool) -> PreTrainedConfig:
    """The configuration of a model of this block alone, with one token and, for an expert, with one of these."""
    values = config.to_dict()
    for name, value in values.items():
        if isinstance(value, list) and len(value) == count:  # such as layer_types
            values[name] = [value[layer]]
    values[config.attribute_map.get("num_hidden_layers", "num_hidden_layers")] = 1
    values |= {"vocab_size": 1} | dict.fromkeys(("pad_token_id", "bos_token_id", "eos_token_id"))
    if expert:
        values |= {name: 1 for name in (*_EXPERTS, "num_experts_per_tok") if name in values}
    return type(config).from_dict(values)


@torch.no_grad()
def _check(giving: PreTrainedModel, organ: Organ, layer: int, place: Any) -> None:
    """Raises BadInput unless the organ gives, for what enters the donor's block, what the donor's own part gives."""
    entered: list[torch.Tensor] = []
    told: list[torch.Tensor] = []
    block = blocks(giving)[layer]

    def enter(_, args, kwargs):
        entered.append(args[0] if args else kwargs["hidden_states"])

    handles = [
        block.register_forward_pre_hook(enter, with_kwargs=True),
        place.module.register_forward_hook(lambda _, args, output: told.append(place.read(args, output))),
    ]
    ids = torch.arange(_TOKENS, device=giving.device)[None] % giving.get_input_embeddings().weight.shape[0]
    try:
        giving.base_model(input_ids=ids, use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    expected = told[0].view(entered[0].shape)
    expected = expected if organ.part else expected - entered[0]
    found = organ(entered[0], torch.ones_like(ids), None)
    there = expected.any(-1) if organ.lone else torch.ones_like(ids, dtype=torch.bool)  # tokens routed to an expert
    error = (found - expected)[there].float().norm()
    if not error <= 0.02 * expected[there].float().norm():
        raise BadInput(_refusal(layer))
