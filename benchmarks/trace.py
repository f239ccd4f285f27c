"""Exact patches a second over all sites, against TransformerLens and nnsight; attribution against forward-backward.

    OMP_NUM_THREADS=2 python -m benchmarks.trace --peers PYTHON

PYTHON is an interpreter with transformer-lens and nnsight (`pip install transformer-lens nnsight` in a virtual
environment of their own). All read the same model, prompts and number of threads in one run, one after the other: every
block's, attention's and MLP's output on clean prompts is put, at all positions, into the run of corrupted ones, and
the effect is the change of the clean answer's log-probability. The time is that of the whole sweep, clean and
corrupted runs included; the best of the repeats counts. Processor seconds stand beside those of the clock, since they
say more where the machine does other work.
"""

import copy
import itertools
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
import typer

from benchmarks.trace_peers import best
from stages.anatomy.attribution import attribute
from stages.anatomy.blocks import blocks, linear_modules
from stages.anatomy.contrast import contrast
from stages.anatomy.encoding import Batch, Encoded, encode, texts_of
from stages.anatomy.head import logits_at
from stages.anatomy.loading import load, load_tokenizer
from stages.anatomy.outcomes import Judge, states_at
from stages.anatomy.patching import Patch, patched, to_states

_NAMES = ["John", "Mary", "Tom", "Sarah", "James", "Anna", "David", "Lisa", "Mark", "Jane", "Paul", "Kate"]
_FRAME = "When {0} and {1} went to the store, {1} gave a drink to"
_TEXT = "The garden is green and we are all well here; the rain came on Thursday and stayed until the next morning."


def prompts(tokenizer, count: int) -> list[tuple[Encoded, Encoded]]:
    """Clean prompts with their answer, and the same with the names exchanged; all of one length in tokens."""
    names = [name for name in _NAMES if len(tokenizer(f" {name}", add_special_tokens=False).input_ids) == 1]
    chosen = list(itertools.islice(itertools.permutations(names, 2), 0, None, 5))[:count]
    clean = encode(tokenizer, [(_FRAME.format(a, b), f" {a}") for a, b in chosen])
    corrupted = encode(tokenizer, [(_FRAME.format(b, a), f" {a}") for a, b in chosen])
    return list(zip(clean, corrupted, strict=True))


def forward_backward(model, answers: list[Batch], texts: list[Batch]) -> None:
    """The log-likelihood of what follows, with the gradients of all linear modules' weights."""
    for module in linear_modules(model).values():
        module.requires_grad_(True)
    for batch in [*answers, *texts]:
        logits = logits_at(model, batch.ids, batch.row, batch.column)
        logits.log_softmax(-1).gather(-1, batch.following[:, None]).sum().backward()
    for module in linear_modules(model).values():
        module.requires_grad_(False)
        module.zero_grad(set_to_none=True)


def peer(name: str, python: str, task: Path) -> list[dict]:
    """What the peer tells of each of its ways; one line says why where it cannot run."""
    command = [python, str(Path(__file__).with_name("trace_peers.py")), name, str(task)]
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    try:
        done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    except OSError as error:
        print(f"{name}: cannot be run, {error}")
        return []
    if done.returncode:
        print(f"{name}: stopped, {(done.stderr.strip().splitlines() or ['without a message'])[-1]}")
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith('{"way"')]


def main(
    model: Path = Path("data/models/target"), peers: str = "", pairs: int = 8, repeats: int = 3, budget: int = 512
) -> None:
    """Print the figures."""
    threads = torch.get_num_threads()
    tokenizer, target = load_tokenizer(model), load(model, device="cpu")
    both = contrast(prompts(tokenizer, pairs), 10**6)
    layers = len(blocks(target))
    sites = [f"layers.{i}{part}" for part in ("", ".self_attn", ".mlp") for i in range(layers)]
    shape = list(both.clean[0].ids.shape)
    print(f"{model.name}: {len(sites)} sites, {shape[0]} pairs of {shape[1]} tokens, {threads} threads, "
          f"load {os.getloadavg()[0]:.2f}")  # fmt: skip

    effects: list[torch.Tensor] = []

    def sweep() -> None:
        judge = Judge(target, both.corrupted, [])
        clean = states_at(target, both.clean, sites)
        kept = judge.states(target)
        unpatched = judge.outcome(target, layers - 1, kept[-1])
        outcomes = patched(judge, target, kept, [Patch(site, to_states(clean[site])) for site in sites], budget)
        effects[:] = [outcome.loglikelihood - unpatched.loglikelihood for outcome in outcomes]

    ours = [len(sites) / seconds for seconds in best(sweep, repeats)[:2]]
    print(f"graftline: {ours[0]:.2f} patches/s ({ours[1]:.2f} a processor second)")
    rates = []
    with tempfile.TemporaryDirectory() as directory:
        order = both.clean[0].item
        task = Path(directory) / "task.json"
        told = {"clean": both.clean[0].ids.tolist(), "corrupted": both.corrupted[0].ids.tolist()}
        told |= {"answers": both.clean[0].following.tolist(), "layers": layers, "repeats": repeats, "threads": threads}
        task.write_text(json.dumps(told | {"model": str(model.resolve())}))
        for name in ("transformer_lens", "nnsight") if peers else ():
            for found in peer(name, peers, task):
                rate = [len(sites) / found[seconds] for seconds in ("clock", "processor")]
                theirs = torch.tensor(found["effects"], dtype=torch.float64)
                off = (torch.stack(effects)[:, order] - theirs).abs().max().item()
                rates.append(rate)
                print(f"{name}, {found['way']}: {rate[0]:.2f} patches/s ({rate[1]:.2f} a processor second); "
                      f"effects differ by at most {off:.1e} nats "
                      f"({'agree' if off < 1e-3 else 'DO NOT AGREE'} to 1e-3)")  # fmt: skip
    if rates:
        ratios = [mine / max(theirs) for mine, theirs in zip(ours, zip(*rates, strict=True), strict=True)]
        print(f"graftline / better peer: {ratios[0]:.2f} by the clock, {ratios[1]:.2f} by processor seconds "
              f"(claim: at least 1.8); load {os.getloadavg()[0]:.2f}")  # fmt: skip

    donor = copy.deepcopy(target)
    generator = torch.Generator().manual_seed(0)
    for module in linear_modules(donor).values():
        module.weight.add_(1e-3 * torch.randn(module.weight.shape, generator=generator))
    texts = texts_of([tokenizer(_TEXT, add_special_tokens=False).input_ids[:17]] * 2, 10**6)
    for what, read in (("capability", []), ("capability and retention", texts)):
        one = best(lambda read=read: forward_backward(target, both.clean, read), repeats)
        whole = best(lambda read=read: attribute(target, donor, both.clean, read), repeats)
        print(f"attribution of {len(linear_modules(target))} linear modules, {what}: {whole[0]:.2f} s, "
              f"{whole[0] / one[0]:.2f} × one forward-backward of {one[0]:.2f} s ({whole[1] / one[1]:.2f} × by "
              f"processor seconds; claim: at most 4)")  # fmt: skip
    print(f"load {os.getloadavg()[0]:.2f}")


if __name__ == "__main__":
    sys.exit(typer.run(main))
