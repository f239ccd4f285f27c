"""What the evidence recommends."""

import pandas as pd
import pytest

from stages.errors import BadInput
from stages.plan import Plan, layer_for, main, plan
from stages.storage import read_json, write_json

SETTINGS = Plan(aligned_cosine=0.9, share_of_gain=0.95)


def trace(gains: list[float], harms: list[float], whole: float = 10.0) -> pd.DataFrame:
    rows = [{"intervention": "donor", "layer": None, "capability": whole, "retention": 5.0}]
    rows += [{"intervention": "states", "layer": i, "capability": g, "retention": h}
             for i, (g, h) in enumerate(zip(gains, harms, strict=True))]  # fmt: skip
    rows += [
        {"intervention": "weights_in", "layer": i, "capability": 99.0, "retention": 0.0} for i in range(len(gains))
    ]
    return pd.DataFrame(rows)


def bridge(cosine: float, donor_layer: int = 5, target_layer: int = 26, before: float | None = None) -> dict:
    return {"cosine": cosine, "cosine_before": before, "r2": cosine**2, "kind": "ridge", "donor_layer": donor_layer,
            "target_layer": target_layer}  # fmt: skip


def test_the_least_harmful_layer_among_those_that_bring_enough_is_chosen():
    found = layer_for(trace([1.0, 9.6, 9.9, 9.7], [0.1, 0.9, 0.3, 0.6]), 0.95)
    assert found == {"layer": 2, "share": pytest.approx(0.99), "kl": pytest.approx(0.3)}


def test_where_no_layer_brings_enough_the_one_that_brings_most_is_chosen():
    assert layer_for(trace([1.0, 4.0, 8.0, 7.9], [0.1, 0.1, 0.9, 0.2]), 0.95)["layer"] == 2


def test_a_higher_demand_never_lowers_the_share():
    evidence = trace([5.0, 7.0, 9.0, 9.9], [0.1, 0.2, 0.3, 0.4])
    assert [layer_for(evidence, share)["layer"] for share in (0.5, 0.7, 0.9, 0.99)] == [0, 1, 2, 3]


@pytest.mark.parametrize("whole", [0.0, -1.5])
def test_a_donor_without_a_gain_is_refused(whole):
    with pytest.raises(BadInput, match=f"better than the target, got {whole:.3f} nats; choose another"):
        layer_for(trace([1.0], [1.0], whole), 0.95)


def test_a_sibling_needs_no_bridge_and_goes_where_its_states_bring_the_gain():
    made = plan(SETTINGS, "sibling", [bridge(0.99, before=0.98)], trace([1.0, 9.9], [0.1, 0.3]))
    assert made["recommendation"] == {
        "sibling": {
            "recipe": "inject",
            "bridge": "identity",
            "gate": "token",
            "mix": "delta",
            "layer": 1,
            "donor_layer": 1,
        }
    }
    assert [step["answer"] for step in made["path"]] == ["yes", "yes", "layer 1, under a gate"]


def test_a_donor_of_another_width_gets_a_bridge_between_the_best_aligned_layers():
    made = plan(SETTINGS, "calculator", [bridge(0.3, 1), bridge(0.5, 2), bridge(0.5, 4)], None)
    assert made["recommendation"]["calculator"] == {
        "recipe": "inject", "bridge": "linear", "gate": "token", "mix": "add", "layer": 26, "donor_layer": 2,
    }  # fmt: skip
    assert [step["answer"] for step in made["path"]] == [
        "no",
        "no: train the bridge on the capability",
        "the aligned pair",
    ]
    assert "cosine 0.500" in made["path"][1]["figure"]


@pytest.mark.parametrize(("cosine", "answer"), [(0.9, "yes"), (0.899, "no: train the bridge on the capability")])
def test_the_threshold_decides_what_counts_as_aligned(cosine, answer):
    assert plan(SETTINGS, "d", [bridge(cosine)], None)["path"][1]["answer"] == answer


def test_every_aligned_donor_is_planned_with_its_trace_where_it_has_one(tmp_path):
    for donor, before in (("sibling", 0.9), ("calculator", None)):
        write_json(tmp_path / "bridges" / donor / "alignment.json", [bridge(0.95, before=before)])
    (tmp_path / "trace").mkdir()
    trace([1.0, 9.9], [0.1, 0.3]).to_parquet(tmp_path / "trace" / "sibling.parquet")
    (tmp_path / "params.yaml").write_text("plan: {aligned_cosine: 0.9, share_of_gain: 0.95}")
    for name in ("one", "other"):
        main(tmp_path / "bridges", tmp_path / "trace", tmp_path / f"{name}.json", tmp_path / "params.yaml")
    made = read_json(tmp_path / "one.json")
    assert {donor: each["layer"] for donor, each in made["recommendation"].items()} == {"sibling": 1, "calculator": 26}
    assert len(made["path"]) == 6
    assert all(set(step) == {"question", "figure", "threshold", "answer"} for step in made["path"])
    assert (tmp_path / "one.json").read_bytes() == (tmp_path / "other.json").read_bytes()
