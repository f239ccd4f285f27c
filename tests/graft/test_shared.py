"""A gate that shares a budget among blades: its formula, and grafts that run by it."""

from pathlib import Path

import pytest
import torch

from stages.anatomy.loading import load
from stages.assembly import write_graft
from stages.graft.blade import Injection
from stages.graft.shared import Budget, Shared
from stages.reading import reading
from stages.specialize import character_tokenizer
from tests import grafts
from tests.families import FAMILIES

ROWS = [grafts.bpe()(text).input_ids for text in ("What is 12 + 30? Answer:", "The sum of 1", "A café in the old town")]
GREEDY = {"do_sample": False, "max_new_tokens": 6, "pad_token_id": 0}


def states(seed: int, width: int = 16) -> torch.Tensor:
    return torch.randn(2, 5, width, generator=torch.Generator().manual_seed(seed))


def stirred(module: torch.nn.Module, seed: int = 0) -> torch.nn.Module:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_((torch.randn(parameter.shape, generator=generator) * 0.5).to(torch.bfloat16))
    return module


def source(donor: int, width: int = 16, bridge: str = "identity") -> dict:
    return {"donor": donor, "taken": 0, "bridge": bridge, "donor_width": width}


@pytest.mark.parametrize(("mix", "m"), [("delta", 1.0), ("add", 0.0)])
def test_the_shared_injection_is_its_formula(mix, m):
    made = stirred(Shared(mix, 0.7, 16, 2, [source(0), source(1, 24, "linear"), source(2)]))
    h, d = states(0), [states(1), states(2, 24), states(3)]
    x = [bridge(each) for bridge, each in zip(made.bridges, d, strict=True)]
    g = made.gate(h, x, [None] * 3)
    expected = h + 0.7 * sum(g[..., i : i + 1] * (x[i] - m * h) for i in range(3))
    assert torch.allclose(made(h, d, [None] * 3), expected, atol=1e-6)


def test_amounts_share_a_budget_of_less_than_one():
    g = stirred(Budget(3, 16))(states(0), [states(1), states(2), states(3)], [None] * 3)
    assert g.shape == (2, 5, 3)
    assert (g > 0).all() and (g.sum(-1) < 1).all()


def test_a_blade_that_opens_takes_from_the_others():
    gate = stirred(Budget(2, 16))
    before = gate(states(0), [states(1), states(2)], [None, None])
    with torch.no_grad():
        gate.reads[0].bias += 4
    after = gate(states(0), [states(1), states(2)], [None, None])
    assert (after[..., 0] > before[..., 0]).all() and (after[..., 1] < before[..., 1]).all()


def test_with_one_blade_it_is_the_token_gate():
    single = stirred(Injection("token", "identity", "delta", 1.0, 16, 16))
    shared = Shared("delta", 1.0, 16, 0, [source(0)])
    shared.gate.reads[0].load_state_dict(single.gate.read.state_dict())
    known = torch.tensor([[False, True, True, False, True]] * 2)
    assert torch.allclose(shared(states(0), [states(1)], [known]), single(states(0), states(1), known), atol=1e-6)


def test_a_blade_whose_donor_has_read_nothing_gets_nothing():
    made, known = stirred(Shared("add", 1.0, 16, 0, [source(0), source(1)])), torch.zeros(2, 5, dtype=torch.bool)
    h, d = states(0), [states(1), states(2)]
    assert torch.equal(made(h, d, [known, known]), h)
    alone = stirred(Shared("add", 1.0, 16, 0, [source(1)]))
    alone.gate.reads[0].load_state_dict(made.gate.reads[1].state_dict())
    assert torch.allclose(made(h, d, [known, None]), alone(h, d[1:], [None]), atol=1e-6)


def test_an_unknown_mix_is_refused_with_the_valid_ones():
    with pytest.raises(ValueError, match="delta or add, got 'blend'"):
        Shared("blend", 1.0, 16, 0, [source(0)])


def built(root: Path, family: str, own: bool = False) -> Path:
    """A graft with a donor of that family and, but for `own`, one that reads characters, under one gate."""
    receiving = load(grafts.target(root, family))
    path = grafts.target(root, family) if own else grafts.target(root, family, seed=1)
    read = [reading(load(path), grafts.bpe(), receiving, grafts.bpe(), [2])]
    sources = [source(0, 32)]
    if own:
        sources.append(source(0, 32))
    else:
        giving = load(grafts.characters(root))
        read.append(reading(giving, character_tokenizer(), receiving, grafts.bpe(), [1]))
        sources.append(source(1, 24, "linear"))
    spec = {"mix": "delta", "alpha": 1.0, "target_width": 32, "layer": 2, "sources": sources}
    part = stirred(Shared(**spec)), {"kind": "shared", **spec}
    write_graft(receiving, grafts.bpe(), read, [part], root / f"{family}_{own}")
    return root / f"{family}_{own}"


@torch.no_grad()
def logits(model, ids, mask=None) -> torch.Tensor:
    return model(input_ids=ids, attention_mask=mask, use_cache=False).logits


@pytest.mark.parametrize("family", FAMILIES)
def test_blades_of_the_target_itself_change_no_logit(tmp_path, family):
    graft, ids = grafts.loaded(built(tmp_path, family, own=True)), torch.tensor(ROWS[:1])
    assert torch.allclose(logits(graft, ids), logits(load(grafts.target(tmp_path, family)), ids), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_it_generates_with_a_cache_as_without_and_alone_as_in_company(tmp_path, family):
    graft = grafts.loaded(built(tmp_path, family))
    ids, mask = grafts.padded(ROWS)
    cached = graft.generate(input_ids=ids, attention_mask=mask, use_cache=True, min_new_tokens=6, **GREEDY)
    assert torch.equal(
        cached, graft.generate(input_ids=ids, attention_mask=mask, use_cache=False, min_new_tokens=6, **GREEDY)
    )
    for side in ("left", "right"):
        ids, mask = grafts.padded(ROWS, side, filler=40)
        told = logits(graft, ids, mask)
        for row, plain in enumerate(ROWS):
            alone = logits(graft, torch.tensor([plain]))[0]
            assert torch.allclose(told[row][mask[row].bool()], alone, atol=1e-4)
    assert not torch.allclose(logits(graft, ids, mask), logits(graft.target, ids, mask), atol=1e-2)
