"""Causal maps show what was measured where, exact before estimated; bridges show their best pair."""

import json

import numpy as np
import pandas as pd
from synthetic import alignment, trace

from stages.pages import causal, layers


def drawn(plot) -> list[dict]:
    """The rows behind a chart's first layer."""
    return plot.spec["layer"][0]["data"]["values"] if "data" in plot.spec["layer"][0] else plot.spec["data"]["values"]


def rows_of(plot) -> dict[tuple[str, int], dict]:
    return {(row["row"], row["at"]): row for row in drawn(plot)}


def test_an_exact_effect_stands_before_its_estimate_and_the_row_says_which():
    rows = trace()
    capability, text = causal.maps(rows, "sibling")
    assert capability.title == "Effect of the donor's states on the capability" and text.title.endswith("on text")
    shown = rows_of(capability)
    assert {row for row, _ in shown} == {"block", "attention", "head 0", "MLP (estimate)", "neurons 0–768 (estimate)"}
    by = rows.set_index(["intervention", "site"])
    assert np.isclose(shown["block", 7]["value"], by.loc[("states", "layers.7"), "capability"])
    assert np.isclose(shown["attention", 7]["value"], by.loc[("donor_states", "layers.7.self_attn"), "capability"])
    assert np.isclose(shown["MLP (estimate)", 7]["value"], by.loc[("attribution_states", "layers.7.mlp"), "capability"])


def test_zero_is_the_middle_of_the_colours_and_harm_has_one_colour_in_both_panels():
    for plot, sign in zip(causal.maps(trace(), "sibling"), (1, -1), strict=True):
        colour = plot.spec["layer"][0]["encoding"]["color"]["scale"]
        low, middle, high = colour["domain"]
        assert middle == 0 and low == -high and np.sign(high) == sign


def test_other_interventions_and_single_positions_have_maps_of_their_own():
    rows = trace()
    parts = rows[rows.intervention == "donor_states"]
    zero = parts.assign(intervention="zero")
    rows = pd.concat(
        [rows, zero, zero.assign(position="-1"), zero.assign(position="but_first", retention_change=np.nan)]
    )
    titles = [plot.title for plot in causal.maps(rows, "sibling")]
    assert [title for title in titles if "silence" in title] == [
        "Effect of silence on the capability",
        "Effect of silence on text",
        "Effect of silence at single positions on the capability",
        "Effect of silence at single positions on text",
    ]
    shown = rows_of(next(p for p in causal.maps(rows, "x") if "single positions on the capability" in p.title))
    assert {row for row, _ in shown} == {
        f"{part} · {at}" for part in ("attention", "head 0") for at in ("−1", "but first")
    }


def test_a_trace_without_sites_has_no_map():
    assert causal.maps(trace().drop(columns=["site"]), "x") == []
    assert causal.maps(trace().iloc[:1], "x") == []


def test_estimates_stand_beside_exact_effects_with_their_rank_correlation():
    figure = {"value": 0.9, "low": 0.8, "high": 0.95}
    pair = {
        "estimate": "attribution_states",
        "exact": "donor_states",
        "sites": 60,
        "capability": figure,
        "retention": None,
    }
    one, other = causal.agreement(trace(), [pair], "sibling")
    assert "correlation 0.900 [0.800, 0.950] over 60 sites" in one.caption and "undefined" in other.caption
    points = one.spec["layer"][1]["data"]["values"]
    by = trace().set_index(["intervention", "site"])
    assert len(points) == 60 and {point["kind"] for point in points} == {"attention", "head"}
    for point in points[::7]:
        assert np.isclose(point["exact"], by.loc[("donor_states", point["site"]), "capability"], rtol=1e-5)
        assert np.isclose(point["estimate"], by.loc[("attribution_states", point["site"]), "capability"], rtol=1e-5)


def test_the_best_bridge_is_marked_and_rows_are_counted():
    pairs = [(d, t) for d in range(3) for t in (20, 26)]
    mixture = [row | {"kind": "mixture", "r2": row["r2"] + 0.1, "best": False} for row in alignment(pairs, False)]
    best = {"donor_layer": 0, "target_layer": 20, "kind": "mixture"}
    mixture[0]["best"] = True
    plain = [row | {"best": False} for row in alignment(pairs, False)]
    grid = layers.alignment(plain + mixture, "calculator")
    assert [plot.title for plot in grid] == ["Cosine of the bridges", "R² of the bridges"]
    for plot in grid:
        cells = plot.spec["data"]["values"] if "data" in plot.spec else drawn(plot)
        assert len(cells) == 6 and {cell["kind"] for cell in cells} == {"mixture"}
        assert [{key: cell[key] for key in best} for cell in cells if cell["best"]] == [best]
        assert "8,000 fitted on, 2,000 judged" in plot.caption
    lines = layers.alignment(alignment([(i, i) for i in range(4)], True), "sibling")[1]
    marked = [row for row in drawn(lines) if row["best"]]
    assert [(row["donor_layer"], row["kind"]) for row in marked] == [(0, "ridge")]
    assert {row["kind"] for row in drawn(lines)} == {"orthogonal", "ridge", "none"}
    json.dumps([plot.spec for plot in [*grid, lines]], allow_nan=False)
