from pathlib import Path

import families
import grafts
import pandas as pd
import pytest

from stages.anatomy.encoding import encode
from stages.anatomy.loading import load, load_tokenizer
from stages.compose import Compose, compose
from stages.contrasts.pair import Pair
from stages.counterfactual import Counterfactual, counterfactual, main
from stages.errors import BadInput
from stages.storage import read_json, write_jsonl
from stages.weigh import Weigh, weigh
from stages.weigh import main as weigh_main

SETTINGS = Counterfactual(resamples=200)
FIGURES = ("target", "donor", "graft", "difference", "difference_from_donor", "departure", "departure_of_donor",
           "consistency", "consistency_of_target", "consistency_of_donor", "consistency_difference")  # fmt: skip
PAIRS = compose(Compose(moving=4, still=3))


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    """A target, another model, a character-level donor, and grafts behind an open gate and a closed one."""
    root = tmp_path_factory.mktemp("models")
    receiving, giving = grafts.target(root), grafts.target(root, seed=1)
    grafts.characters(root)
    grafts.built(root / "open", receiving, giving)
    grafts.built(root / "closed", receiving, giving, gate="closed")
    return root


@pytest.fixture(scope="module")
def weighed(root) -> dict[str, pd.DataFrame]:
    places = {"target": "llama_0", "donor": "llama_1", "characters": "characters", "open": "open/graft",
              "closed": "closed/graft"}  # fmt: skip
    return {name: weigh(root / place, PAIRS, Weigh(budget=256)) for name, place in places.items()}


def test_a_row_holds_the_log_odds_after_each_prompt(root, weighed):
    for name, place in (("target", "llama_0"), ("characters", "characters")):
        model, tokenizer, frame = load(root / place), load_tokenizer(root / place), weighed[name]
        assert frame["id"].tolist() == [pair.id for pair in PAIRS]
        for index in range(0, len(PAIRS), 5):
            for column, side in zip(("first", "second"), PAIRS[index].sides, strict=True):
                told = [(side.prompt, side.right), (side.prompt, side.wrong)]
                right, wrong = families.loglikelihoods(model, encode(tokenizer, told)).tolist()
                assert frame[column][index] == pytest.approx(right - wrong, abs=1e-3)


@pytest.mark.parametrize("budget", [1, 4096])
def test_the_budget_changes_no_log_odds(root, weighed, budget):
    other = weigh(root / "open" / "graft", PAIRS[::3], Weigh(budget=budget))
    pd.testing.assert_frame_equal(other, weighed["open"][::3].reset_index(drop=True), atol=2e-5, rtol=1e-5)


def test_identical_models_differ_by_exactly_nothing(weighed):
    for graft in ("target", "closed"):
        pd.testing.assert_frame_equal(weighed[graft], weighed["target"])
        found = counterfactual(weighed["target"], weighed["donor"], weighed[graft], SETTINGS)
        for entry in (*found["categories"], found["overall"]):
            for figure in ("difference", "departure"):
                assert (entry[figure]["value"], entry[figure]["low"], entry[figure]["high"]) == (0, 0, 0)
            assert entry["consistency_difference"]["value"] == 0
            assert entry["graft"] == entry["target"] and entry["consistency"] == entry["consistency_of_target"]
            assert entry["departure_of_donor"]["value"] > 0.01
        assert found["specificity"]["difference"]["value"] == 0


def test_there_is_an_entry_a_category_and_kind_with_every_figure(weighed):
    found = counterfactual(weighed["target"], weighed["donor"], weighed["open"], SETTINGS)
    assert [(entry["category"], entry["moves"]) for entry in found["categories"]] == [
        (category, moves) for category in ("agreement", "negation", "number", "entity", "operand")
        for moves in (True, False)
    ]  # fmt: skip
    for entry in found["categories"]:
        assert (entry["n"], entry["clusters"]) == ((4, 4) if entry["moves"] else (3, 3))
        for figure in FIGURES:
            assert entry[figure]["low"] <= entry[figure]["value"] <= entry[figure]["high"]
    assert (found["overall"]["n"], found["specificity"]["graft"]["n"]) == (20, 35)
    assert found["readable"] == {"pairs": 35, "target": 35, "donor": 35, "graft": 35}
    assert set(found["specificity_by_category"]) == {entry["category"] for entry in found["categories"]}
    assert found["undefined"] == {}


def frame(odds: list[tuple[float, float]], moves: list[bool], clusters: str | None = None) -> pd.DataFrame:
    rows = {"id": [f"p{n}" for n in range(len(odds))], "category": "c", "moves": moves}
    rows |= {"cluster": list(clusters) if clusters else [f"t{n}" for n in range(len(odds))]}
    return pd.DataFrame(rows).assign(first=[a for a, _ in odds], second=[b for _, b in odds])


