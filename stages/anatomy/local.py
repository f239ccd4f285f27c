"""A donor's modules on the target's own inputs: what each of them changes by itself."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from stages.anatomy.blocks import attention_of, blocks, mlp_of
from stages.anatomy.modules import linear_paths
from stages.anatomy.places import Place
from stages.anatomy.sites import sites_of
from stages.errors import BadInput

See = Callable[[str, Tensor, Tensor], None]


def fits(target: PreTrainedModel, donor: PreTrainedModel) -> bool:
    """Whether each block of the donor can stand in the place of the target's."""
    forms = [
        [(type(block), {name: p.shape for name, p in block.named_parameters()}) for block in blocks(model)]
        for model in (target, donor)
    ]
    return forms[0] == forms[1]


@torch.inference_mode()
def compare_on_shared_inputs(target: PreTrainedModel, donor: PreTrainedModel, ids: Tensor, see: See) -> None:
    """Shows `see`, site by site, the target's state [batch, tokens, width] and the donor's on the same input.

    The target runs on `ids` [batch, tokens]; wherever its block, attention, MLP or linear module takes its input, the
    donor's module of that place is given the very same one (masks, positions and all). Sites are `layers.I`,
    `layers.I.self_attn`, `layers.I.mlp` and the names of `linear_paths`. What `see` is shown it must not keep, or copy.
    Experts that see only the tokens routed to them are left out. Raises BadInput unless `fits`, and when a pass
    reaches a block's part in neither model.
    """
    if not fits(target, donor):
        raise BadInput(
            f"Expected a donor with the target's blocks to compare module by module, got {type(donor).__name__} for "
            f"{type(target).__name__} or other sizes; compare only what both models do on their own."
        )
    shape, seen = ids.shape, set()

    def show(site: str, ours: Tensor, theirs: Tensor) -> None:
        seen.add(site)
        see(site, ours.reshape(*shape, -1), theirs.reshape(*shape, -1))

    parts = {site: place for site, place in sites_of(target).items() if _is_part(site)}
    with contextlib.ExitStack() as stack:
        ours = stack.enter_context(_noting(parts))
        theirs = stack.enter_context(_noting({site: sites_of(donor)[site] for site in parts}))
        for site, module, other in _modules(target, donor, stack):

            def after(_: Any, args: Any, kwargs: Any, _out: Any, site: str = site, other: Any = other) -> None:
                other(*args, **kwargs)
                show(site, ours[site], theirs[site])

            stack.callback(module.register_forward_hook(after, with_kwargs=True).remove)
        for site, path in linear_paths(target).items():

            def beside(_: Any, args: Any, output: Tensor, site: str = site, path: str = path) -> None:
                if output.shape[:-1].numel() == shape.numel():
                    show(site, output, donor.get_submodule(path)(*args))

            stack.callback(target.get_submodule(path).register_forward_hook(beside).remove)
        target.base_model(input_ids=ids.to(target.device), use_cache=False)
    silent = [site for site in parts if site not in seen]
    if silent:
        raise BadInput(f"Expected a forward pass to reach {', '.join(silent)}, but none did; this model is not read.")


def _is_part(site: str) -> bool:
    """Whether a site is a block, its attention or its MLP."""
    _, *rest = site.split(".")
    return len(rest) == 1 or (len(rest) == 2 and rest[1] in ("self_attn", "mlp"))


@contextlib.contextmanager
def _noting(places: dict[str, Place]) -> Iterator[dict[str, Tensor]]:
    """The state that passed last at each of `places`."""
    latest: dict[str, Tensor] = {}
    with contextlib.ExitStack() as stack:
        for site, place in places.items():

            def note(_: Any, inputs: Any, output: Any, site: str = site, place: Place = place) -> None:
                latest[site] = place.read(inputs, output)

            stack.callback(place.module.register_forward_hook(note).remove)
        yield latest


def _modules(
    target: PreTrainedModel, donor: PreTrainedModel, stack: contextlib.ExitStack
) -> Iterator[tuple[str, nn.Module, Callable[..., Any]]]:
    """Each part's site, the target's module after which it is compared, and what runs the donor's on its arguments."""
    for layer, (block, other) in enumerate(zip(blocks(target), blocks(donor), strict=True)):
        for site, find in ((f"layers.{layer}.self_attn", attention_of), (f"layers.{layer}.mlp", mlp_of)):
            module, guest = find(block), find(other)
            if module is not None and guest is not None:
                yield site, module, guest
        if mlp_of(block) is None and hasattr(block, "fc1"):
            yield f"layers.{layer}.mlp", block.get_submodule("fc2"), _in_two(block, other, stack)
        yield f"layers.{layer}", block, other


def _in_two(block: nn.Module, other: nn.Module, stack: contextlib.ExitStack) -> Callable[..., Tensor]:
    """Runs, on what enters the target's, the MLP of a donor's block that holds the matrices itself, as OPT's do."""
    entered: list[Tensor] = []

    def note(_: Any, inputs: tuple[Tensor]) -> None:
        entered[:] = inputs

    stack.callback(block.get_submodule("fc1").register_forward_pre_hook(note).remove)
    parts = [other.get_submodule(name) for name in ("fc1", "activation_fn", "fc2")]

    def run(*_: Any, **__: Any) -> Tensor:
        return parts[2](parts[1](parts[0](entered[0])))

    return run
