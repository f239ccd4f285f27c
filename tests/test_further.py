"""A mixture trained further: only its experts change, and it learns what it was given."""

import contextlib

import pytest
import torch

from stages.anatomy.loading import load
from stages.errors import BadInput
from stages.further import Further, further
from stages.specialize import Experts, specialize
from stages.storage import read_json
from tests import toy
from tests.families import saved, tiny

MIXTURE = Experts(**toy.PARAMS["specialize"]["moe"])
RECIPE = Further(**toy.PARAMS["further"]["dates_moe"] | {"steps": 150, "learning_rate": 0.03})


def test_only_the_experts_of_a_mixture_learn_and_its_record_says_what(tmp_path):
    with contextlib.redirect_stdout(None):
        specialize(MIXTURE, tmp_path / "nowhere", "moe", tmp_path / "moe")
        scores = further(RECIPE, tmp_path / "moe", "dates_moe", tmp_path / "dates_moe")
    before, after = (load(tmp_path / name, torch.bfloat16).state_dict() for name in ("moe", "dates_moe"))
    assert before.keys() == after.keys()
    changed = {name for name, value in before.items() if not torch.equal(value, after[name])}
    assert changed == {name for name in before if ".experts." in name}
    record = read_json(tmp_path / "dates_moe" / "training.json")
    assert record["recipe"] == RECIPE.model_dump(exclude_unset=True) and record["scores"] == scores
    assert record["losses"][-1] < record["losses"][0]
    assert "| start | moe |" in (tmp_path / "dates_moe" / "README.md").read_text()


def test_a_dense_model_has_no_experts_to_train(tmp_path):
    with pytest.raises(BadInput, match="Expected a mixture of experts, got LlamaForCausalLM"):
        further(RECIPE, saved(tiny("llama"), tmp_path / "dense"), "x", tmp_path / "out")
