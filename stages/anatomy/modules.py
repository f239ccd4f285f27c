"""The linear modules inside the blocks under canonical names, whatever their architecture calls them."""

from transformers import PreTrainedModel

from stages.anatomy.blocks import attention_of, blocks, linear_modules, mlp_of


def linear_paths(model: PreTrainedModel) -> dict[str, str]:
    """Canonical name → the model's own dotted name of each linear module inside the blocks, in the model's order.

    `layers.I.self_attn.q_proj` and `layers.I.mlp.down_proj` are Llama's; a part keeps its own name inside attention and
    MLP (`layers.I.self_attn.c_attn`), or in the block where that holds it itself (OPT's `layers.I.fc1`). Experts fused
    into one tensor are no linear modules.
    """
    names = {id(module): name for name, module in model.named_modules()}
    places = {names[id(block)]: (index, block) for index, block in enumerate(blocks(model))}
    found = {}
    for path in linear_modules(model):
        prefix = next(name for name in places if path.startswith(f"{name}."))
        index, block = places[prefix]
        first, dot, rest = path.removeprefix(f"{prefix}.").partition(".")
        child = block.get_submodule(first)
        word = "self_attn" if child is attention_of(block) else "mlp" if child is mlp_of(block) else first
        found[f"layers.{index}.{word}{dot}{rest}"] = path
    return found
