import json

import pytest
from synthetic import MODELS, items, params

from stages.errors import BadInput
from stages.maths.statistics import Bootstrap
from stages.pages.roles import Roles, read_roles
from stages.pages.summary import FIGURES, summarize
from stages.pages.verdict import Rules, judge

EVALUATED = {name: items(name) for name in MODELS}


def summary_of(roles, evaluated=EVALUATED):
    return summarize(evaluated, roles, Bootstrap(resamples=300), Rules())


@pytest.fixture(scope="module")
def roles(tmp_path_factory) -> Roles:
    return read_roles(params(tmp_path_factory.mktemp("params")))


@pytest.fixture(scope="module")
def summary(roles):
    return summary_of(roles)


def test_every_model_has_every_figure_or_the_reason_why_not(summary):
    entries = [summary["target"], *summary["donors"].values(), *summary["variants"].values()]
    assert len(entries) == len(MODELS)
    for entry in entries:
        for name in FIGURES:
            if entry[name] is None:
                assert entry["undefined"][name]
            else:
                assert set(entry[name]) == {"value", "low", "high", "n"}
                assert entry[name]["low"] <= entry[name]["value"] <= entry[name]["high"]


def test_there_is_no_number_that_json_lacks(summary):
    assert json.loads(json.dumps(summary, allow_nan=False)) == summary


def test_the_figures_are_those_of_the_items(summary):
    blade, target = EVALUATED["blade"], EVALUATED["target"]
    entry = summary["variants"]["blade"]
    asked = blade[blade.task == "capability"]
    assert entry["capability"]["value"] == pytest.approx(asked.right.mean(), abs=1e-6)
    assert entry["capability_unseen"]["n"] == int((~asked.seen).sum())
    assert entry["gain"]["value"] == pytest.approx(
        entry["capability"]["value"] - summary["target"]["capability"]["value"], abs=2e-6
    )
    told, reference = (frame[frame.task == "text"] for frame in (blade, target))
    nats = (reference.loglikelihood.sum() - told.loglikelihood.sum()) / told.tokens.sum()
    assert entry["perplexity_ratio"]["value"] == pytest.approx(2.718281828**nats, abs=1e-6)
    assert entry["kl_to_target"]["value"] == pytest.approx((told.kl * told.tokens).sum() / told.tokens.sum(), abs=1e-6)


def test_cells_by_operation_and_digits_hold_every_item(summary):
    for entry in (summary["target"], summary["variants"]["blade"]):
        cells = entry["capability_by"]
        assert sum(cell["n"] for cell in cells) == entry["capability"]["n"]
        right = sum(cell["n"] * cell["value"] for cell in cells)
        assert right / entry["capability"]["n"] == pytest.approx(entry["capability"]["value"], abs=1e-5)


def test_the_target_is_not_compared_with_itself(summary):
    for name in ("gain", "recovery", "retention_change", "perplexity_ratio", "kl_to_target"):
        assert summary["target"][name] is None
    assert summary["target"]["perplexity"]["value"] == pytest.approx(17.1, abs=0.1)


def test_a_donor_with_other_tokens_has_no_perplexity_ratio(summary):
    calculator = summary["donors"]["calculator"]
    assert calculator["perplexity_ratio"] is calculator["kl_to_target"] is None
    assert "another tokenizer" in calculator["undefined"]["perplexity_ratio"]
    assert calculator["perplexity"] is not None


def test_recovery_is_open_where_the_donor_knows_nothing(summary):
    entry = summary["variants"]["null_donor"]
    assert entry["recovery"] is None
    assert "no gain to recover" in entry["undefined"]["recovery"]


def test_a_closed_gate_changes_nothing_but_claims_no_certainty(summary):
    entry = summary["variants"]["closed_gate"]
    assert (entry["gain"]["value"], entry["perplexity_ratio"]["value"], entry["mcnemar_p"]) == (0, 1, 1)
    assert entry["retention_change"]["low"] < 0 < entry["retention_change"]["high"]


def test_verdicts_of_the_pilot(summary):
    assert {name: entry["verdict"] for name, entry in summary["variants"].items()} == {
        "blade": "better",
        "closed_gate": "control: fails as it should",
        "bridged_blade": "better",
        "null_donor": "control: fails as it should",
        "published_blade": "worse",
        "transplant": "better",
        "random_transplant": "control: also gains",
    }


def figures(gain=(0.3, 0.2, 0.4), change=(0.0, -0.01, 0.01), ratio=(1.0, 1.0, 1.0), over=(0.3, 0.2, 0.4)):
    names = ("gain", "retention_change", "perplexity_ratio", "over_control")
    entry = {name: dict(zip(("value", "low", "high"), ends, strict=True))
             for name, ends in zip(names, (gain, change, ratio, over), strict=True)}  # fmt: skip
    return entry | {"undefined": {}}


