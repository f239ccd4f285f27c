"""Seconds a token that a graft takes to decode, against its target and the donor blocks in use, each by itself.

    OMP_NUM_THREADS=2 python -m benchmarks.decoding --graft data/grafts/blade

The three decode the same tokens in turn, one token of each after the other, so that whatever else the machine does
meets all alike; each with its own cache, and the donor with its blocks up to the last one in use and nothing after
them. The ratio is of medians over tokens: graft / (target + donor). On the CPU in float32, and in bfloat16 on a GPU
where there is one. The claim is a ratio of at most 1.05.
"""

import statistics
from pathlib import Path

import torch
from transformers import PreTrainedModel

from stages.anatomy.loading import load, load_tokenizer
from stages.command import run
from stages.cost import times

TEXT = "The garden is green and we are all well here. What is 123 + 456? The rain came on Thursday and stayed. " * 3


def measure(graft: PreTrainedModel, ids: torch.Tensor, start: int) -> dict[str, float]:
    """Median seconds a token of each."""
    models = {"graft": graft, "target": graft.target}
    models |= {f"donor {number}": each.donor for number, each in enumerate(graft.donors)}
    if any(each.spelled for each in graft.donors):
        raise SystemExit("Expected donors with the target's tokenizer, whose tokens are the same; name such a graft.")
    seconds = times(list(models.values()), ids, start)
    return {name: statistics.median(each[8:]) for name, each in zip(models, seconds, strict=True)}


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
