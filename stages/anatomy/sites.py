"""Sites: one canonical name for each place in a model, whatever its architecture calls it."""

from torch import nn
from transformers import PreTrainedModel

from stages.anatomy.blocks import attention_of, blocks, mlp_output_of, stack
from stages.anatomy.names import layer_of
from stages.errors import BadInput, nearest

_FINAL_NORM = ("norm", "ln_f", "final_layer_norm", "final_layernorm", "norm_f")


def sites_of(model: PreTrainedModel) -> dict[str, nn.Module]:
    """Every site of `model`, in the order in which a forward pass reaches them, and the module whose output it is.

    `layers.I` is the residual stream that leaves block I, `layers.I.self_attn` and `layers.I.mlp` are the outputs of
    its attention and its MLP, before any norm that follows them (Gemma 2). OPT's MLP is the output of its `fc2`.
    """
    found: dict[str, nn.Module | None] = {"embed": model.get_input_embeddings()}
    for index, block in enumerate(blocks(model)):
        found[f"layers.{index}.self_attn"] = attention_of(block)
        found[f"layers.{index}.mlp"] = mlp_output_of(block)
        found[f"layers.{index}"] = block
    siblings = dict(stack(model).named_children())
    found["norm"] = next((siblings[name] for name in _FINAL_NORM if name in siblings), None)
    found["lm_head"] = model.get_output_embeddings()
    return {name: module for name, module in found.items() if module is not None}


def resolve(model: PreTrainedModel, site: str) -> nn.Module:
    """The module whose output is `site`; BadInput names the nearest site that the model has."""
    return _pick(sites_of(model), site)


def resolve_all(model: PreTrainedModel, sites: list[str]) -> dict[str, nn.Module]:
    """Each of `sites` with the module whose output it is; BadInput as from `resolve`."""
    known = sites_of(model)
    return {site: _pick(known, site) for site in sites}


def _pick(known: dict[str, nn.Module], site: str) -> nn.Module:
    if site not in known:
        last = max((int(name.split(".")[1]) for name in known if name.startswith("layers.")), default=-1)
        index = layer_of(site)
        hint = f"layers go from 0 to {last}" if index is not None and index > last else nearest(site, known)
        raise BadInput(f"Expected a site of the model, got {site!r}; {hint}.".replace("?.", "?"))
    return known[site]
