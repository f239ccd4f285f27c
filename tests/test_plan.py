"""The strategy flow: every branch of every fork, what thresholds do, and what is said where evidence is missing."""

import itertools
from typing import Any

import pandas as pd
import pytest
from grafts import bpe
from hypothesis import given, settings
from hypothesis import strategies as st

from stages import forks
from stages.anatomy.coverage import Coverage
from stages.plan import EXITS, METHODS, Plan, main, plan, walk
from stages.recipes.blade import BladeRecipe
from stages.settings import parse
from stages.specialize import character_tokenizer
from stages.storage import read_json, write_json, write_jsonl

TRAINING = {"steps": 2, "prompts": 4, "batch": 2, "texts": 2, "positions": 8, "learning_rate": 0.1, "divergence": 1.0}
SETTINGS = parse({"training": TRAINING, "bridging": TRAINING | {"steps": 3}}, "plan", Plan)
WAYS = {"missing": 0, "role": 0, "exact": 0, "normalised": 0, "decomposed": 0}


def trace(gains: list[float], harms: list[float] | None = None, whole: float = 10.0, q: float = 0.01,
          parts: dict[str, float] | None = None, exact: bool = False) -> pd.DataFrame:  # fmt: skip
    """States of a block a row; `parts` are sites with their effect, exchanged exactly or estimated."""
    harms = harms or [0.1] * len(gains)
    rows: list[dict[str, Any]] = [{"intervention": "donor", "site": None, "capability": whole, "retention": 5.0}]
    for layer, (gain, harm) in enumerate(zip(gains, harms, strict=True)):
        site = {"site": f"layers.{layer}", "layer": layer}
        rows.append({"intervention": "states", "capability": gain, "retention": harm, "capability_q": q} | site)
        rows.append({"intervention": "weights_in", "capability": 99.0, "retention": 0.0, "capability_q": 0.0} | site)
    kind = "donor_states" if exact else "attribution_states"
    rows += [{"intervention": kind, "site": site, "capability": gain, "retention": 0.1, "capability_q": q}
             for site, gain in (parts or {}).items()]  # fmt: skip
    columns = ["intervention", "site", "layer", "capability", "retention", "capability_q"]
    return pd.DataFrame(rows, columns=columns).assign(prompts=20)


def bridge(r2: float | None = 0.3, donor_layer: int = 5, target_layer: int = 26, before: float | None = None,
           kind: str = "ridge") -> dict[str, Any]:  # fmt: skip
    return {"cosine": 0.9, "cosine_before": before, "r2_before": before, "r2": r2, "kind": kind,
            "donor_layer": donor_layer, "target_layer": target_layer}  # fmt: skip


def lacking(share: float) -> Coverage:
    known = round(1000 * (1 - share))
    return Coverage(False, WAYS | {"exact": known, "decomposed": 1000 - known})


SAME = [bridge(0.7, 1, 1, before=0.95), bridge(0.6, 0, 0, before=0.85)]
OTHER = [bridge(0.3, 1), bridge(0.2, 2), bridge(0.1, 2, 20)]
PARTS = {"layers.1.self_attn": 3.0, "layers.1.mlp": 2.0, "layers.0.mlp": 4.0}
ROUTES: dict[str, tuple[dict[str, Any], list[str]]] = {
    "a sibling's states bring the gain": (
        {"rows": SAME, "trace": trace([1.0, 9.9]), "found": lacking(0)},
        ["aligned", "sites", "injection"],
    ),
    "behind a bridge they would": (
        {"rows": [bridge(0.6, 1, 1, before=0.2)], "trace": trace([1.0, 9.9]), "found": lacking(0)},
        ["aligned", "bridge", "sites", "injection"],
    ),
    "the donor reads tokens that the target lacks": (
        {"rows": SAME, "trace": trace([1.0, 4.0]), "found": lacking(0.3)},
        ["aligned", "sites", "vocabulary", "embedding"],
    ),
    "no one bridge serves all rows": (
        {"rows": [*OTHER, bridge(0.5, 2, kind="mixture")], "trace": None, "found": lacking(0)},
        ["aligned", "bridge", "sites", "vocabulary", "tasks", "mixture"],
    ),
    "attention and MLP of a layer both bring some": (
        {"rows": SAME, "trace": trace([1.0, 4.0], parts=PARTS), "found": lacking(0)},
        ["aligned", "sites", "vocabulary", "tasks", "candidates", "fusion"],
    ),
    "nothing calls for a method of its own": (
        {"rows": OTHER, "trace": None, "found": lacking(0)},
        ["aligned", "bridge", "sites", "vocabulary", "tasks", "candidates", "validation"],
    ),
    "nothing was measured": (
        {"rows": [], "trace": None, "found": None},
        ["aligned", "bridge", "sites", "vocabulary", "tasks", "candidates", "validation"],
    ),
}


