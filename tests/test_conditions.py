"""A condition learns from the gate alone where it will open, and lets through what it was asked to."""

import pytest
import torch
import yaml
from safetensors.torch import load_file

from stages.blades import keep
from stages.conditions import Evidence, evidence, fit
from stages.errors import BadInput
from stages.graft.condition import Condition
from stages.openings import openings
from stages.recipes.blade import parts
from stages.storage import read_json, write_jsonl
from stages.train_gates import main
from tests import grafts

WIDTH = 16


def texts(count: int, sign: float, seed: int, mixed: float = 0.0) -> list[torch.Tensor]:
    """States of texts with one token that tells, `sign` along the first channel, at an end that is drawn."""
    generator, made = torch.Generator().manual_seed(seed), []
    for number in range(count):
        states = torch.randn(3 + number % 4, WIDTH, generator=generator) * 0.3
        states[number % len(states), 0] += sign * (1 - mixed * torch.rand(1, generator=generator).item()) * 3
        made.append(states)
    return made


def fitted(seen: Evidence, calibration: Evidence, recall: float = 1.0) -> tuple[Condition, dict]:
    condition = Condition(0, 1, WIDTH)
    return condition, fit(condition, seen, calibration, recall)


def fires(condition: Condition, each: torch.Tensor) -> bool:
    """As in a graft, but for the layer norm, which evidence has behind it."""
    with torch.no_grad():
        return bool((each @ condition.read.weight[0] + condition.read.bias > 0).any())


def test_one_telling_token_is_enough_and_none_is_none():
    condition, told = fitted(Evidence(texts(40, 1, 0), texts(40, -1, 1)), Evidence(texts(20, 1, 2), []))
    assert sum(fires(condition, each) for each in texts(50, 1, 3)) >= 43  # by a threshold that 20 texts gave
    assert not any(fires(condition, each) for each in texts(50, -1, 4))
    assert told == {"recall": 1.0, "calibration_opened": 20, "opened": 40, "closed": 40, "closed_let_through": 0.0}


@pytest.mark.parametrize("recall", [1.0, 0.9, 0.5])
def test_the_threshold_lets_the_asked_share_through_whatever_it_costs(recall):
    seen, calibration = Evidence(texts(40, 1, 0, 2.0), texts(40, 1, 1, 2.0)), Evidence(texts(40, 1, 2, 2.0), [])
    condition, told = fitted(seen, calibration, recall)
    assert told["recall"] == sum(fires(condition, each) for each in calibration.opened) / 40
    assert recall <= told["recall"] <= recall + 0.05
    assert torch.equal(condition.read.bias, condition.read.bias.bfloat16().float())


def test_a_gate_that_is_always_open_always_runs_its_donor_and_one_that_never_is_never():
    always, told = fitted(Evidence(texts(4, 1, 0), []), Evidence(texts(4, 1, 2), []))
    never, other = fitted(Evidence([], texts(4, 1, 0)), Evidence([], texts(4, 1, 2)))
    assert all(fires(always, each) and not fires(never, each) for each in texts(9, 0, 5))
    assert (told["closed_let_through"], other["recall"]) == (None, None)


def test_evidence_ends_where_the_gate_first_opens(tmp_path):
    recipe = grafts.recipe(condition={"layer": 0}, layer=3, donor_layer=1)
    made = grafts.stir(parts(recipe, grafts.target(tmp_path), grafts.target(tmp_path, seed=1)))
    kept: list[Kept] = keep(made, [(tuple(grafts.bpe()(text).input_ids), 1) for text in grafts.SENTENCES], False)
    level = torch.cat([each.amax(dim=0) for each in openings(made, kept)]).sort().values[2].item()
    told = evidence(made, kept, level)
    assert (len(told.opened), len(told.closed)) == (2, 2)
    for k, amounts in zip(kept, openings(made, kept), strict=True):
        where = (amounts[:, 0] >= level).nonzero()[:, 0].tolist()
        length = where[0] + 1 if where else len(k.ids)
        expected = torch.nn.functional.layer_norm(k.early.clone(), (32,))[:length]
        assert any(torch.equal(expected, each) for each in (told.opened if where else told.closed))


@pytest.fixture
def training(tmp_path):
    write_jsonl(tmp_path / "train.jsonl", [{"prompt": f"What is {i} + 1?", "answer": f" {i + 1}."} for i in range(6)])
    write_jsonl(tmp_path / "text.jsonl", [{"text": text} for text in grafts.SENTENCES])
    settings = grafts.UNTRAINED | {"steps": 3, "prompts": 4, "batch": 2, "texts": 2, "positions": 9}
    blade = {
        "donor": "d",
        "layer": 2,
        "donor_layer": 1,
        "gate": "token",
        "training": settings,
        "condition": {"layer": 1},
    }
    late = blade | {"condition": {"layer": 2}}
    (tmp_path / "params.yaml").write_text(yaml.safe_dump({"blades": {"blade": blade, "late": late}}))

    def run(name: str, variant: str = "blade", **given):
        prompts = tmp_path / "train.jsonl"
        main(variant, grafts.target(tmp_path), grafts.target(tmp_path, seed=1), prompts, tmp_path / "text.jsonl",
             tmp_path / name, tmp_path / "params.yaml", "blades", **given)  # fmt: skip
        return tmp_path / name

    return run, tmp_path / "train.jsonl"


def test_the_condition_is_trained_after_the_gate_and_the_same_run_gives_the_same_bytes(training):
    run, calibration = training
    one, other = run("one", calibration=calibration), run("other", calibration=calibration)
    assert all(p.read_bytes() == (other / p.name).read_bytes() for p in one.iterdir())
    told = read_json(one / "training.json")["condition"]
    assert told["opened"] + told["closed"] == 4 + len(grafts.SENTENCES)
    assert {"0.gate.read.weight", "1.read.weight", "1.read.bias"} <= load_file(one / "gate.safetensors").keys()


def test_a_condition_without_calibration_or_behind_its_injection_is_refused(training):
    run, calibration = training
    with pytest.raises(BadInput, match="Expected calibration prompts for the condition of blades.blade, got none"):
        run("one")
    with pytest.raises(BadInput, match="a condition before the injection at layer 2, got one at layer 2"):
        run("one", "late", calibration=calibration)


def test_a_gate_that_is_as_open_everywhere_takes_no_condition():
    with pytest.raises(ValueError, match="a scalar gate is as open at every token; drop the condition"):
        grafts.recipe(gate="scalar", condition={"layer": 1})
