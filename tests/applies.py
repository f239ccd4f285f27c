"""Every way to graft tried on every family, and the table in docs/families.md that tells what came of it.

`python -m tests.applies` writes the table.
"""

import functools
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from stages.adapt import Places, adapt, find
from stages.anatomy.experts import implanted, taken
from stages.anatomy.injector import LayerInjector
from stages.anatomy.loading import load, load_tokenizer
from stages.assembly import write_graft
from stages.debate import debating
from stages.embed import embed
from stages.errors import BadInput
from stages.merge import merge
from stages.project import build
from stages.reading import reading
from stages.recipes.adapter import AdapterRecipe
from tests import grafts, test_bank, test_embed, test_fusion, test_implant, test_merge, test_project, test_swap
from tests import test_transplant as transplanting
from tests.families import FAMILIES, tiny
from tests.graft import test_debate, test_modeling, test_router, test_stored
from tests.test_adapt import adapter

PAGE = Path(__file__).parents[1] / "docs" / "families.md"
IDS = torch.tensor([grafts.bpe()(grafts.SENTENCES[0]).input_ids])
EXPERT = "layers.1.mlp.experts.2"
ABOVE = """# What applies where

Every way to graft is tried on a tiny random model of every family, with the model itself as donor or with parts that
are closed or undo each other: ✓ where the logits stay within 1e-5 (or, for an MLP as an expert, which has no such
identity, where the mixture that receives it runs), – where the request is refused, for the reason below the table.
`python -m tests.applies` writes this page, and a test holds it to what is found.
"""
REASONS = {
    "whose MLPs are dense": "the family has no experts: its MLPs are dense",
    "got 'mlp.experts.1'": "the family has no experts: its MLPs are dense",
    "got a mixture of experts or none": "the feed-forward networks are mixtures: transplant experts, or use a bank",
    "a dense MLP with a gate and no biases": "an expert is made of one MLP with a gate and without biases",
    "an expert with the activation": "the mixture that receives it, a Mixtral, has another activation",
}
"""What the page says of a refusal, by words of its sentence."""


@dataclass(frozen=True)
class Case:
    """A family's model, where it lies, and a folder for what is made of it."""

    family: str
    root: Path
    target: Path


def told(model) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=IDS, use_cache=False).logits


def blade(case: Case) -> torch.Tensor:
    given = {"gate": "identity", "donor_layer": 2, "stirred": False}
    return told(grafts.loaded(grafts.built(case.root / "blade", case.target, case.target, **given)[1]))


def blades(case: Case) -> torch.Tensor:
    _, path = grafts.built(case.root / "blades", case.target, case.target, **test_modeling.SEVERAL, stirred=False)
    graft: Any = grafts.loaded(path)
    for part in graft.parts:
        part.gate.read.bias.data += 40  # wide open, so that each state is the donor's
    return told(graft)


def bridges(case: Case) -> torch.Tensor:
    given = {"gate": "closed", "bridge": "mixture", "bridges": 2, "mix": "add", "stirred": False}
    return told(grafts.loaded(grafts.built(case.root / "mixed", case.target, grafts.characters(case.root), **given)[1]))


def stored(case: Case) -> torch.Tensor:
    return torch.cat([told(test_stored.written(case.root, case.family, source, gate="closed")[1])
                      for source in ("vector", "features")])  # fmt: skip


def implant(case: Case, part: str, **given) -> torch.Tensor:
    into, made, spec = test_implant.made(case.target, case.target, donor_layer=2, part=part, **given)
    write_graft(into.model, into.tokenizer, [], [(made, spec)], case.root / part)
    return told(grafts.loaded(case.root / part))


def implants(case: Case) -> torch.Tensor:
    given = {"bridge": "identity", "gate": "identity", "mix": "delta"}
    return torch.cat([implant(case, part, **given) for part in test_implant.PARTS])


def fusion(case: Case) -> torch.Tensor:
    into, whole, _ = test_fusion.made(case.root, case.family)
    write_graft(into.model, into.tokenizer, whole.readings, [(whole.part, whole.spec)], case.root / "fusion")
    return told(grafts.loaded(case.root / "fusion"))


def transplant(case: Case, *modules: str) -> torch.Tensor:
    out = case.root / modules[0]
    transplanting.describe(case.root, v={"modules": list(modules), "strength": 0.6})
    transplanting.built("v", case.target, case.target, case.root, out)
    return told(load(out))


def merged(case: Case) -> torch.Tensor:
    recipe = test_merge.recipe("ties", {"one": 0.4}, density=1.0)
    merge(recipe, case.target, {"one": case.target}, case.root / "merged")
    return told(load(case.root / "merged"))


