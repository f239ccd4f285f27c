"""The gallery's page: every way to graft with its variants, their controls, and what their making showed."""

from collections.abc import Mapping, Sequence
from typing import Any

import altair as alt

from stages.pages import views, words
from stages.pages.plots import LINES, Plot, among, numbers, plot
from stages.pages.roles import Roles
from stages.pages.shell import Charts, page

WAYS = {
    "components": ("Components copied", "Blocks, attention, MLPs, heads or linear modules, without training."),
    "merge": ("Whole models merged", "Weights averaged tensor by tensor, the target as the base."),
    "adapt": ("Adapters", "Low-rank changes of the target’s linear modules: imported, cut to a rank, or extracted."),
    "embed": ("Embeddings", "Rows of the donor’s embedding matrix by what the tokens spell, and new tokens."),
    "project": ("Feed-forward networks projected", "A donor’s largest neurons put into the target’s networks."),
    "withdraw": ("From a bank of parts", "Parts kept in a bank, grafted without the model that they came from."),
    "implant": ("Modules injected", "A donor’s module at work inside the target, between bridges, behind a gate."),
    "fuse": ("Several modules on one layer", "Donors’ states and modules under shares that may choose none."),
    "mixture": ("Mixtures of bridges", "Several bridges that share the tokens out among them."),
    "store": ("Stored blades", "What a donor’s states differ by, or features of the target’s own, without the donor."),
    "debate": ("Self-debate", "Perturbed views of one model, reconciled."),
    "blades": ("Blades of other specialists", "One specialist each, and donors that run only where they are needed."),
    "together": ("Two blades in one graft", "Stacked as trained apart, or under one gate that shares a budget."),
    "together_four": ("Four blades in one graft", "The same with four specialists."),
    "route": ("Routers", "A mixture of experts whose routers prefer one domain’s experts."),
    "swap": ("Experts", "A mixture of experts with a donor’s experts in place of its own."),
}  # fmt: skip
"""Section of params.yaml → heading and lead."""


def render(
    summary: Mapping[str, Any],
    roles: Roles,
    ways: Mapping[str, Sequence[str]],
    makings: Mapping[str, Mapping[str, Any]],
    domains: Sequence[Mapping[str, Any]],
    synergies: Mapping[str, Mapping[str, Any]],
    settings: Mapping[str, Any],
) -> str:
    """The page as HTML; `ways` holds the variants of each section, `makings` what each variant's making showed.

    `domains` are rows `{"name", "cells": {domain: figure}}` of what each model answers in each domain.
    """
    charts = Charts()
    groups = views.groups(summary, roles)
    shown = []
    for way, names in ways.items():
        heading, lead = WAYS[way]
        told = {name: makings[name] for name in names if name in makings}
        shown.append(
            {
                "id": way,
                "heading": heading,
                "lead": lead,
                "groups": [g for g in groups if g[0]["name"] in names and any(row["entry"]["capability"] for row in g)],
                "figures": figures(told),
                "plots": charts.placed(curves(told)),
            }
        )
    return page(
        "gallery.html",
        charts,
        ways=[w for w in shown if w["groups"] or w["figures"] or w["plots"]],
        domains=domains,
        columns=list(domains[0]["cells"]) if domains else [],
        synergies=synergies,
        settings=settings,
        percent=f"{100 * settings['confidence']:g} %",
        **views.counts(summary),
    )


def figures(told: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """A row a variant: parameters moved and added, and the other figures of its making in words."""
    return [
        {
            "name": name,
            "moved": made.get("parameters", {}).get("moved"),
            "added": made.get("parameters", {}).get("added"),
            "recipe": words.line(
                {k: v for k, v in made.get("recipe", {}).items() if v is not None and k != "training"}
            ),
            "figures": [(k.replace("_", " "), v) for k, v in sorted(made.get("figures", {}).items()) if v is not None],
        }
        for name, made in told.items()
    ]


def curves(told: Mapping[str, Mapping[str, Any]]) -> list[Plot]:
    """One chart a title, a line for each variant that has such a curve."""
    titles = list(dict.fromkeys(title for made in told.values() for title in made.get("curves", {})))
    drawn = []
    for title in titles:
        having = {name: made["curves"][title] for name, made in told.items() if title in made.get("curves", {})}
        rows = [{"variant": n, "x": x, "value": y} for n, c in having.items() for x, y in c["points"] if y is not None]
        if not rows:
            continue
        first = next(iter(having.values()))
        lines = (
            alt.Chart(alt.Data(values=rows))
            .mark_line(point=alt.OverlayMarkDef(filled=True, size=28), strokeWidth=1.6)
            .encode(
                x=alt.X("x:Q", title=first["x"], scale=alt.Scale(nice=False, zero=False)),
                y=alt.Y("value:Q", title=first["y"], scale=alt.Scale(zero=False)),
                color=alt.Color("variant:N", title=None, legend=LINES, scale=among(list(having))),
                tooltip=["variant:N", *numbers("x", "value")],
            )
        )
        drawn.append(plot(title, f"{first['y']} over {first['x']}.", lines))
    return drawn