def by_name(made: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {step["name"]: step for step in made["path"]}


@pytest.mark.parametrize("route", ROUTES)
def test_evidence_leads_where_the_flow_says(route):
    evidence, way = ROUTES[route]
    made = plan(SETTINGS, "d", **evidence)
    reached = [step["name"] for step in made["path"] if step["reached"]]
    assert [*reached, made["recommendation"]["method"]] == way
    assert [step["next"] for step in made["path"] if step["reached"]] == way[1:]


def test_the_routes_between_them_reach_every_method_and_every_answer():
    plans = [plan(SETTINGS, "d", **evidence) for evidence, _ in ROUTES.values()]
    assert {made["recommendation"]["method"] for made in plans} == set(METHODS)
    answers = {(step["name"], step["answer"]) for made in plans for step in made["path"]}
    assert answers >= set(itertools.product(EXITS, ("yes", "not measured")))
    assert {name for name, answer in answers if answer == "no"} == set(EXITS) - {"candidates", "tasks"}


@settings(deadline=None)
@given(st.fixed_dictionaries({name: st.sampled_from(["yes", "no", "not measured"]) for name in EXITS}))
def test_every_set_of_answers_ends_at_one_method_and_passes_no_fork_twice(answers):
    way = walk(answers)
    assert way[-1] in METHODS
    assert len(set(way)) == len(way)
    assert ("bridge" in way) == (answers["aligned"] != "yes")


@pytest.mark.parametrize("route", ROUTES)
def test_what_is_not_measured_says_why_and_what_to_run_and_the_rest_has_figures(route):
    for step in plan(SETTINGS, "d", **ROUTES[route][0])["path"]:
        assert step["figure"]
        assert bool(step["remedy"]) == (step["answer"] == "not measured")
        assert all(value is None or isinstance(value, (int, float)) for value in step["figures"].values())


@pytest.mark.parametrize("route", ROUTES)
def test_a_recommended_recipe_is_a_section_that_can_be_built(route):
    evidence, way = ROUTES[route]
    recommended = plan(SETTINGS, "d", **evidence)["recommendation"]
    mixed = way[-1] == "mixture" and "bridge" in way
    assert bool(recommended["note"]) == (way[-1] != "injection" and not mixed)
    if not evidence["rows"]:
        assert recommended["recipe"] is None
        return
    recipe = parse(recommended["recipe"], "inject.d", BladeRecipe)
    bridge = ("mixture" if mixed else "linear", "add")
    assert (recipe.bridge, recipe.mix) == (bridge if "bridge" in way else ("identity", "delta"))
    assert recipe.bridges == (SETTINGS.bridges if mixed else 1)
    assert recipe.training == (SETTINGS.bridging if "bridge" in way else SETTINGS.training)


def test_a_method_that_cannot_be_built_names_what_stands_in():
    evidence, _ = ROUTES["the donor reads tokens that the target lacks"]
    recommended = plan(SETTINGS, "d", **evidence)["recommendation"]
    expected = "embedding initialisation is written under `embed` in params.yaml; the nearest blade is a blade "
    expected += "without a bridge"
    assert recommended["note"] == expected
    assert recommended["recipe"]["layer"] == 1


def test_the_least_harmful_layer_among_those_that_bring_enough_is_chosen():
    found = forks.high_impact(trace([1.0, 9.6, 9.9, 9.7], [0.1, 0.9, 0.3, 0.6]), 0.95, 0.05)
    assert found.answer == "yes"
    assert found.figures == {"gain": 10.0, "layer": 2, "share": pytest.approx(0.99), "kl": 0.3, "q": 0.01,
                             "layers": 3, "prompts": 20}  # fmt: skip
    assert found.figure.startswith("layer 2: 99.0% of the gain (n = 20), q = 0.010, KL 0.300 ungated")


def test_where_no_layer_brings_enough_the_one_that_brings_most_is_named():
    found = forks.high_impact(trace([1.0, 4.0, 8.0, 7.9], [0.1, 0.1, 0.9, 0.2]), 0.95, 0.05)
    assert (found.answer, found.figures["layer"], found.figures["layers"]) == ("no", 2, 0)


def test_an_effect_that_may_be_chance_is_not_of_high_impact():
    assert forks.high_impact(trace([9.9], q=0.06), 0.95, 0.05).answer == "no"
    assert forks.high_impact(trace([9.9], q=0.05), 0.95, 0.05).answer == "yes"


@pytest.mark.parametrize("whole", [0.0, -1.5])
def test_a_donor_without_a_gain_has_no_sites_and_nothing_is_divided_by_it(whole):
    evidence = trace([1.0, 2.0], whole=whole, parts=PARTS)
    for found in (forks.high_impact(evidence, 0.95, 0.05), forks.candidates(evidence, 0.1, 0.05)):
        assert found.answer == "no"
        assert found.figure == f"the donor answers no better than the target ({whole:.3f} nats)"
    assert plan(SETTINGS, "d", SAME, evidence, None)["recommendation"]["recipe"]["layer"] == 1


@pytest.mark.parametrize("missing", ["capability_q", "donor", "states"])
def test_a_trace_without_tests_or_rows_is_not_measured(missing):
    whole = trace([9.9])
    less = whole.drop(columns=missing) if missing in whole else whole.loc[whole.intervention != missing]
    found = forks.high_impact(less, 0.95, 0.05)
    assert (found.answer, found.remedy) == ("not measured", "run trace again")


def test_a_donor_of_another_width_is_not_aligned_and_states_that_are_not_numbers_are_left_out():
    assert forks.aligned(OTHER, 0.9).figure == "the hidden spaces have other widths"
    assert forks.aligned([bridge(before=float("nan"))], 0.9).answer == "no"
    assert forks.bridged([bridge(None), bridge(float("nan"))], 0.5).answer == "not measured"
    assert forks.heterogeneous([bridge(None), bridge(0.3, kind="mixture")], 0.05).answer == "not measured"


def test_bridges_are_judged_at_the_layers_that_would_be_grafted():
    rows = [bridge(0.9, 1), bridge(0.99, 1, kind="mixture"), bridge(0.1, 2), bridge(0.4, 2, kind="mixture")]
    steps = by_name(plan(SETTINGS, "d", rows, None, None))
    assert steps["bridge"]["figures"]["r2"] == 0.1
    assert steps["tasks"]["figures"]["gain"] == pytest.approx(0.3)
    traced = by_name(plan(SETTINGS, "d", [*SAME, bridge(0.2, 5, 5, 0.1)], trace([1.0, 9.9]), None))
    assert traced["bridge"]["figures"]["donor_layer"] == 1


def test_exact_parts_are_preferred_to_estimated_ones():
    both = pd.concat([trace([1.0], parts=PARTS), trace([1.0], parts=dict.fromkeys(PARTS, 0.0), exact=True)])
    assert forks.candidates(both, 0.1, 0.05).answer == "no"
    assert forks.candidates(trace([1.0], parts=PARTS, exact=True), 0.1, 0.05).figure.endswith("(exact): 1")


def test_blocks_are_no_candidates_and_one_part_of_a_layer_is_not_several():
    assert forks.candidates(trace([1.0], parts={"layers.0": 9.0, "layers.1": 9.0}), 0.1, 0.05).answer == "not measured"
    assert forks.candidates(trace([1.0], parts={"layers.0.mlp": 9.0, "layers.1.mlp": 9.0}), 0.1, 0.05).answer == "no"


MONOTONE = {
    "aligned": lambda x: forks.aligned(SAME, x),
    "bridge": lambda x: forks.bridged(OTHER, x),
    "sites": lambda x: forks.high_impact(trace([5.0, 7.0, 9.0, 9.9]), x, 0.05),
    "vocabulary": lambda x: forks.vocabulary(lacking(0.3), x),
    "tasks": lambda x: forks.heterogeneous([bridge(0.2), bridge(0.5, kind="mixture")], x),
    "candidates": lambda x: forks.candidates(trace([1.0], parts=PARTS), x, 0.05),
}


@pytest.mark.parametrize("fork", MONOTONE)
@settings(max_examples=25, deadline=None)
@given(x=st.floats(0.01, 1), y=st.floats(0.01, 1))
def test_a_higher_threshold_never_turns_a_no_into_a_yes(fork, x, y):
    low, high = (MONOTONE[fork](each).answer for each in sorted((x, y)))
    assert (low, high) in {("yes", "yes"), ("yes", "no"), ("no", "no")}


@pytest.mark.parametrize(("fork", "edge"), [("aligned", 0.95), ("bridge", 0.3), ("sites", 0.99), ("vocabulary", 0.299),
                                            ("tasks", 0.29), ("candidates", 0.2)])  # fmt: skip
def test_the_threshold_decides(fork, edge):
    assert MONOTONE[fork](edge).answer == "yes"
    assert MONOTONE[fork](edge + 0.02).answer == "no"


def test_without_a_trace_the_donors_deepest_block_goes_where_it_maps_best():
    recipe = plan(SETTINGS, "d", OTHER, None, None)["recommendation"]["recipe"]
    assert (recipe["donor_layer"], recipe["layer"]) == (2, 26)


def test_every_aligned_donor_is_planned_with_the_evidence_it_has(tmp_path):
    for name, tokenizer in (("target", bpe()), ("sibling", bpe()), ("calculator", character_tokenizer())):
        tokenizer.save_pretrained(tmp_path / "models" / name)
    for donor, rows in (("sibling", SAME), ("calculator", OTHER), ("stranger", [])):
        write_json(tmp_path / "bridges" / donor / "alignment.json", rows)
    (tmp_path / "trace").mkdir()
    trace([1.0, 9.9]).to_parquet(tmp_path / "trace" / "sibling.parquet")
    write_jsonl(tmp_path / "train.jsonl", [{"prompt": "What is 3 + 4?", "answer": " 7."}])
    write_json(tmp_path / "params.yaml", {"plan": {"training": TRAINING, "bridging": TRAINING}})
    places = {name: tmp_path / name for name in ("bridges", "trace", "models")}
    for name in ("one", "other"):
        main(**places, capability=tmp_path / "train.jsonl", out=tmp_path / name, params=tmp_path / "params.yaml")
    found = read_json(tmp_path / "one")
    assert list(found["donors"]) == ["calculator", "sibling", "stranger"]
    figures = {donor: by_name(made)["vocabulary"]["figure"] for donor, made in found["donors"].items()}
    assert figures["sibling"] == "both have one tokenizer"
    assert figures["calculator"] == "0.0% of the 17 tokens that it reads in the prompts are none of the target's"
    assert figures["stranger"] == "the tokenizers are not there"
    assert found["donors"]["sibling"]["recommendation"]["method"] == "injection"
    assert found["donors"]["stranger"]["recommendation"]["recipe"] is None
    assert (tmp_path / "one").read_bytes() == (tmp_path / "other").read_bytes()
