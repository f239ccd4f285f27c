"""Pairs of prompts that differ in their numbers alone, for patching a clean run's states into a corrupted one."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from stages.anatomy.encoding import Batch, Encoded, batches, rows_of
from stages.errors import BadInput


@dataclass(frozen=True)
class Contrast:
    """The same rows twice: item i of a clean batch and of its corrupted one have equal positions and one answer."""

    clean: list[Batch]
    corrupted: list[Batch]


def partners(prompts: Sequence[str], encoded: Sequence[Encoded], count: int) -> list[tuple[Encoded, Encoded]]:
    """Clean and corrupted versions of the first `count` items, as far as they have a partner.

    The partner is the next item (the file read as a ring) whose prompt is the same but for its digits and has as many
    tokens, with another answer; the corrupted version is the partner's prompt with the clean answer, whose
    log-likelihood is what patching restores. Raises BadInput when no item has a partner.
    """
    forms = [(re.sub(r"\d", "0", prompt), e.start) for prompt, e in zip(prompts, encoded, strict=True)]
    found = []
    for i in range(min(count, len(encoded))):
        clean = encoded[i]
        for j in (*range(i + 1, len(encoded)), *range(i)):
            other = encoded[j]
            if forms[j] == forms[i] and other.ids[other.start :] != clean.ids[clean.start :]:
                found.append((clean, Encoded((*other.ids[: other.start], *clean.ids[clean.start :]), clean.start)))
                break
    if not found:
        raise BadInput(
            f"Expected prompts that differ in their digits alone, got none among {len(prompts)}; give more items or "
            "leave 'clean' out of `activations`."
        )
    return found


def contrast(pairs: Sequence[tuple[Encoded, Encoded]], budget: int) -> Contrast:
    """Clean and corrupted batches of the pairs, one row an item, at most `budget` padded tokens a batch.

    Raises BadInput where the two of a pair have other token counts or answers.
    """
    for clean, corrupted in pairs:
        if (len(clean.ids), clean.ids[clean.start :]) != (len(corrupted.ids), corrupted.ids[corrupted.start :]):
            raise BadInput(
                f"Expected a clean and a corrupted prompt of equal token count with one answer, got {clean} and "
                f"{corrupted}; pair prompts that differ in single tokens."
            )
    groups = list(batches([len(clean.ids) - 1 for clean, _ in pairs], budget))
    sides = [[rows_of([pair[side] for pair in pairs], [[i] for i in group]) for group in groups] for side in (0, 1)]
    return Contrast(*sides)
