"""Parts of donors kept in a bank, and the grafts that take from it: which parts, put where, how far."""

import pydantic

from stages.settings import Settings


class BankRecipe(Settings):
    """A bank's section under `bank`."""

    donor: str
    """The name of the model whose parts it keeps."""
    sites: tuple[str, ...] = pydantic.Field(min_length=1)
    """Patterns of components: `embed`, `layers.*`, `layers.3.self_attn.heads.*`, `layers.*.mlp.experts.2`, `norm`."""


class WithdrawRecipe(Settings):
    """A variant's section under `withdraw`."""

    bank: str
    """The bank's name."""
    control_for: str | tuple[str, ...] | None = None
    """The variant, or variants, that this one is a control for."""
    sites: tuple[str, ...] = pydantic.Field(default=("*",), min_length=1)
    """Patterns of the bank's components; `*` alone means all."""
    layer: int | float | str | None = None
    """The target's block to which components go, where they all are of one block; else to that of their own index."""
    strength: float = pydantic.Field(default=1.0, gt=0, le=1)
    """λ in target + λ · (component − target)."""
    shuffled: bool = False
    """Each component goes to the place of the next one of its kind and shapes: the control."""
