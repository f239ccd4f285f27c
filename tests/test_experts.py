"""A mixture trained on several capabilities at once."""

import contextlib
import itertools

import pytest
import torch

from stages.anatomy.loading import load, load_tokenizer
from stages.capabilities.domains import DOMAINS
from stages.specialize import Experts, drawn, examine, from_scratch, imbalance, specialize, taught
from stages.storage import read_json
from tests.toy import DONOR

RECIPE = Experts(
    recipe="experts", capabilities=["arithmetic", "letters"], width=16, blocks=2, heads=2, mlp_width=8, experts=4,
    active=2, balance=0.01, **DONOR,
)  # fmt: skip


def test_imbalance_is_least_when_experts_are_equally_busy_and_grows_to_their_number_when_few_are():
    model = from_scratch(RECIPE, 99)
    read = torch.ones(2, 3)
    turns = torch.tensor([[9.0, 9, 0, 0], [0, 0, 9, 9]] * 3)
    same = torch.tensor([[9.0, 9, 0, 0]] * 6)
    assert imbalance(model, (turns, turns), read).item() == pytest.approx(RECIPE.active, rel=1e-3)
    assert imbalance(model, (same, same), read).item() == pytest.approx(RECIPE.experts, rel=1e-3)


def test_padding_counts_for_no_expert():
    model = from_scratch(RECIPE, 99)
    logits = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
    read = torch.tensor([[1, 1, 0], [1, 0, 0]])
    told = imbalance(model, (logits,), read)
    changed = torch.where(read.flatten()[:, None] == 1, logits, 50 * logits.roll(1, 1))
    assert torch.allclose(imbalance(model, (changed,), read), told)
    assert not torch.allclose(imbalance(model, (changed,), torch.ones(2, 3)), told)


def test_a_trained_mixture_is_a_plain_model_directory_with_scores_of_each_capability(tmp_path):
    with contextlib.redirect_stdout(None):
        scores = specialize(RECIPE, tmp_path / "none", "moe", tmp_path / "moe")
    model, tokenizer = load(tmp_path / "moe"), load_tokenizer(tmp_path / "moe")
    config, record = read_json(tmp_path / "moe" / "config.json"), read_json(tmp_path / "moe" / "training.json")
    assert config["model_type"] == "mixtral" and config["num_local_experts"] == RECIPE.experts
    assert record["losses"][-1] < record["losses"][0] and record["recipe"] == RECIPE.model_dump()
    assert scores == pytest.approx(examine(model, tokenizer, taught(RECIPE)))
    assert scores["items"] == 1000
    mean = (scores["exact_match_arithmetic"] + scores["exact_match_letters"]) / 2
    assert scores["exact_match"] == pytest.approx(mean)


def test_half_of_the_training_items_are_of_each_of_two_capabilities():
    one, other = (list(itertools.islice(DOMAINS[name].stream(RECIPE.seed), 100)) for name in RECIPE.capabilities)
    assert list(drawn(RECIPE)) == [item for pair in zip(one, other, strict=True) for item in pair]
