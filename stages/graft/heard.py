"""What a part of a graft remembers between calls of one generation."""

import torch
from transformers import DynamicCache


class Heard:
    """A donor's cache; for another tokenizer, where it stands; and what it was not asked to read yet."""

    def __init__(self):
        self.cache = DynamicCache()
        self.mask: torch.Tensor | None = None  # [batch, donor tokens so far], 1 at real ones
        self.last: torch.Tensor | None = None  # [batch, donor width], state at each row's last real token
        self.any: torch.Tensor | None = None  # [batch], whether a row has one
        self.unread: torch.Tensor | None = None  # [batch, target tokens]
        self.opened: torch.Tensor | None = (
            None  # [batch, target tokens so far], where a condition lets a donor be heard
        )

    def put_off(self, input_ids: torch.Tensor) -> None:
        """Keeps new target tokens [batch, tokens] to be read when the donor is next asked."""
        self.unread = input_ids if self.unread is None else torch.cat([self.unread, input_ids], dim=1)

    def due(self, input_ids: torch.Tensor) -> torch.Tensor:
        """All that is unread and the new tokens [batch, tokens], which count as read from now on."""
        self.put_off(input_ids)
        due, self.unread = self.unread, None
        assert due is not None
        return due

    def reorder(self, beam_idx: torch.Tensor) -> None:
        self.cache.reorder_cache(beam_idx)
        self._apply(lambda t: t.index_select(0, beam_idx.to(t.device)))

    def select(self, indices: torch.Tensor) -> None:
        self.cache.batch_select_indices(indices)
        self._apply(lambda t: t[indices])

    def repeat(self, repeats: int) -> None:
        self.cache.batch_repeat_interleave(repeats)
        self._apply(lambda t: t.repeat_interleave(repeats, dim=0))

    def crop(self, tokens_to_remove: int) -> None:
        """Forgets the last tokens; `tokens_to_remove` is negative, as in transformers' caches."""
        if self.mask is not None and tokens_to_remove:
            raise NotImplementedError(
                "A donor with another tokenizer cannot forget tokens; generate without assistance."
            )
        if self.unread is not None:
            waiting = self.unread.shape[1]
            self.unread = self.unread[:, :tokens_to_remove] if -tokens_to_remove < waiting else None
            tokens_to_remove = min(0, tokens_to_remove + waiting)
        if self.opened is not None and tokens_to_remove:
            self.opened = self.opened[:, :tokens_to_remove]
        self.cache.crop(tokens_to_remove)

    def _apply(self, change) -> None:
        for name in ("mask", "last", "any", "unread", "opened"):
            if getattr(self, name) is not None:
                setattr(self, name, change(getattr(self, name)))
