"""What a graft costs: counts against sums by hand, memory against tensors of known size."""

from typing import Any

import pytest
import torch

from stages import cost as stage
from stages.anatomy.loading import load
from stages.cost import Held, cost, flops, peak, significant
from stages.errors import BadInput
from stages.storage import read_json, write_jsonl
from tests import grafts
from tests.families import FAMILIES, tiny, token_ids


def test_operations_are_those_of_the_matrix_products():
    model, tokens = tiny("llama"), 9
    linear = sum(m.weight.numel() for m in model.modules() if isinstance(m, torch.nn.Linear))
    attention = 4 * 2 * tokens * tokens * 2 * 32  # blocks, two products, queries × keys, 2 · width
    assert flops(model, token_ids(1, tokens)) == 2 * tokens * linear + attention


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_is_counted(family):
    model, ids = tiny(family), token_ids(1, 8)
    assert flops(model, ids) > 2 * 8 * 128 * 32  # more than the head alone
    assert peak(model, ids) > sum(parameter.nbytes for parameter in model.parameters())


def test_memory_is_what_lives():
    with Held() as held:
        a = torch.ones(1000)
        view = a.view(10, 100)
        assert held.now == 4000
        b = view + 1
        del a
        assert held.now == 8000
        del view
        assert (held.now, held.most) == (4000, 8000)
        b.add_(1)
        assert held.now == 4000
    held.note(b)
    assert held.now == 4000


def test_a_graft_costs_what_its_donor_and_gate_cost(tmp_path):
    receiving, giving = grafts.target(tmp_path), grafts.target(tmp_path, seed=1)
    _, path = grafts.built(tmp_path, receiving, giving)
    graft: Any = load(path)
    target = load(receiving)
    found = cost(graft, target, token_ids(1, 10), 8)
    assert found["added_parameters"] == sum(p.numel() for p in graft.donors.parameters()) + sum(
        p.numel() for p in graft.parts.parameters()
    )
    gate = 2 * 2 * 32  # a product of twice the width with one row
    donor = sum(m.weight.numel() for m in graft.donors.modules() if isinstance(m, torch.nn.Linear))
    more = flops(graft, token_ids(1, 8)) - flops(target, token_ids(1, 8))
    blocks = len(graft.get_submodule("donors.0.donor").layers)
    assert more == 8 * (gate + 2 * donor) + blocks * 2 * 8 * 8 * 2 * 32
    assert found["peak_bytes"] > found["target_peak_bytes"] > 0
    assert found["ms_per_token"] > 0 and found["target_ms_per_token"] > 0


def test_the_target_itself_adds_nothing(tmp_path):
    path = grafts.target(tmp_path)
    found = cost(load(path), load(path), token_ids(1, 10), 8)
    assert found["added_parameters"] == 0
    assert found["flops_per_token"] == found["target_flops_per_token"]
    assert found["peak_bytes"] == found["target_peak_bytes"]


@pytest.mark.parametrize(
    ("value", "digits", "told"), [(12345, 2, 12000), (0.0123, 2, 0.012), (98765, 4, 98760), (3.0, 2, 3)]
)
def test_figures_are_rounded_to_significant_digits(value, digits, told):
    assert significant(value, digits) == pytest.approx(told, rel=1e-3)
    assert significant(significant(value, digits), digits) == significant(value, digits)


def test_the_stage_writes_the_contracts_keys(tmp_path):
    path = grafts.target(tmp_path)
    write_jsonl(tmp_path / "capability" / "test.jsonl", [{"prompt": "What is 12 + 30? Answer:", "answer": " 42."}])
    (tmp_path / "params.yaml").write_text("cost: {tokens: 20, repeats: 3}")
    stage.main(path, path, tmp_path, tmp_path / "cost.json", tmp_path / "params.yaml")
    found = read_json(tmp_path / "cost.json")
    assert found.keys() >= {
        "parameters", "added_parameters", "bytes", "flops_per_token", "target_flops_per_token", "peak_bytes",
        "ms_per_token", "target_ms_per_token",
    }  # fmt: skip
    assert found["bytes"] == (path / "model.safetensors").stat().st_size


def test_nothing_to_time_is_refused():
    model = tiny("llama")
    with pytest.raises(BadInput, match="Expected tokens from 8 on to time, got 8 in all"):
        cost(model, model, token_ids(1, 8), 8)
