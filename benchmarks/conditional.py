"""What a conditional donor costs on prompts outside its domain, and what the condition costs of the capability.

    OMP_NUM_THREADS=2 python -m benchmarks.conditional --graft data/grafts/conditional_blade \\
        --donor data/models/sibling --text data/prompts/retention/text.jsonl \\
        --capability data/prompts/capability/test.jsonl

Time: each text's beginning is read and some tokens are decoded after it, by the target, by the graft and by the graft
without its condition in turn; the ratios are of sums over texts of the best of the repeats. Texts that the condition
lets through count with what they cost. Recovery: (graft − target) / (donor − target) of greedy answers that are right,
with the condition and without. The claims are a ratio of at most 1.05 and a fall of at most 0.01.
"""

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import nn
from transformers import PreTrainedModel

from stages.anatomy.encoding import encode
from stages.anatomy.likelihood import score
from stages.anatomy.loading import load, load_tokenizer
from stages.command import run
from stages.items import PROMPT, TEXT, read_items


@contextlib.contextmanager
def unconditional(graft: PreTrainedModel) -> Iterator[PreTrainedModel]:
    """The graft without its conditions."""
    own = graft.parts
    kinds = [spec["kind"] for spec in graft.config.parts]  # its classes are those of its own directory
    graft.parts = nn.ModuleList(part for part, kind in zip(own, kinds, strict=True) if kind != "condition")
    try:
        yield graft
    finally:
        graft.parts = own


@torch.inference_mode()
def seconds(model: PreTrainedModel, ids: torch.Tensor, decoded: int) -> float:
    """To read all but the last `decoded` of ids [1, tokens], and those one by one."""
    begin = time.perf_counter()
    cut = ids.shape[1] - decoded
    cache = model(input_ids=ids[:, :cut], use_cache=True, logits_to_keep=1).past_key_values
    for column in range(cut, ids.shape[1]):
        model(input_ids=ids[:, column : column + 1], past_key_values=cache, use_cache=True)
    return time.perf_counter() - begin


def main(graft: Path, donor: Path, text: Path,
         capability: Path, texts: int = 24, tokens: int = 64, decoded: int = 8, repeats: int = 3,
         prompts: int = 200) -> None:  # fmt: skip
    """Print both claims' figures."""
    model, tokenizer = load(graft, device="cpu"), load_tokenizer(graft)
    rows = [torch.tensor([tokenizer(row["text"]).input_ids[:tokens]]) for row in read_items(text, TEXT, texts)]
    best: dict[str, list[float]] = {"target": [], "conditional": [], "unconditional": []}
    for ids in rows:
        told: dict[str, list[float]] = {name: [] for name in best}
        for _ in range(repeats):
            told["target"].append(seconds(model.target, ids, decoded))
            told["conditional"].append(seconds(model, ids, decoded))
            with unconditional(model):
                told["unconditional"].append(seconds(model, ids, decoded))
        for name, each in told.items():
            best[name].append(min(each))
    whole = {name: sum(each) for name, each in best.items()}
    items = encode(tokenizer, [(row["prompt"], row["answer"]) for row in read_items(capability, PROMPT, prompts)])
    right = {"target": score(model.target, items).greedy, "conditional": score(model, items).greedy}
    with unconditional(model):
        right["unconditional"] = score(model, items).greedy
    right["donor"] = score(load(donor, device="cpu"), items).greedy
    share = {name: each.double().mean().item() for name, each in right.items()}
    room = share["donor"] - share["target"]
    print(", ".join(f"{name} {1000 * value / len(rows):.1f} ms a text" for name, value in whole.items()))
    print(f"conditional / target {whole['conditional'] / whole['target']:.3f}, unconditional / target "
          f"{whole['unconditional'] / whole['target']:.3f}, n = {len(rows)} texts")  # fmt: skip
    print(", ".join(f"{name} {value:.3f}" for name, value in share.items()), f"right of n = {len(items)} prompts")
    if room > 0:
        fall = (share["unconditional"] - share["conditional"]) / room
        print(f"the condition lowers recovery by {fall:.4f}")


if __name__ == "__main__":
    run(main)
