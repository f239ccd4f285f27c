"""A mixture's routers biased toward one domain's experts, from a recipe to a graft with its figures."""

from pathlib import Path

import pytest
import torch
import yaml

from stages.anatomy.encoding import encode
from stages.anatomy.loading import load
from stages.anatomy.routing import preferred, raised, routed, share
from stages.capabilities.domains import DOMAINS
from stages.errors import BadInput
from stages.route import main
from stages.storage import read_json
from tests.families import saved, tiny, tokenizer

RECIPE = {
    "target": "moe", "toward": "letters", "away": "arithmetic", "experts": 1, "strength": 2.0,
    "strengths": [1.0, 20.0], "calibration": 8, "test": 6, "resamples": 40,
}  # fmt: skip


@pytest.fixture(scope="module")
def mixture(tmp_path_factory) -> Path:
    return saved(tiny("mixtral"), tmp_path_factory.mktemp("mixture"))


def route(root: Path, target: Path, name: str = "variant", **changed) -> tuple[Path, dict]:
    """The graft, and what its making tells."""
    root.mkdir(exist_ok=True)
    (root / "params.yaml").write_text(yaml.safe_dump({"route": {name: RECIPE | changed}}))
    main(name, target, root / name, root / f"{name}.json", root / "params.yaml")
    return root / name, read_json(root / f"{name}.json")


def read_ids(domain: str, split: str, count: int) -> list[tuple[int, ...]]:
    items = DOMAINS[domain].items(split, count, seed=0)
    return [each.ids for each in encode(tokenizer(), [(item.prompt, item.answer) for item in items])]


def test_the_experts_that_a_domain_prefers_are_raised_and_measured_on_other_items(tmp_path, mixture):
    path, told = route(tmp_path, mixture)
    model, graft = load(mixture), load(path)
    known = [routed(model, read_ids(domain, "calibration", 8)) for domain in ("letters", "arithmetic")]
    chosen = preferred(*known, 1)
    assert torch.equal(graft.parts[0].bias, raised(chosen, 4, 2.0))
    inside, outside = (routed(model, read_ids(domain, "test", 6)) for domain in ("letters", "arithmetic"))
    masses = [float(share(each, chosen).sum() / each.tokens.sum()) for each in (inside, outside)]
    assert told["figures"]["selectivity_unbiased"] == pytest.approx(masses[0] / masses[1], rel=1e-4)
    assert told["curves"]["Selectivity"]["points"][0] == [0.0, pytest.approx(masses[0] / masses[1], rel=1e-4)]


def test_the_table_of_experts_has_each_domains_mass_with_its_interval(tmp_path, mixture):
    path, told = route(tmp_path, mixture)
    table = read_json(path / "routing.json")
    assert [(row["layer"], row["expert"]) for row in table] == [(i, j) for i in range(4) for j in range(4)]
    for domain in ("letters", "arithmetic"):
        known = routed(load(mixture), read_ids(domain, "calibration", 8)).mean().flatten().tolist()
        assert [row[domain]["value"] for row in table] == pytest.approx(known, abs=1e-5)
        assert all(row[domain]["low"] <= row[domain]["value"] <= row[domain]["high"] for row in table)
        assert all(row[domain]["n"] == 8 for row in table)
    assert sum(row["chosen"] for row in table) == 4
    assert told["figures"]["experts"] == 16 and 0 <= told["figures"]["experts_that_differ"] <= 16
    assert told["parameters"] == {"moved": 0, "added": 16}


def test_a_stronger_bias_moves_more_mass_and_the_unbiased_model_is_at_no_divergence(tmp_path, mixture):
    _, told = route(tmp_path, mixture)
    curves = told["curves"]
    for title in ("Routing mass on the chosen experts, letters", "Routing mass on the chosen experts, arithmetic"):
        strengths, masses = zip(*curves[title]["points"], strict=True)
        assert strengths == (0.0, 1.0, 2.0, 20.0)
        assert list(masses) == sorted(masses) and masses[0] < masses[-1] <= 1
    harm = dict(map(tuple, curves["Divergence from the unbiased model, arithmetic"]["points"]))
    assert harm[0.0] == pytest.approx(0, abs=1e-6) and harm[1.0] > 1e-4
    assert told["figures"]["divergence_away"] == pytest.approx(harm[2.0], rel=1e-4)


def test_the_control_raises_as_many_experts_drawn_blindly(tmp_path, mixture):
    own, other = (
        load(route(tmp_path / str(seed), mixture, select="random", seed=seed, experts=2)[0]).parts[0].bias
        for seed in (1, 2)
    )
    for bias in (own, other):
        assert (bias == 2.0).sum(1).tolist() == [2] * 4
    assert not torch.equal(own, other)


def test_the_same_recipe_gives_the_same_bytes(tmp_path, mixture):
    one, other = (route(tmp_path / name, mixture)[0] for name in ("one", "other"))
    assert sorted(path.name for path in one.iterdir()) == sorted(path.name for path in other.iterdir())
    assert all(path.read_bytes() == (other / path.name).read_bytes() for path in one.iterdir())
    assert (one.parent / "variant.json").read_bytes() == (other.parent / "variant.json").read_bytes()


def test_what_cannot_be_routed_is_refused_in_one_sentence_before_any_work(tmp_path, mixture):
    dense = saved(tiny("llama"), tmp_path / "dense")
    wrong = [
        (dense, {}, "Expected a mixture of experts, got LlamaForCausalLM, whose MLPs are dense; name a model with"),
        (mixture, {"away": "letters"}, "toward and away are both letters; name another domain"),
        (mixture, {"strength": 21.0}, "less than or equal to 20"),
        (mixture, {"strengths": [-1.0]}, "greater than or equal to 0"),
        (mixture, {"experts": 4}, "Expected 1 to 3 experts a mixture to prefer, got 4"),
    ]
    for target, changed, match in wrong:
        with pytest.raises(BadInput, match=match):
            route(tmp_path / "refused", target, **changed)
    assert [path.name for path in (tmp_path / "refused").iterdir()] == ["params.yaml"]
