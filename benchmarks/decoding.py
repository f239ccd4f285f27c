"""Seconds a token that a graft takes to decode, against its target and the donor blocks in use, each by itself.

    OMP_NUM_THREADS=2 python -m benchmarks.decoding --graft data/grafts/blade

The three decode the same tokens in turn, one token of each after the other, so that whatever else the machine does
meets all alike; each with its own cache, and the donor with its blocks up to the last one in use and nothing after
them. The ratio is of medians over tokens: graft / (target + donor). On the CPU in float32, and in bfloat16 on a GPU
where there is one. The claim is a ratio of at most 1.05.
"""

import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from transformers import DynamicCache, PreTrainedModel

from stages.anatomy.loading import load, load_tokenizer
from stages.command import run

TEXT = "The garden is green and we are all well here. What is 123 + 456? The rain came on Thursday and stayed. " * 3


def decoder(model: PreTrainedModel, ids: torch.Tensor, start: int) -> Callable[[int], float]:
    """A function that lets `model` read the token at a column after all before it, and gives the seconds it took."""
    cache = model(input_ids=ids[:, :start], use_cache=True, past_key_values=DynamicCache()).past_key_values

    def step(column: int) -> float:
        if ids.is_cuda:
            torch.cuda.synchronize()
        begin = time.perf_counter()
        model(input_ids=ids[:, column : column + 1], past_key_values=cache, use_cache=True)
        if ids.is_cuda:
            torch.cuda.synchronize()
        return time.perf_counter() - begin

    return step


@torch.inference_mode()
def measure(graft: PreTrainedModel, ids: torch.Tensor, start: int) -> dict[str, float]:
    """Median seconds a token of each."""
    models = {"graft": graft, "target": graft.target}
    models |= {f"donor {number}": each.donor for number, each in enumerate(graft.donors)}
    if any(each.spelled for each in graft.donors):
        raise SystemExit("Expected donors with the target's tokenizer, whose tokens are the same; name such a graft.")
    first = decoder(graft.target, ids, start)
    for column in range(start, ids.shape[1]):
        first(column)  # on a GPU attention is prepared once for each length, by whoever comes first
    steps = {name: decoder(model, ids, start) for name, model in models.items()}
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for column in range(start, ids.shape[1]):
        for name, step in steps.items():
            seconds[name].append(step(column))
    return {name: statistics.median(each[8:]) for name, each in seconds.items()}


def main(graft: Path, tokens: int = 72) -> None:
    """Print the ratio on the CPU and, where there is one, on a GPU."""
    row = load_tokenizer(graft)(TEXT).input_ids
    for device in ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]:
        model = load(graft, torch.bfloat16 if device == "cuda" else torch.float32, device)
        ids = torch.tensor([(row * tokens)[: 16 + tokens]], device=device)
        told = measure(model, ids, 16)
        apart = sum(value for name, value in told.items() if name != "graft")
        each = ", ".join(f"{name} {1000 * value:.2f} ms" for name, value in told.items())
        print(f"{device}: {each}; graft / (target + donors) {told['graft'] / apart:.3f}")


if __name__ == "__main__":
    run(main)