def adapted(case: Case) -> torch.Tensor:
    """An adapter forth, and the same one back."""
    for name in ("forth", "back"):
        adapter(case.family, case.root / "adapters" / name, model=tiny(case.family, vocab_size=grafts.VOCABULARY))
    model, recipe = load(case.target), AdapterRecipe(donors={"forth": 1.0, "back": -1.0})
    places = Places(case.target, case.root, case.root / "adapters", case.root)
    adapt(find(recipe, model, places), model, case.target, case.root / "adapted")
    return told(load(case.root / "adapted"))


def embedded(case: Case) -> torch.Tensor:
    model = load(case.target)
    embed(test_embed.recipe(bridge="identity"), model, load(case.target), test_embed.fresh(), test_embed.fresh())
    return told(model)


def projected(case: Case) -> torch.Tensor:
    model, recipe = load(case.target), test_project.recipe()
    build(recipe, test_project.projected(recipe, model, load(case.target)), model)
    return told(model)


def banked(case: Case) -> torch.Tensor:
    model = load(case.target)
    test_bank.put(model, test_bank.bank(model, case.root / "bank", "embed", "layers.1", "layers.2.self_attn.heads.*"))
    return told(model)


def debated(case: Case) -> torch.Tensor:
    model = debating(test_debate.recipe([{}, {}], "average"), load(case.target))
    model.bfloat16().save_pretrained(case.root / "debate")
    return told(load(case.root / "debate"))


def injected(case: Case) -> torch.Tensor:
    model, tokenizer = load(case.target), load_tokenizer(case.target)
    donor = reading(load(case.target), tokenizer, model, tokenizer, [1, 2]).donor
    with LayerInjector(model).blade("layers.1", donor, taken=0).blade("layers.2", donor, taken=1):
        return told(model)


def routed(case: Case) -> torch.Tensor:
    return told(load(test_router.exported(case.root, case.family, 0.0)[1]))


def swapped(case: Case) -> torch.Tensor:
    return told(load(test_swap.swap(case.root / "swap", case.target, case.target, places={EXPERT: EXPERT}, test=2)[0]))


def as_expert(case: Case) -> None:
    """A mixture of the MLP's own width, with the MLP in it; it has no logits to stay at."""
    given = taken(load(case.target), "layers.1.mlp")
    mixture = tiny("mixtral", vocab_size=grafts.VOCABULARY)
    plain = told(mixture)
    with implanted(mixture, {EXPERT: given}):
        assert told(mixture).isfinite().all() and not torch.equal(told(mixture), plain)


WAYS: dict[str, Callable[[Case], torch.Tensor | None]] = {
    "blade": blade,
    "blades at several layers": blades,
    "mixture of bridges": bridges,
    "stored blade": stored,
    "implant": implants,
    "implanted expert": functools.partial(implant, part="mlp.experts.1", gate="token"),
    "fusion": fusion,
    "transplant by name": lambda case: transplant(case, "layers.1", "layers.2.mlp"),
    "single heads": lambda case: transplant(case, "layers.*.self_attn.heads.2"),
    "merge": merged,
    "adapter (LoRA)": adapted,
    "embeddings": embedded,
    "FFN projection": projected,
    "bank": banked,
    "debate": debated,
    "LayerInjector": injected,
    "router bias": routed,
    "expert swap": swapped,
    "MLP as an expert": as_expert,
}


@functools.cache
def found(family: str) -> dict[str, str]:
    """For each way `yes`, or the reason why it is refused.

    Raises AssertionError where logits change and for a refusal without a reason here; other exceptions go through.
    """
    came = {}
    with tempfile.TemporaryDirectory() as folder:
        case = Case(family, Path(folder), grafts.target(Path(folder), family))
        plain = told(load(case.target))
        for way, attempt in WAYS.items():
            try:
                logits = attempt(case)
            except BadInput as refusal:
                reasons = [reason for words, reason in REASONS.items() if words in str(refusal)]
                assert len(reasons) == 1, f"{way} is refused for {family}: {refusal}"
                came[way] = reasons[0]
                continue
            moved = 0.0 if logits is None else float((logits - plain).abs().max())
            assert moved <= 1e-5, f"{way} moves the logits of {family} by {moved:g}"
            came[way] = "yes"
    return came


def page() -> str:
    """The whole of docs/families.md."""
    numbers = {reason: number for number, reason in enumerate(dict.fromkeys(REASONS.values()), start=1)}
    rows = [["family", *WAYS], ["---", *[":-:"] * len(WAYS)]]
    for family in FAMILIES:
        rows.append([family, *("✓" if c == "yes" else f"–[^{numbers[c]}]" for c in found(family).values())])
    table = "\n".join(f"| {' | '.join(row)} |" for row in rows)
    return "\n".join([ABOVE, table, "", *(f"[^{number}]: {reason}." for reason, number in numbers.items()), ""])


if __name__ == "__main__":
    torch.set_num_threads(1)
    PAGE.parent.mkdir(exist_ok=True)
    PAGE.write_text(page())
