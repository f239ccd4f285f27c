"""One forward pass of a graft: what its parts may ask for, and where they take hold."""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from .donor import Donor
from .heard import Heard


class Call:
    """The new tokens, the donors' states for them, and the hooks by which parts change what the target computes.

    Used as a context; at its end every hook is gone, and one that did not fire once is an error. A donor runs when a
    part first asks for its states, and not at all in a pass where none does, or where a limit leaves it nothing to say.
    """

    def __init__(
        self,
        target: nn.Module,
        blocks: str,
        donors: nn.ModuleList,
        input_ids: torch.Tensor,
        mask: torch.Tensor | None,
        memories: dict[str, Heard] | None,
    ):
        self.target, self.blocks, self.donors = target, blocks, donors
        self.input_ids, self.mask = input_ids, mask  # [batch, new tokens], [batch, tokens so far and new] or all real
        self._memories = memories
        self._read: dict[int, tuple[tuple[torch.Tensor, ...], torch.Tensor | None]] = {}
        self._limits: dict[int, torch.Tensor] = {}
        self._ran: set[int] = set()
        self._handles: list = []
        self._fired: list[list] = []  # module and count

    def block(self, layer: int) -> nn.Module:
        """A block of the target."""
        return self.target.get_submodule(self.blocks)[layer]  # type: ignore[index]

    def memory(self, name: str) -> Heard | None:
        """What the part called `name` left in earlier calls of this generation; None without a cache."""
        return None if self._memories is None else self._memories.setdefault(name, Heard())

    def states(self, donor: int, taken: int = 0) -> tuple[torch.Tensor, torch.Tensor | None]:
        """States [batch, new tokens, donor width] from the block that stands at `taken` in the donor's list of those.

        Second, [batch, new tokens], where it is to be heard: where it has read something, within its limit; None for
        everywhere.
        """
        if donor not in self._read:
            self._read[donor] = self._run(donor)
        states, known = self._read[donor]
        return states[taken], known

    def limit(self, donor: int, opened: torch.Tensor) -> None:
        """In this pass the donor is heard at the new tokens where `opened` [batch, new tokens] alone.

        To be told before a part asks for the donor's states; once open, a row stays so.
        """
        self._limits[donor] = opened

    def before(self, module: nn.Module, change: Callable[[torch.Tensor], torch.Tensor]) -> None:
        """In this pass `module` takes in the changed states."""
        count = self._count(module)

        def enter(_, args, kwargs):
            count[1] += 1
            if args:
                return (change(args[0]), *args[1:]), kwargs
            return args, kwargs | {"hidden_states": change(kwargs["hidden_states"])}

        self._handles.append(module.register_forward_pre_hook(enter, with_kwargs=True))

    def after(self, module: nn.Module, change: Callable[[torch.Tensor], torch.Tensor]) -> None:
        """In this pass `module` gives out the changed states."""

        def leave(_, output):
            return (change(output[0]), *output[1:]) if isinstance(output, tuple) else change(output)

        self.remake(module, leave)

    def remake(self, module: nn.Module, make: Callable[[tuple, Any], Any]) -> None:
        """In this pass `module` gives out what `make` makes of its inputs and its output."""
        count = self._count(module)

        def leave(_, args, output):
            count[1] += 1
            return make(args, output)

        self._handles.append(module.register_forward_hook(leave))

    def _count(self, module: nn.Module) -> list:
        self._fired.append([module, 0])
        return self._fired[-1]

    def _run(self, number: int) -> tuple[tuple[torch.Tensor, ...], torch.Tensor | None]:
        donor, heard, ids = self.donors[number], self.memory(f"donor {number}"), self.input_ids
        assert isinstance(donor, Donor)
        new, limit = ids.shape[1], self._limits.get(number)
        rows = None if limit is None else limit[:, -1]
        if rows is not None and not rows.any():
            like = next(donor.parameters())
            return (like.new_zeros(*ids.shape, donor.donor.config.hidden_size),) * len(donor.taken), limit
        self._ran.add(number)
        if heard is None and rows is not None:  # with a cache all rows are read, since its rows go on together
            mask = None if self.mask is None else self.mask[rows]
            states, known = donor.states(ids[rows], mask, None)
            states = tuple(_among(each, rows) for each in states)
            known = None if known is None else _among(known, rows)
        else:
            states, known = donor.states(ids if heard is None else heard.due(ids), self.mask, heard)
            states, known = tuple(s[:, -new:] for s in states), None if known is None else known[:, -new:]
        if limit is not None:
            known = limit if known is None else known & limit
        return states, known

    def __enter__(self):
        return self

    def __exit__(self, kind, error, trace) -> None:
        for handle in self._handles:
            handle.remove()
        if kind is not None:
            return
        for module, count in self._fired:
            if count != 1:
                name = next((n for n, m in self.target.named_modules() if m is module), "A module")
                raise RuntimeError(f"{name} of the target ran {count} times in one pass, expected once.")
        for number in range(len(self.donors)):
            heard = self.memory(f"donor {number}")
            if number not in self._ran and heard is not None:
                heard.put_off(self.input_ids)


def _among(some: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """Rows [open rows, ...] where `rows` [batch] is True, zeros elsewhere."""
    every = some.new_zeros(len(rows), *some.shape[1:])
    every[rows] = some
    return every
