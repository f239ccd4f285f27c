import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import scipy.stats
from synthetic import MODELS, items, params

from stages.errors import BadInput
from stages.maths.discovery import holm
from stages.maths.statistics import Bootstrap
from stages.pages.gallery import WAYS
from stages.pages.roles import REPORTED, Roles, read_roles
from stages.pages.summary import FIGURES, summarize
from stages.pages.verdict import Rules, judge

EVALUATED = {name: items(name) for name in MODELS}
RULES = Rules()


def summary_of(roles, evaluated=EVALUATED, rules=RULES, seeds=None):
    return summarize(evaluated, roles, Bootstrap(resamples=300), rules, seeds)


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
        ({"inject": {"a": {"control_for": ["transplant", "transplan"]}}}, "did you mean 'transplant'"),
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


def test_a_control_may_be_for_several_and_stands_after_the_last_of_them(tmp_path):
    inject = {"a": {}, "null": {"control_for": ["a", "transplant"]}, "b": {}}
    roles = read_roles(params(tmp_path, inject=inject))
    assert list(roles.variants) == ["a", "b", "transplant", "null", "random_transplant"]
    assert roles.controls("a") == ["null"]
    assert roles.controls("transplant") == ["null", "random_transplant"]


def further(name, task, role, right):
    """The rows of `name` with as many items of one more task, which it has right by the share `right`."""
    rows = EVALUATED[name]
    more = rows.loc[rows.task == "retention"].assign(task=task)
    more["right"] = pd.array(np.random.default_rng(3).random(len(more)) < right, dtype="boolean")
    both = pd.concat([rows, more], ignore_index=True)
    return both.assign(role=both.task.where(both.task != task, role), split="test")


@pytest.fixture(scope="module")
def with_mmlu():
    """All models on a further task, on which published_blade and blade stay as they are and bridged_blade forgets."""
    return {name: further(name, "mmlu", "retention", 0.3 if name == "bridged_blade" else 0.6) for name in MODELS}


def test_a_sure_loss_on_a_further_task_makes_a_variant_worse(roles, with_mmlu):
    found = summary_of(roles, with_mmlu)
    entry = found["variants"]["bridged_blade"]
    told = entry["tasks"]["mmlu"]
    assert told["role"] == "retention"
    assert told["n"] == told["accuracy"]["n"] == 120
    assert told["change"]["high"] < 0
    assert told["mcnemar_p"] <= told["adjusted_p"] < 0.001
    assert entry["verdict"] == "worse"
    assert entry["reasons"] == ["it gains on the capability", "it loses on mmlu"]
    assert found["variants"]["blade"]["verdict"] == "better"
    assert found["target"]["tasks"]["mmlu"]["change"] is None
    assert found["target"]["tasks"]["mmlu"]["accuracy"]["value"] == pytest.approx(0.6, abs=0.15)


def test_a_further_task_that_is_required_and_was_not_measured_leaves_no_verdict(roles, with_mmlu):
    rules = Rules(required=("gain", "mmlu"))
    without = with_mmlu | {"blade": EVALUATED["blade"]}
    found = summary_of(roles, without, rules)["variants"]
    assert found["blade"]["verdict"] == "not measured"
    assert found["blade"]["reasons"] == ["mmlu: not measured"]
    assert found["bridged_blade"]["verdict"] == "worse"


def test_a_variant_is_judged_on_the_tasks_that_it_learned(tmp_path):
    inject = {"units_blade": {"donor": "sibling", "prompts": "domains/units"},
              "null": {"donor": "sibling", "prompts": "domains/units", "control_for": "units_blade"}}  # fmt: skip
    roles = read_roles(params(tmp_path, inject=inject, transplant=None))
    like = {"target": ("target", 0.1), "sibling": ("sibling", 0.9), "units_blade": ("closed_gate", 0.9),
            "null": ("closed_gate", 0.1)}  # fmt: skip
    items_ = {name: further(known, "units", "capability", right) for name, (known, right) in like.items()}
    entry = summary_of(roles, items_)["variants"]["units_blade"]
    assert entry["aims"] == ["units"]
    assert entry["gain"]["value"] == 0
    assert entry["tasks"]["units"]["recovery"]["value"] == 1
    assert entry["tasks"]["units"]["over_control"]["low"] > 0
    assert entry["verdict"] == "better"
    matched = items_ | {"null": items_["units_blade"]}
    assert summary_of(roles, matched)["variants"]["units_blade"]["verdict"] == "undecided"
    alone = {name: rows for name, rows in items_.items() if name != "units_blade"}
    assert summary_of(roles, alone | {"units_blade": EVALUATED["blade"]})["variants"]["units_blade"]["verdict"] == (
        "not measured"
    )


def test_p_values_are_adjusted_over_variants_and_tasks_and_controls_are_not(roles, with_mmlu):
    found = {rule: summary_of(roles, with_mmlu, Rules(correction=rule))["variants"]
             for rule in ("holm", "benjamini_hochberg", "none")}  # fmt: skip
    keys = (("mcnemar_p", "adjusted_p"), ("retention_mcnemar_p", "retention_adjusted_p"))

    def family(variants, which):
        tried = [name for name, role in roles.variants.items() if not role.control_for]
        own = [variants[name][key[which]] for name in tried for key in keys]
        return own + [variants[name]["tasks"]["mmlu"][keys[0][which]] for name in tried]

    raw = np.array(family(found["none"], 0))
    assert len(raw) == 4 * 3
    assert family(found["none"], 1) == list(raw)
    assert family(found["holm"], 1) == pytest.approx(holm(raw), rel=0.02)
    by_rate = scipy.stats.false_discovery_control(raw)
    assert family(found["benjamini_hochberg"], 1) == pytest.approx(by_rate, rel=0.02)
    assert found["holm"]["closed_gate"]["adjusted_p"] is found["holm"]["closed_gate"]["retention_adjusted_p"] is None


