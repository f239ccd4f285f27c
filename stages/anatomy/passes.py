"""What the passes of a model read, followed while they run: where in its text a token stands, and what donors say."""

import contextlib
import inspect
from collections.abc import Iterator
from typing import Any

import torch
from transformers import DynamicCache, PreTrainedModel

from stages.anatomy.blocks import stack
from stages.errors import BadInput
from stages.graft.call import Call
from stages.graft.donor import Donor
from stages.graft.modeling import GraftCache


class Passes:
    """What the pass under way reads: where in its text each new token stands, and what donors have to say of it."""

    def __init__(self) -> None:
        self._donors: list[Donor] = []
        self._positions: torch.Tensor | None = None
        self._call: Call | None = None

    def carry(self, donor: Donor) -> int:
        """The number under which `donor` is asked for its states."""
        if not any(each is donor for each in self._donors):
            self._donors.append(donor)
        return next(number for number, each in enumerate(self._donors) if each is donor)

    @contextlib.contextmanager
    def of(self, model: PreTrainedModel) -> Iterator[None]:
        """Inside the block, every pass of `model` is followed, and its caches hold what the donors remember."""
        runs = stack(model)
        signature = inspect.signature(runs.forward)

        def note(_runs: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any]:
            bound = signature.bind(*args, **kwargs)
            given = bound.arguments | bound.arguments.get("kwargs", {})
            if self._donors and given.get("use_cache") is not False:
                kwargs = kwargs | {"past_key_values": self._remembering(model, given.get("past_key_values"))}
                given |= kwargs
            self._positions = _positions(given)
            if self._donors:
                self._call = self._asked(model, given)
            return args, kwargs

        handle = runs.register_forward_pre_hook(note, with_kwargs=True)
        try:
            yield
        finally:
            handle.remove()
            self._positions = self._call = None

    def _remembering(self, model: PreTrainedModel, past: Any) -> GraftCache:
        """A cache in which the donors remember too, and which goes on from `past`."""
        if isinstance(past, _Cache) and past.owner is self:
            return past
        if isinstance(past, GraftCache):
            raise BadInput("Expected one injector with blades on a plain model, got two; give one injector all blades.")
        if past is not None and (_seen(past) or type(past) is not DynamicCache):
            raise BadInput(
                f"Expected the cache of a pass inside the block, or an empty DynamicCache, got {type(past).__name__} "
                f"with {_seen(past)} tokens, which the donor has not read; begin without one."
            )
        return _Cache(model.config.get_text_config(), self)

    def _asked(self, model: PreTrainedModel, given: dict[str, Any]) -> Call:
        ids, past = given.get("input_ids"), given.get("past_key_values")
        if ids is None:
            raise BadInput("Expected input_ids, which a donor reads too, got inputs_embeds; pass the token ids.")
        mask = given.get("attention_mask")
        if not isinstance(mask, torch.Tensor) or mask.ndim != 2:
            mask = ids.new_ones(len(ids), _seen(past) + ids.shape[1])
        memories = past.memories if isinstance(past, GraftCache) else None
        return Call(model, "", torch.nn.ModuleList(self._donors), ids, mask, memories)

    def positions(self, count: int) -> torch.Tensor:
        """[batch, count], from 0 at each text's first token; of the last `count` tokens where a site sees fewer."""
        assert self._positions is not None
        return self._positions[:, -count:]

    def states(self, number: int, taken: int, count: int) -> tuple[torch.Tensor, torch.Tensor | None]:
        """A donor's states [batch, count, width] and where it has read something, of the last `count` tokens."""
        assert self._call is not None
        states, known = self._call.states(number, taken)
        return states[:, -count:], None if known is None else known[:, -count:]


class _Cache(GraftCache):
    """A cache whose memories are those of one injector's donors."""

    def __init__(self, config: Any, owner: Passes) -> None:
        super().__init__(config)
        self.owner = owner


def _seen(past: Any) -> int:
    return 0 if past is None else int(past.get_seq_length())


def _positions(given: dict[str, Any]) -> torch.Tensor:
    """[batch, tokens], of the new tokens of a pass with these arguments."""
    entering = given.get("input_ids")
    batch, count = (given["inputs_embeds"] if entering is None else entering).shape[:2]
    mask = given.get("attention_mask")
    if isinstance(mask, torch.Tensor) and mask.ndim == 2:
        return (mask.long().cumsum(1) - 1).clamp(min=0)[:, -count:]
    if (told := given.get("position_ids")) is not None:
        return told.expand(batch, -1)
    seen = _seen(given.get("past_key_values"))
    return torch.arange(seen, seen + count).expand(batch, -1)
