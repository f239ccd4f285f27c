"""The decoder blocks of any architecture, and the attention, MLP and linear modules inside them."""

from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from stages.anatomy.names import layer_index as layer_index
from stages.errors import BadInput

_ATTENTION = ("self_attn", "attn", "attention", "self_attention")
_MLP = ("mlp", "feed_forward", "ffn", "block_sparse_moe")
_LAST_MATRIX = ("fc2",)


def blocks(model: PreTrainedModel) -> nn.ModuleList:
    """The decoder blocks: the longest list of modules of one class in the base model that lies in no other list.

    Lists with attention go first, and lists of leaves (one projection a layer) do not count.
    Raises BadInput when there is none.
    """
    found = [
        child
        for child in _outermost_lists(model.base_model)
        if len(child) and len({type(block) for block in child}) == 1 and list(child[0].children())
    ]
    if not found:
        raise BadInput(
            f"Expected a decoder with a list of like blocks, got {type(model).__name__}, which has none; "
            "use a causal language model whose blocks form one nn.ModuleList."
        )
    return max(found, key=lambda each: (attention_of(each[0]) is not None, len(each)))


def stack(model: PreTrainedModel) -> nn.Module:
    """The module that holds the blocks and runs them, between the embedding and the final norm."""
    inner = blocks(model)
    return next(module for module in model.modules() if any(child is inner for child in module.children()))


def _outermost_lists(module: nn.Module) -> list[nn.ModuleList]:
    if isinstance(module, nn.ModuleList):
        return [module]
    return [found for child in module.children() for found in _outermost_lists(child)]


def attention_of(block: nn.Module) -> nn.Module | None:
    """The attention module of a block; None when it has none."""
    return _first(block, _ATTENTION)


def mlp_of(block: nn.Module) -> nn.Module | None:
    """The MLP or mixture of experts of a block; None when the block holds its matrices itself, as OPT's do."""
    return _first(block, _MLP)


def mlp_output_of(block: nn.Module) -> nn.Module | None:
    """The module whose output is the MLP's: the MLP, or its last matrix where the block holds them itself."""
    return mlp_of(block) or _first(block, _LAST_MATRIX)


def _first(block: nn.Module, names: tuple[str, ...]) -> nn.Module | None:
    children = dict(block.named_children())
    return next((children[name] for name in names if name in children), None)


def linear_modules(model: PreTrainedModel) -> dict[str, nn.Module]:
    """The linear maps inside the blocks (nn.Linear and GPT-2's Conv1D) by dotted name, in the order of the model.

    A router that is one (Phi-MoE's) is left out, since it gives more than its product.
    """
    names = {id(module): name for name, module in model.named_modules()}
    return {
        names[id(module)]: module
        for block in blocks(model)
        for module in block.modules()
        if isinstance(module, nn.Linear | Conv1D) and type(module).forward in (nn.Linear.forward, Conv1D.forward)
    }


def path_of(model: nn.Module, part: nn.Module) -> str:
    """The dotted name of a part of a model."""
    return next(name for name, module in model.named_modules() if module is part)
