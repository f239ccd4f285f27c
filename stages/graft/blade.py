"""A donor whose hidden states are injected into the target while it runs."""

import torch
from torch import nn
from transformers import AutoModel, DynamicCache, PreTrainedConfig

from .bridge import Bridge
from .gate import Gate


class Injection(nn.Module):
    """h ← h + α · g(h, B d) ⊙ (B d − m · h), with m = 1 for the mix `delta` and 0 for `add`.

    d is the donor's state for the same text, B the bridge, g the gate. `add` with an identity gate is the formula of
    the literature.
    """

    def __init__(self, gate: str, bridge: str, mix: str, alpha: float, donor_width: int, target_width: int):
        super().__init__()
        if mix not in ("delta", "add"):
            raise ValueError(f"Expected mix delta or add, got {mix!r}; name one of these.")
        self.gate = Gate(gate, target_width)
        self.bridge = Bridge(bridge, donor_width, target_width)
        self.mix, self.alpha = mix, alpha

    def forward(self, h: torch.Tensor, d: torch.Tensor, known: torch.Tensor | None = None) -> torch.Tensor:
        """New states [batch, tokens, width] from the target's `h` and the donor's `d` [batch, tokens, donor width].

        Tokens where `known` [batch, tokens] is False, since the donor has read nothing yet, stay as they are.
        """
        x = self.bridge(d)
        change = self.gate(h, x) * (x - h if self.mix == "delta" else x)
        if known is not None:
            change = change * known[..., None].to(change.dtype)
        return h + self.alpha * change


class Heard:
    """What a blade remembers between calls of one generation: its cache and, for another tokenizer, where it stands."""

    def __init__(self):
        self.cache = DynamicCache()
        self.mask: torch.Tensor | None = None  # [batch, donor tokens so far], 1 at real ones
        self.last: torch.Tensor | None = None  # [batch, donor width], state at each row's last real token
        self.any: torch.Tensor | None = None  # [batch], whether a row has one

    def apply(self, change) -> None:
        """Rearranges the rows of everything remembered by `change`, a function of a tensor."""
        for name in ("mask", "last", "any"):
            if getattr(self, name) is not None:
                setattr(self, name, change(getattr(self, name)))


class Blade(nn.Module):
    """The donor's blocks up to the one that is used, and how it reads the target's tokens.

    A donor with the target's tokenizer reads its ids. Any other reads a table, `spelling`, that holds for each token
    of the target the donor's ids for the same characters; so a token's state depends on nothing to its right, and
    reading on is the same as reading anew. Each target token takes the state at its last character.
    """

    def __init__(self, config: PreTrainedConfig, blocks: str, spelled: tuple[int, int] | None):
        super().__init__()
        self.donor = AutoModel.from_config(config)
        self.blocks = blocks
        self.spelled = spelled is not None
        if spelled is not None:
            vocabulary, letters = spelled
            self.register_buffer("spelling", torch.zeros(letters, dtype=torch.int32))
            self.register_buffer("spelling_start", torch.zeros(vocabulary + 1, dtype=torch.int32))

    def states(
        self, input_ids: torch.Tensor, mask: torch.Tensor, heard: Heard | None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """The donor's states [batch, tokens, donor width] for new target tokens, and where it has read something.

        `mask` [batch, tokens so far and new] is 1 at real target tokens; `heard` is what earlier calls left.
        """
        if not self.spelled:
            position = (mask.cumsum(1) - 1).clamp(min=0)[:, -input_ids.shape[1] :]
            return self._run(input_ids, mask, position, heard), None
        new = mask[:, -input_ids.shape[1] :].bool()
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
            position = (mask.cumsum(1) - 1).clamp(min=0)[:, -width:]
            read = self._run(ids, mask, position, heard)
            if heard is not None:
                heard.mask = mask
        else:
            like = next(self.donor.parameters())
            read = like.new_zeros(len(input_ids), 0, self.donor.config.hidden_size)
        if before is None:
            before = read.new_zeros(len(read), read.shape[-1])
        read = torch.cat([before[:, None], read], dim=1)  # column 0 is the state before the new tokens
        states = read.gather(1, upto[..., None].expand(-1, -1, read.shape[-1]))
        if heard is not None:
            heard.last = states[:, -1]
            heard.any = known | (upto[:, -1] > 0)
        return states, known[:, None] | (upto > 0)

    def _run(self, ids: torch.Tensor, mask: torch.Tensor, position: torch.Tensor, heard: Heard | None) -> torch.Tensor:
        """The residual stream leaving the last block kept, before any final norm."""
        kept: list[torch.Tensor] = []

        def keep(module, args, output):
            kept.append(output[0] if isinstance(output, tuple) else output)

        handle = self.donor.get_submodule(self.blocks)[-1].register_forward_hook(keep)
        try:
            given = {"input_ids": ids, "attention_mask": mask, "position_ids": position}
            cache = {"use_cache": False} if heard is None else {"use_cache": True, "past_key_values": heard.cache}
            self.donor(**{k: v for k, v in given.items() if k in accepted(self.donor)}, **cache)
        finally:
            handle.remove()
        if len(kept) != 1:
            raise RuntimeError(f"The donor's last block ran {len(kept)} times in one pass, expected once.")
        return kept[0]


def accepted(module: nn.Module) -> tuple[str, ...]:
    """The names of the arguments that a module's forward takes."""
    code = type(module).forward
    while hasattr(code, "__wrapped__"):
        code = code.__wrapped__
    return code.__code__.co_varnames[: code.__code__.co_argcount + code.__code__.co_kwonlyargcount]