def test_a_gain_that_does_not_survive_correction_is_undecided_and_says_so():
    entry = figures() | {"adjusted_p": 0.2}
    found = judge(entry, {"control": figures(**NO_GAIN)}, RULES)
    assert found["verdict"] == "undecided"
    assert "the gain on the capability is not sure at 0.05 after correction" in found["reasons"]
    assert judge(entry, {"control": figures(**NO_GAIN)}, Rules(level=0.25))["verdict"] == "better"


def test_a_loss_that_does_not_survive_correction_still_stands_in_the_way_of_better():
    entry = figures(change=(-0.05, -0.08, -0.02)) | {"retention_adjusted_p": 0.2, "adjusted_p": 0.001}
    found = judge(entry, {"control": figures(**NO_GAIN)}, RULES)
    assert found["verdict"] == "undecided"
    assert "it may lose on retention, though not surely after correction" in found["reasons"]
    assert judge(entry | {"retention_adjusted_p": 0.01}, {}, RULES)["verdict"] == "worse"


def test_a_control_speaks_up_without_correction():
    entry = figures() | {"adjusted_p": None}
    assert judge(entry, {}, RULES, control_for=["a", "b"])["verdict"] == "control: also gains"


def test_p_takes_the_items_of_a_cluster_together(summary):
    entry = summary["variants"]["published_blade"]
    ours, theirs = (EVALUATED[name].query("task == 'capability'") for name in ("published_blade", "target"))
    gap = (ours.right.astype(int) - theirs.right.astype(int)).to_numpy()
    shares = pd.Series(gap).groupby(ours.cluster.to_numpy()).sum()
    signs = np.random.default_rng(0).choice([-1, 1], size=(4000, len(shares)))
    wanted = (np.abs(signs @ shares.to_numpy()) >= abs(gap.sum())).mean()
    assert entry["mcnemar_p"] == pytest.approx(wanted, abs=0.03)


def test_the_least_detectable_differences_are_told_of_every_model_but_the_target(summary):
    assert summary["target"]["minimum_detectable"] == {"gain": None, "retention_change": None}
    told = summary["variants"]["closed_gate"]["minimum_detectable"]
    assert 0 < told["gain"] < 0.1
    assert 0.02 < told["retention_change"] < 0.2  # 120 questions cannot tell a loss within the margin


def test_seeds_of_a_recipe_are_pooled_and_their_spread_is_told(roles):
    items_ = EVALUATED | {"second": EVALUATED["bridged_blade"], "third": EVALUATED["transplant"]}
    told = summary_of(roles, items_, seeds={"blade": ["second", "third"], "transplant": ["gone"]})["seeds"]
    members = [summary_of(roles)["variants"][name] for name in ("blade", "bridged_blade", "transplant")]
    for figure in ("gain", "retention_change"):
        values = [entry[figure]["value"] for entry in members]
        assert told["blade"][figure]["value"] == pytest.approx(np.mean(values), abs=1e-5)
        assert told["blade"][figure]["spread"] == pytest.approx(np.std(values, ddof=1), abs=1e-5)
    assert told["blade"]["gain"]["seeds"] == 3
    wide = told["blade"]["gain"]["high"] - told["blade"]["gain"]["low"]
    assert wide > members[0]["gain"]["high"] - members[0]["gain"]["low"]
    ratios = [entry["perplexity_ratio"]["value"] for entry in members]
    assert told["blade"]["perplexity_ratio"]["value"] == pytest.approx(scipy.stats.gmean(ratios), abs=1e-5)
    assert told["transplant"]["gain"] is None
    assert told["transplant"]["undefined"]["gain"] == "gone not judged on these items"


def test_scores_between_right_and_wrong_are_averaged_and_compared(roles):
    graded = {}
    for number, (name, rows) in enumerate(EVALUATED.items()):
        more = rows.loc[rows.task == "retention"].assign(task="summaries", right=None)
        luck = np.random.default_rng(0).uniform(0.2, 0.6, len(more)) + 0.01 * number
        graded[name] = pd.concat([rows.assign(score=rows.right.astype(float)), more.assign(score=luck)])
    told = summary_of(roles, graded)["variants"]["blade"]["tasks"]["summaries"]
    assert told["change"]["value"] == pytest.approx(0.04, abs=1e-6)
    assert told["mcnemar_p"] < 0.001
    assert 0.3 < told["accuracy"]["value"] < 0.6


def test_perplexity_on_a_further_task_counts(roles):
    told = {}
    for name, rows in EVALUATED.items():
        more = rows.loc[rows.task == "text"].assign(task="wikitext")
        more["loglikelihood"] *= 1.03 if name == "blade" else 1.0
        told[name] = pd.concat([rows, more], ignore_index=True)
        told[name]["role"] = told[name].task.replace("wikitext", "text")
    entry = summary_of(roles, told)["variants"]["blade"]
    assert entry["tasks"]["wikitext"]["perplexity_ratio"]["low"] > 1.02
    assert entry["tasks"]["wikitext"]["accuracy"] is None
    assert entry["verdict"] == "worse"
    assert "its perplexity ratio on wikitext is above the limit of 1.02" in entry["reasons"]


@pytest.mark.parametrize(("sections", "givers"), [(REPORTED, ("adopt",)), (tuple(WAYS), ("adopt", "specialists"))])
def test_every_variant_of_the_default_experiment_has_a_control(sections, givers):
    roles = read_roles(Path(__file__).parent.parent / "params.yaml", sections, givers)
    assert [name for name, role in roles.variants.items() if not role.control_for and not roles.controls(name)] == []
