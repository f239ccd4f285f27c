"""A donor's components in the target's place, at a strength."""

import contextlib
from collections import defaultdict
from collections.abc import Iterable, Iterator

import torch
from transformers import PreTrainedModel

from stages.anatomy.channels import Piece
from stages.errors import BadInput


def united(pieces: Iterable[Piece]) -> dict[str, Piece]:
    """One piece a parameter: all channels that some piece names, or the whole where one names that."""
    found: dict[str, list[Piece]] = defaultdict(list)
    for piece in pieces:
        found[piece.parameter].append(piece)
    made = {}
    for name, some in found.items():
        whole = next((piece for piece in some if piece.index is None), None)
        index = {channel for piece in some for channel in piece.index or ()}
        made[name] = whole or Piece(name, some[0].axis, tuple(sorted(index)))
    return made


@contextlib.contextmanager
@torch.no_grad()
def transplanted(
    target: PreTrainedModel, donor: PreTrainedModel, pieces: Iterable[Piece], strength: float
) -> Iterator[dict[str, torch.Tensor]]:
    """Inside the block these pieces of `target` are W + λ (W_donor − W), exactly the donor's at λ = 1; afterwards it is
    as before, bit for bit. Gives the parameters that are moved, by name, as they were.

    Raises BadInput where the donor lacks one or has it in another shape.
    """
    parts = united(pieces)
    theirs = dict(donor.named_parameters())
    for name in parts:
        ours, other = target.get_parameter(name), theirs.get(name)
        if other is None or other.shape != ours.shape:
            raise BadInput(
                f"Expected {name} of the donor to have the target's shape {list(ours.shape)}, got "
                f"{'none' if other is None else list(other.shape)}; use a blade with a bridge instead."
            )
    starts = {name: target.get_parameter(name).clone() for name in parts}
    try:
        for name, piece in parts.items():
            ours, other = target.get_parameter(name), theirs[name].to(starts[name])
            if piece.index is None:
                ours.lerp_(other, strength)
            else:
                index = torch.tensor(piece.index, device=ours.device)
                moved = (
                    starts[name].index_select(piece.axis, index).lerp(other.index_select(piece.axis, index), strength)
                )
                ours.index_copy_(piece.axis, index, moved)
        yield starts
    finally:
        for name, start in starts.items():
            target.get_parameter(name).copy_(start)


def relative_change(target: PreTrainedModel, donor: PreTrainedModel, pieces: Iterable[Piece]) -> float:
    """‖W_donor − W‖ / ‖W‖ over these pieces; infinite where the target's are all zero and the donor's are not."""
    change = size = 0.0
    theirs = dict(donor.named_parameters())
    for name, piece in united(pieces).items():
        ours, other = (each.double() for each in (target.get_parameter(name), theirs[name]))
        if piece.index is not None:
            index = torch.tensor(piece.index, device=ours.device)
            ours, other = (each.index_select(piece.axis, index) for each in (ours, other))
        change, size = change + float((other - ours).square().sum()), size + float(ours.square().sum())
    return (change / size) ** 0.5 if size else float("inf") if change else 0.0
