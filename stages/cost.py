"""What a graft costs beside its target: parameters, bytes, arithmetic, time a token and memory.

Time is measured, so this is the one output that is not the same on every run: it is rounded to two significant digits,
and a machine with other work at the time gives longer ones, for both models alike.
"""

import statistics
import time
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pydantic
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode
from transformers import PreTrainedModel

from stages.anatomy.loading import load, load_tokenizer
from stages.command import run
from stages.errors import BadInput
from stages.items import PROMPT, read_items
from stages.settings import Settings, read
from stages.storage import write_json


class Cost(Settings):
    """How much text the cost is taken on."""

    tokens: int = pydantic.Field(default=64, gt=0)
    """Of a text of the capability's prompts, read before the timed ones."""
    repeats: int = pydantic.Field(default=12, gt=0)
    """Tokens that are timed, one by one; the time is their median."""


def cost(graft: PreTrainedModel, target: PreTrainedModel, ids: torch.Tensor, start: int) -> dict[str, int | float]:
    """The costs of both on `ids` [1, tokens], which both can read; times are of the tokens from `start` on.

    `parameters` counts a tied weight once. `flops_per_token` are the multiplications and additions of matrix products
    and attention in one pass over the tokens before `start`, divided by their number: counted, not estimated.
    `peak_bytes` is the most that tensors, weights included, held at once in that pass, and no kernel's own workspace.
    `ms_per_token` is the median over tokens read one by one with a cache, the two models in turn.
    """
    if not 0 < start < ids.shape[1]:
        raise BadInput(f"Expected tokens from {start} on to time, got {ids.shape[1]} in all; give a longer text.")
    models = {"": graft, "target_": target}
    found: dict[str, int | float] = {}
    for prefix, model in models.items():
        found |= {
            f"{prefix}parameters": sum(parameter.numel() for parameter in model.parameters()),
            f"{prefix}flops_per_token": significant(flops(model, ids[:, :start]) / start, 4),
            f"{prefix}peak_bytes": significant(peak(model, ids[:, :start])),
        }
    found["added_parameters"] = int(found["parameters"] - found["target_parameters"])
    for prefix, seconds in zip(models, times(list(models.values()), ids, start), strict=True):
        found[f"{prefix}ms_per_token"] = significant(1000 * statistics.median(seconds))
    return found


def significant(value: float, digits: int = 2) -> int | float:
    """`value` to so many significant digits; a whole number where it is one."""
    rounded = float(f"{value:.{digits}g}")
    return int(rounded) if rounded.is_integer() else rounded


@torch.inference_mode()
def flops(model: PreTrainedModel, ids: torch.Tensor) -> int:
    """Multiplications and additions of the matrix products and the attention in one pass over `ids` [batch, tokens]."""
    on_cpu = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu  # which PyTorch's counter does not know
    with FlopCounterMode(display=False, custom_mapping={on_cpu: _attention}) as counter:
        model(input_ids=ids, use_cache=False)
    return counter.get_total_flops()


def _attention(query: torch.Size, key: torch.Size, value: torch.Size, *args: Any, **kwargs: Any) -> int:
    """2 · batch · heads · queries · keys · (width of a key + width of a value), as for the other kernels: all keys
    count, masked or not. Shapes are [batch, heads, tokens, width of a head]."""
    return 2 * query[0] * query[1] * query[2] * key[2] * (key[3] + value[3])


@torch.inference_mode()
def peak(model: PreTrainedModel, ids: torch.Tensor) -> int:
    """The most bytes of tensors that lived at once in a pass over `ids` [batch, tokens], the weights included."""
    held = Held()
    for tensor in (*model.parameters(), *model.buffers()):
        held.note(tensor)
    with held:
        model(input_ids=ids, use_cache=False)
    return held.most


class Held(TorchDispatchMode):
    """Counts the bytes of all storages that operations give, for as long as they live."""

    def __init__(self):
        super().__init__()
        self._known: dict[int, weakref.ref] = {}
        self.now = self.most = 0

    def note(self, tensor: torch.Tensor) -> None:
        """Counts a tensor's storage, once."""
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key not in self._known:
            self._known[key] = weakref.ref(storage, lambda _: self._freed(key, size))
            self.now += size
            self.most = max(self.most, self.now)

    def _freed(self, key: int, size: int) -> None:
        del self._known[key]
        self.now -= size

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        for each in tree_leaves(made):
            if isinstance(each, torch.Tensor):
                self.note(each)
        return made


@torch.inference_mode()
def times(models: list[PreTrainedModel], ids: torch.Tensor, start: int) -> list[list[float]]:
    """Seconds of each model for each token of `ids` [1, tokens] from `start` on, read after all before it.

    The models take turns, token by token, so that whatever else the machine does meets all alike. On a GPU, which
    prepares attention once for each length, the first of them reads all tokens beforehand.
    """
    if ids.is_cuda:
        first = _reader(models[0], ids, start)
        for column in range(start, ids.shape[1]):
            first(column)
    steps = [_reader(model, ids, start) for model in models]
    seconds: list[list[float]] = [[] for _ in models]
    for column in range(start, ids.shape[1]):
        for step, taken in zip(steps, seconds, strict=True):
            taken.append(step(column))
    return seconds


def _reader(model: PreTrainedModel, ids: torch.Tensor, start: int) -> Callable[[int], float]:
    """A function that lets `model` read the token at a column after all before it, and gives the seconds it took."""
    cache = model(input_ids=ids[:, :start], use_cache=True).past_key_values

    def step(column: int) -> float:
        if ids.is_cuda:
            torch.cuda.synchronize()
        begin = time.perf_counter()
        model(input_ids=ids[:, column : column + 1], past_key_values=cache, use_cache=True)
        if ids.is_cuda:
            torch.cuda.synchronize()
        return time.perf_counter() - begin

    return step


def weight_bytes(directory: Path) -> int:
    """Of a model directory's weight files."""
    return sum(path.stat().st_size for path in directory.glob("*.safetensors"))


def main(graft: Path, target: Path, prompts: Path, out: Path, params: Path = Path("params.yaml")) -> None:
    """Take the cost of a graft and of its target, as params.yaml says under `cost`."""
    settings = read(params, "cost", Cost)
    words = " ".join(row["prompt"] + row["answer"] for row in read_items(prompts / "capability" / "test.jsonl", PROMPT))
    needed = settings.tokens + settings.repeats
    own = load_tokenizer(target)(words[: 16 * needed]).input_ids
    model, beside = load(graft), load(target)
    ids = torch.tensor([(own * needed)[:needed]], device=model.device)
    found = cost(model, beside, ids, settings.tokens)
    found |= {"bytes": weight_bytes(graft), "target_bytes": weight_bytes(target), "tokens": settings.tokens}
    write_json(out, found)
    print(f"{found['ms_per_token']} ms a token, the target {found['target_ms_per_token']}")


if __name__ == "__main__":
    run(main)
