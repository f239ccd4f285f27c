"""A variant that follows the plan, as the section that builds it."""

import pytest
import yaml
from test_plan import ROUTES, SETTINGS, TRAINING

from stages.choose import main
from stages.errors import BadInput
from stages.plan import plan
from stages.recipes.blade import BladeRecipe
from stages.settings import read
from stages.storage import write_json


@pytest.fixture
def chosen(tmp_path):
    """The recipe that an auto section comes to, and the bytes of its file."""

    def call(section: dict, route: str = "a sibling's states bring the gain") -> tuple[BladeRecipe, bytes]:
        write_json(tmp_path / "plan.json", {"donors": {"sibling": plan(SETTINGS, "sibling", **ROUTES[route][0])}})
        (tmp_path / "params.yaml").write_text(yaml.safe_dump({"auto": {"mine": section}}))
        main("mine", tmp_path / "plan.json", tmp_path / "mine.yaml", tmp_path / "params.yaml")
        return read(tmp_path / "mine.yaml", "inject.mine", BladeRecipe), (tmp_path / "mine.yaml").read_bytes()

    return call


def test_it_is_what_the_plan_recommends(chosen):
    recipe, _ = chosen({"donor": "sibling", "strategy": "auto"})
    assert (recipe.donor, recipe.layer, recipe.donor_layer, recipe.bridge) == ("sibling", 1, 1, "identity")
    assert recipe.training == SETTINGS.training
    assert chosen({"donor": "sibling"})[0] == recipe


def test_what_is_given_is_held_fixed_and_training_key_by_key(chosen):
    section = {"donor": "sibling", "alpha": 0.00001, "control_for": "other", "training": {"steps": 9}}
    recipe, _ = chosen(section)
    assert (recipe.alpha, recipe.control_for, recipe.layer) == (0.00001, "other", 1)
    assert recipe.training
    assert recipe.training.model_dump() == SETTINGS.training.model_dump() | {"steps": 9}
    assert TRAINING["steps"] != 9


def test_a_closed_gate_has_nothing_to_learn(chosen):
    assert chosen({"donor": "sibling", "gate": "closed"})[0].training is None


def test_figures_that_change_no_recommendation_change_no_byte_and_another_recommendation_does(chosen):
    section = {"donor": "sibling"}
    _, first = chosen(section)
    assert chosen(section, "behind a bridge they would")[1] != first
    _, fallback = chosen(section, "the donor reads tokens that the target lacks")
    assert fallback == first  # its figures differ, the blade that stands in does not


@pytest.mark.parametrize(
    ("section", "route", "said"),
    [
        ({"donor": "sibiling"}, "nothing calls for a method of its own",
         "a donor that was aligned, got 'sibiling'; name it under evidence.aligned, or did you mean 'sibling'?"),
        ({"donor": "sibling"}, "nothing was measured", "with something to build, got none; align or trace it"),
        ({"donor": "sibling", "aplha": 1.0}, "nothing calls for a method of its own",
         "auto.mine: unknown key 'aplha', did you mean 'alpha'?"),
        ({"donor": "sibling", "strategy": "manual"}, "nothing calls for a method of its own", "'auto'"),
        ({"strategy": "auto"}, "nothing calls for a method of its own", "the key 'donor' is missing"),
    ],
)  # fmt: skip
def test_bad_input_is_said_in_a_sentence_and_nothing_is_written(chosen, tmp_path, section, route, said):
    with pytest.raises(BadInput) as error:
        chosen(section, route)
    assert said in str(error.value)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "mine.yaml").exists()
