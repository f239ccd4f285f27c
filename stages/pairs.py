"""Two models' states of the same texts, row by row."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from stages.activations import Activations
from stages.anatomy.names import kind_of
from stages.errors import BadInput
from stages.maths.massive import massive
from stages.maths.offsets import donor_rows

CHUNK = 8192
"""Rows of states held at a time."""


@dataclass(frozen=True)
class Pairing:
    """Which rows of a donor's file stand beside which rows of a target's, without attention sinks."""

    target: torch.Tensor
    """[rows], indices into the target's states"""
    donor: torch.Tensor
    """[rows], indices into the donor's states"""
    prompt: torch.Tensor
    """[rows], the prompt of each"""
    same_tokens: bool
    """Whether both tokenizers cut these texts alike."""


def paired(target: Activations, donor: Activations) -> Pairing:
    """Every target row beside the donor's row that holds its last character.

    Left out are each prompt's first token in either file, tokens whose state is massive in any block of either, and
    target rows that no donor row stands for. Raises BadInput when the files
    are of different texts or hold no block.
    """
    if (target.ids, target.digests) != (donor.ids, donor.digests):
        raise BadInput(
            f"Expected two captures of the same texts, got {len(target.ids)} texts in {target.path} and others in "
            f"{donor.path} ({len(donor.ids)}); capture both models again with the same prompts."
        )
    same = torch.equal(target.starts, donor.starts) and torch.equal(target.tokens, donor.tokens)
    if same:
        rows = torch.arange(len(target.tokens))
    else:
        rows = donor_rows(target.offsets, target.starts, donor.offsets, donor.starts)
    kept = ~_sinks(target) & (rows >= 0) & ~_sinks(donor)[rows]
    index = kept.nonzero()[:, 0]
    return Pairing(index, rows[index], target.prompt[index], same)


@dataclass(frozen=True)
class PairedRows:
    """Donor and target states side by side, read from their files chunk by chunk, anew at each iteration."""

    donor: Tensor
    """[donor tokens, donor width], mapped"""
    target: Tensor
    """[target tokens, target width], mapped"""
    donor_rows: Tensor
    """[rows], indices into the donor's states"""
    target_rows: Tensor
    """[rows], indices into the target's states"""
    chunk: int = CHUNK
    """Rows held at a time."""

    def __iter__(self) -> Iterator[tuple[Float[Tensor, "rows source"], Float[Tensor, "rows target"]]]:
        for theirs, ours in zip(self.donor_rows.split(self.chunk), self.target_rows.split(self.chunk), strict=True):
            yield self.donor[theirs].float(), self.target[ours].float()


def _sinks(activations: Activations) -> torch.Tensor:
    """[tokens], first tokens and those massive in some block, since a sink stays one where it is not as massive."""
    sinks = activations.first
    for site in block_sites(activations):
        norms = [states.float().norm(dim=1) for states in activations.mapped(site).split(CHUNK)]
        sinks = sinks | massive(torch.cat(norms)[:, None])  # the norm of a norm is itself
    return sinks


def block_sites(activations: Activations) -> list[str]:
    """The residual streams that a file holds, by layer; BadInput when it holds none."""
    sites = [site for site in activations.sites if kind_of(site) == "block"]
    if not sites:
        raise BadInput(f"{activations.path} holds no block's states; add layers.* to capture.sites and capture again.")
    return sites
