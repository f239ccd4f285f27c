"""A donor that reads the target's tokens."""

import torch
from torch import nn
from transformers import AutoModel, PreTrainedConfig

from .heard import Heard


class Donor(nn.Module):
    """The donor's blocks up to the last one that is used, and how it reads the target's tokens.

    A donor with the target's tokenizer reads its ids. Any other reads a table, `spelling`, that holds for each token
    of the target the donor's ids for the same characters; so a token's state depends on nothing to its right, and
    reading on is the same as reading anew. Each target token takes the state at its last character.
    """

    def __init__(self, config: PreTrainedConfig, blocks: str, spelled: tuple[int, int] | None, taken: list[int]):
        super().__init__()
        self.donor = AutoModel.from_config(config)
        self.blocks, self.taken = blocks, taken  # the list of blocks, and which of them give their states
        self.spelled = spelled is not None
        if spelled is not None:
            vocabulary, letters = spelled
            self.register_buffer("spelling", torch.zeros(letters, dtype=torch.int32))
            self.register_buffer("spelling_start", torch.zeros(vocabulary + 1, dtype=torch.int32))

    def states(
        self, input_ids: torch.Tensor, mask: torch.Tensor | None, heard: Heard | None
    ) -> tuple[tuple[torch.Tensor, ...], torch.Tensor | None]:
        """States [batch, tokens, donor width] of each block that is taken, for new target tokens.

        Second, where the donor has read something. `mask` [batch, tokens so far and new] is 1 at real target tokens,
        None where all are: attention without a mask is faster. `heard` is what earlier calls left.
        """
        if not self.spelled:
            return self._split(self._run(input_ids, mask, heard)), None
        new = torch.ones_like(input_ids) if mask is None else mask[:, -input_ids.shape[1] :]
        new = new.bool()
        start, end = self.spelling_start[input_ids].long(), self.spelling_start[input_ids + 1].long()
        length = (end - start) * new  # [batch, tokens]
        upto = length.cumsum(1)
        width = int(upto[:, -1].max())
        before = heard.last if heard is not None and heard.last is not None else None
        known = torch.zeros_like(new[:, 0]) if heard is None or heard.any is None else heard.any
        if width:
            column = torch.arange(width, device=input_ids.device)[None].expand(len(input_ids), -1).contiguous()
            token = torch.searchsorted(upto, column, right=True).clamp(max=input_ids.shape[1] - 1)
            offset = column - (upto - length).gather(1, token)
            real = column < upto[:, -1:]
            ids = self.spelling[(start.gather(1, token) + offset).clamp(max=len(self.spelling) - 1)].long() * real
            past = None if heard is None else heard.mask
            mask = real.long() if past is None else torch.cat([past, real.long()], dim=1)
            read = self._run(ids, mask, heard)
            if heard is not None:
                heard.mask = mask
        else:
            like = next(self.donor.parameters())
            read = like.new_zeros(len(input_ids), 0, self.donor.config.hidden_size * len(self.taken))
        if before is None:
            before = read.new_zeros(len(read), read.shape[-1])
        read = torch.cat([before[:, None], read], dim=1)  # column 0 is the state before the new tokens
        states = read.gather(1, upto[..., None].expand(-1, -1, read.shape[-1]))
        if heard is not None:
            heard.last = states[:, -1]
            heard.any = known | (upto[:, -1] > 0)
        return self._split(states), known[:, None] | (upto > 0)

    def _split(self, states: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return states.split(self.donor.config.hidden_size, dim=-1)

    def _run(self, ids: torch.Tensor, mask: torch.Tensor | None, heard: Heard | None) -> torch.Tensor:
        """The residual stream leaving each block that is taken, before any final norm, side by side."""
        kept: dict[int, torch.Tensor] = {}
        inner = self.donor.get_submodule(self.blocks)
        handles = []
        for place in sorted(set(self.taken)):

            def keep(module, args, output, place=place):
                kept[place] = output[0] if isinstance(output, tuple) else output

            handles.append(inner[place].register_forward_hook(keep))  # type: ignore[index]
        try:
            given = {"input_ids": ids, "attention_mask": mask, "position_ids": places(mask, ids.shape[1])}
            cache = {"use_cache": False} if heard is None else {"use_cache": True, "past_key_values": heard.cache}
            self.donor(**taken_by(self.donor, given), **cache)
        finally:
            for handle in handles:
                handle.remove()
        if len(kept) != len(handles):
            raise RuntimeError(f"Of the donor's blocks {self.taken} only {sorted(kept)} ran, expected all of them.")
        return torch.cat([kept[place] for place in self.taken], dim=-1)


def places(mask: torch.Tensor | None, new: int) -> torch.Tensor | None:
    """Positions of the new tokens [batch, new], as `mask` [batch, tokens so far and new] counts them."""
    return None if mask is None else (mask.cumsum(1) - 1).clamp(min=0)[:, -new:]


def taken_by(module: nn.Module, given: dict) -> dict:
    """Those of the arguments that are given and that a module's forward takes."""
    return {name: value for name, value in given.items() if value is not None and name in accepted(module)}


def accepted(module: nn.Module) -> tuple[str, ...]:
    """The names of the arguments that a module's forward takes."""
    code = type(module).forward
    while hasattr(code, "__wrapped__"):
        code = code.__wrapped__
    return code.__code__.co_varnames[: code.__code__.co_argcount + code.__code__.co_kwonlyargcount]