NO_GAIN = {"gain": (0.0, -0.01, 0.01)}


@pytest.mark.parametrize(
    ("own", "control", "verdict"),
    [
        ({}, NO_GAIN, "better"),
        ({}, {}, "undecided"),  # the control is better too
        ({}, {"gain": (0.015, 0.005, 0.025)}, "better"),  # the control's gain is within the margin
        ({}, None, "undecided"),  # no control
        ({"over": (0.01, -0.02, 0.04)}, {"gain": (0.29, 0.2, 0.4), "ratio": (1.3, 1.2, 1.4)}, "undecided"),
        ({"ratio": (1.03, 1.01, 1.05)}, NO_GAIN, "undecided"),  # perhaps above the limit
        ({"ratio": (1.05, 1.03, 1.07)}, NO_GAIN, "worse"),
        ({"change": (-0.05, -0.08, -0.02)}, NO_GAIN, "worse"),
        ({"change": (-0.015, -0.03, -0.005)}, NO_GAIN, "better"),  # the loss is sure and within the margin
        ({"gain": (-0.015, -0.03, -0.005)}, NO_GAIN, "undecided"),
        ({"gain": (-0.1, -0.2, -0.05)}, NO_GAIN, "worse"),
        (NO_GAIN, NO_GAIN, "no worse"),
        ({"gain": (0.0, -0.1, 0.1)}, NO_GAIN, "undecided"),
        (NO_GAIN | {"change": (0.0, -0.06, 0.06)}, NO_GAIN, "undecided"),
        (NO_GAIN | {"ratio": (1.01, 0.99, 1.03)}, NO_GAIN, "undecided"),
    ],
)
def test_a_verdict_follows_its_rules(own, control, verdict):
    controls = {} if control is None else {"control": figures(**control)}
    found = judge(figures(**own), controls, Rules())
    assert found["verdict"] == verdict
    assert found["reasons"]


def test_missing_evidence_is_never_a_pass(roles):
    without = {name: rows for name, rows in EVALUATED.items() if name not in ("closed_gate", "null_donor", "sibling")}
    found = summary_of(roles, without)["variants"]
    assert found["closed_gate"]["verdict"] == "not measured"
    assert found["blade"]["verdict"] == "undecided"
    assert "its control closed_gate was not measured" in found["blade"]["reasons"]
    assert found["blade"]["recovery"] is None
    assert found["transplant"]["undefined"]["recovery"] == "its donor was not measured"


def test_models_that_params_do_not_name_are_left_out(tmp_path):
    roles = read_roles(params(tmp_path, inject={"blade": {"donor": "sibling"}}, transplant=None))
    found = summary_of(roles)
    assert list(found["variants"]) == ["blade"]


def test_a_model_judged_on_other_items_is_refused(roles):
    other = items("blade", count=200)
    with pytest.raises(BadInput, match="Expected blade to be judged on the target's 444 items"):
        summary_of(roles, EVALUATED | {"blade": other})


def test_nothing_is_judged_without_the_target(roles):
    with pytest.raises(BadInput, match="items of the target"):
        summary_of(roles, {})


def test_an_experiment_without_retention_or_phrasings_says_what_is_missing(roles):
    bare = {name: rows[rows.task == "capability"].assign(seen=True) for name, rows in EVALUATED.items()}
    found = summary_of(roles, bare)
    assert found["target"]["undefined"]["capability_unseen"] == "no such items"
    assert found["variants"]["blade"]["verdict"] == "not measured"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"inject": {"blade": {"donor": "siblin"}}}, "did you mean 'sibling'"),
        ({"inject": {"gate": {"donor": "sibling", "control_for": "transplan"}}}, "did you mean 'transplant'"),
        ({"inject": {"a": {"control_for": "transplant"}, "b": {"control_for": "a"}}}, "a variant that is no control"),
        ({"inject": {"transplant": {}}}, "both have a variant 'transplant'"),
        ({"adopt": ["sibling"]}, "adopt"),
    ],
)
def test_roles_that_do_not_fit_are_said_in_a_sentence(tmp_path, change, said):
    with pytest.raises(BadInput, match=said):
        read_roles(params(tmp_path, **change))


def test_each_control_stands_after_its_variant(roles):
    assert list(roles.variants) == ["blade", "closed_gate", "bridged_blade", "null_donor", "published_blade",
                                    "transplant", "random_transplant"]  # fmt: skip
    assert roles.controls("blade") == ["closed_gate"]