def test_figures_by_hand():
    kinds = [True, True, False, False]
    target = frame([(1, -2), (0.5, 0.5), (1, 1), (3, 2)], kinds, "abab")
    donor = frame([(4, 6), (6, 4), (1, 2), (3, 3)], kinds, "abab")
    graft = frame([(3, 5), (5, 3), (1, 1), (3, 1)], kinds, "abab")
    moving, still = counterfactual(target, donor, graft, SETTINGS)["categories"]
    assert [moving[name]["value"] for name in FIGURES] == [0, 10, 8, 8, -2, 4, 5, 1, 0.5, 1, 0.5]
    assert [still[name]["value"] for name in FIGURES] == [0.5, 0.5, 1, 0.5, 0.5, 0.25, 0.5, 1, 1, 1, 0]
    found = counterfactual(target, donor, graft, SETTINGS)["specificity"]
    assert [found[name]["value"] for name in ("target", "donor", "graft", "difference")] == [0.5, 0.95, 0.875, 0.375]


def test_the_order_of_the_rows_does_not_matter(weighed):
    shuffled = weighed["open"].sample(frac=1, random_state=1)
    one, again = (counterfactual(weighed["target"], weighed["donor"], g, SETTINGS) for g in (weighed["open"], shuffled))
    assert one == again


def test_a_pair_that_a_tokenizer_cannot_spell_is_in_no_figure_of_its_model(root):
    pairs = [*PAIRS[:4], Pair("agreement", True, "cafe", "The café was", "The cafés were", " red", " blue")]
    target, donor = (weigh(root / name, pairs, Weigh(budget=256)) for name in ("llama_0", "characters"))
    assert target.notna().all(axis=None) and donor["first"].isna().tolist() == [False] * 4 + [True]
    found = counterfactual(target, donor, target, SETTINGS)
    assert found["readable"] == {"pairs": 5, "target": 5, "donor": 4, "graft": 5}
    entry = found["categories"][0]
    assert [entry[name]["n"] for name in ("target", "donor", "difference", "difference_from_donor")] == [5, 4, 5, 4]
    one, other = (frame.iloc[4:].reset_index(drop=True) for frame in (target, donor))
    alone = counterfactual(one, other, one, SETTINGS)
    assert alone["undefined"]["overall.donor"] == "no pair that the tokenizer can spell"


def test_one_template_bounds_nothing():
    one = frame([(1, 2), (3, 4)], [True, True], "aa")
    found = counterfactual(one, one, one, SETTINGS)
    assert found["overall"]["target"] is None
    assert found["undefined"]["overall.target"] == "all pairs are put in the same words"


def test_specificity_without_pairs_of_both_kinds_is_undefined():
    one = frame([(1, 2), (3, 4)], [True, True])
    found = counterfactual(one, one, one, SETTINGS)
    assert found["specificity"]["graft"] is None and [e["moves"] for e in found["categories"]] == [True]
    assert found["undefined"]["specificity.graft"] == "there are pairs of one kind only"


def test_other_pairs_are_refused(weighed):
    other = weighed["open"].assign(id=lambda rows: rows["id"] + "x")
    for graft in (other, weighed["open"][1:]):
        with pytest.raises(BadInput, match="Expected the graft put to the target's 35 pairs, got 3[45] that are not"):
            counterfactual(weighed["target"], weighed["donor"], graft, SETTINGS)
    with pytest.raises(BadInput, match="Expected pairs of the donor with .*, got none called second; rerun weigh"):
        counterfactual(weighed["target"], weighed["donor"].drop(columns="second"), other, SETTINGS)


def test_the_stages_write_what_the_functions_give_with_the_same_bytes(root, weighed, tmp_path):
    params = tmp_path / "params.yaml"
    params.write_text("counterfactual: {reading: {budget: 256}, effects: {resamples: 200}}")
    write_jsonl(tmp_path / "own.jsonl", [{"id": pair.id, **pair.__dict__} for pair in PAIRS])
    for name in ("target", "donor"):
        weighed[name].to_parquet(tmp_path / f"{name}.parquet")
    for name in ("graft", "again"):
        weigh_main(root / "open" / "graft", tmp_path / "own.jsonl", tmp_path / f"{name}.parquet", params)
    assert (tmp_path / "graft.parquet").read_bytes() == (tmp_path / "again.parquet").read_bytes()
    pd.testing.assert_frame_equal(pd.read_parquet(tmp_path / "graft.parquet"), weighed["open"])
    target, donor, graft = (tmp_path / f"{name}.parquet" for name in ("target", "donor", "graft"))
    main(target, donor, graft, tmp_path / "out.json", params)
    expected = counterfactual(weighed["target"], weighed["donor"], weighed["open"], SETTINGS)
    assert read_json(tmp_path / "out.json") == expected
