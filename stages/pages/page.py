"""The page: figures, charts and evidence laid out, every word of theirs escaped."""

from collections.abc import Mapping
from typing import Any

from stages.pages import causal, charts, compare, confidence, layers, selection, views, words
from stages.pages.catalog import catalog
from stages.pages.costs import costs, slowdown
from stages.pages.counterfactuals import counterfactuals, effects
from stages.pages.evidence import Evidence
from stages.pages.flow import flows
from stages.pages.plots import Plot
from stages.pages.provenance import provenance
from stages.pages.regressions import regressions
from stages.pages.roles import Roles
from stages.pages.shell import Charts, page
from stages.pages.showcase import showcases

_CONTENTS = (
    ("verdict", "Verdict"),
    ("plan", "Choice of method"),
    ("layers", "Layer by layer"),
    ("cost", "What it costs"),
    ("acts", "Where it acts"),
    ("capability", "Where it works"),
    ("worse", "What got worse"),
    ("pairs", "Minimal pairs"),
    ("confidence", "Confidence and routing"),
    ("controls", "Controls"),
    ("compare", "Compare variants"),
    ("provenance", "Provenance"),
    ("reading", "How to read, limits"),
)


def render(summary: Mapping[str, Any], roles: Roles, evidence: Evidence, settings: Mapping[str, Any]) -> str:
    """The report as one HTML page that loads nothing; the same input gives the same bytes.

    `settings` are the report's: resamples, confidence, perplexity_limit and margin are stated on the page.
    """
    drawn = Charts()
    chosen = compare.at_first(summary, roles)
    return page(
        "page.html",
        drawn,
        **_draw(summary, roles, evidence, drawn),
        **views.cells(summary, roles),
        **views.counts(summary),
        contents=_CONTENTS,
        finding=words.finding(summary, roles),
        others=words.others(summary, roles),
        groups=views.groups(summary, roles),
        tasks=views.tasks(summary, roles),
        controlled=views.controlled(summary, roles),
        detectable=views.detectable(summary),
        plan=flows(evidence.plan),
        costs=costs(evidence.cost, roles),
        cost_columns=compare.COSTS,
        showcases=showcases(evidence.showcase),
        regressions=regressions(evidence),
        pairs=counterfactuals(evidence.counterfactual),
        trust=views.trust(evidence.uncertainty),
        compared=compare.lines(summary, roles, evidence),
        provenance=provenance(roles, evidence, settings),
        settings=settings,
        percent=f"{100 * settings['confidence']:g} %",
        choice={"chosen": chosen, "shown": next(iter(compare.ranked(summary, roles)), None), "most": compare.AT_ONCE},
        variants=list(roles.variants),
    )


def pictures(summary: Mapping[str, Any], roles: Roles) -> dict[str, Plot]:
    """The charts that stand as SVG files beside the Markdown summary, by file name."""
    drawn = {
        "capability.svg": charts.phrasings(summary, roles, compare.at_first(summary, roles)),
        "frontier.svg": charts.frontier(summary, roles, compare.at_first(summary, roles)),
    }
    return {name: made for name, made in drawn.items() if made}


def _draw(summary: Mapping[str, Any], roles: Roles, evidence: Evidence, drawn: Charts) -> dict[str, Any]:
    """The page's charts by section."""
    placed = drawn.placed
    by_donor = [(donor, placed(plots)) for donor in roles.donors if (plots := _of_donor(evidence, donor))]
    named = compare.at_first(summary, roles)
    return {
        "phrasings": placed([charts.phrasings(summary, roles, named)]),
        "selections": placed(selection.selection(rows, donor) for donor, rows in evidence.selection.items()),
        "frontier": placed([charts.frontier(summary, roles, named)]),
        "slowdown": placed([slowdown(evidence.cost, roles)]),
        "layers": by_donor,
        "training": placed(charts.training(evidence.curves)),
        "effects": placed([effects(evidence.counterfactual)]),
        "measured": [(heading, placed(plots)) for heading, plots in confidence.plots(evidence.uncertainty)],
        "beside": placed([compare.controls(summary, roles)]),
        "forests": placed(compare.forests(summary, roles)),
    }


def _of_donor(evidence: Evidence, donor: str) -> list[Plot]:
    """Why a donor's graft acts as it does: the causal map first, then change, similarity, sweeps and alignment."""
    traced, plots = evidence.trace.get(donor), []
    if traced is not None:
        plots += causal.maps(traced, donor)
    if donor in evidence.catalog:
        plots += catalog(evidence.catalog[donor], donor)
    if traced is not None:
        plots += layers.trace(traced, donor)
        plots += causal.agreement(traced, evidence.agreement.get(donor) or [], donor)
    if donor in evidence.bridges:
        plots += layers.alignment(evidence.bridges[donor], donor)
    return plots
