"""The modules inside the blocks under canonical names, whatever their architecture calls them."""

from collections.abc import Iterable

from transformers import PreTrainedModel

from stages.anatomy.blocks import attention_of, blocks, linear_modules, mlp_of


def linear_paths(model: PreTrainedModel) -> dict[str, str]:
    """Canonical name → the model's own dotted name of each linear module inside the blocks, in the model's order.

    `layers.I.self_attn.q_proj` and `layers.I.mlp.down_proj` are Llama's; a part keeps its own name inside attention and
    MLP (`layers.I.self_attn.c_attn`), or in the block where that holds it itself (OPT's `layers.I.fc1`). Experts fused
    into one tensor are no linear modules.
    """
    return _canonical(model, linear_modules(model))


def weighted_paths(model: PreTrainedModel) -> dict[str, str]:
    """The same for every module inside the blocks that holds parameters itself: norms and fused experts too."""
    inside = {id(module) for block in blocks(model) for module in block.modules() if list(module.parameters(False))}
    return _canonical(model, [name for name, module in model.named_modules() if id(module) in inside])


def _canonical(model: PreTrainedModel, paths: Iterable[str]) -> dict[str, str]:
    names = {id(module): name for name, module in model.named_modules()}
    places = {names[id(block)]: (index, block) for index, block in enumerate(blocks(model))}
    found = {}
    for path in paths:
        prefix = next(name for name in places if f"{path}.".startswith(f"{name}."))
        index, block = places[prefix]
        first, dot, rest = path.removeprefix(prefix).removeprefix(".").partition(".")
        child = block.get_submodule(first)
        word = "self_attn" if child is attention_of(block) else "mlp" if child is mlp_of(block) else first
        found[f"layers.{index}.{word}{dot}{rest}".rstrip(".")] = path
    return found
