"""The page: figures, charts and evidence laid out, every word of theirs escaped."""

from collections.abc import Mapping
from typing import Any

from stages.pages import causal, charts, layers, selection, views, words
from stages.pages.catalog import catalog
from stages.pages.evidence import Evidence
from stages.pages.flow import flows
from stages.pages.roles import Roles
from stages.pages.shell import Charts, page

_CONTENTS = (
    ("verdict", "Verdict"),
    ("capability", "Where it works"),
    ("cost", "What it costs"),
    ("layers", "Layer by layer"),
    ("plan", "Choice of method"),
    ("confidence", "Confidence"),
    ("provenance", "Provenance"),
    ("reading", "How to read, limits"),
)


def render(summary: Mapping[str, Any], roles: Roles, evidence: Evidence, settings: Mapping[str, Any]) -> str:
    """The report as one HTML page that loads nothing; the same input gives the same bytes.

    `settings` are the report's: resamples, confidence, perplexity_limit and margin are stated on the page.
    """
    charts = Charts()
    drawn = _draw(summary, roles, evidence, charts)
    return page(
        "page.html",
        charts,
        **drawn,
        **views.cells(summary, roles),
        **views.counts(summary),
        contents=_CONTENTS,
        finding=words.finding(summary, roles),
        others=words.others(summary, roles),
        groups=views.groups(summary, roles),
        plan=flows(evidence.plan),
        uncertainty=evidence.uncertainty,
        sources=views.sources(roles, evidence),
        recipes=views.recipes(roles, evidence),
        settings=settings,
        percent=f"{100 * settings['confidence']:g} %",
    )


def _draw(summary: Mapping[str, Any], roles: Roles, evidence: Evidence, drawn: Charts) -> dict[str, Any]:
    """The page's charts by section."""
    placed = drawn.placed
    by_donor = []
    for donor in roles.donors:
        plots = causal.maps(evidence.trace[donor], donor) if donor in evidence.trace else []
        plots += catalog(evidence.catalog[donor], donor) if donor in evidence.catalog else []
        plots += layers.trace(evidence.trace[donor], donor) if donor in evidence.trace else []
        plots += (
            causal.agreement(evidence.trace[donor], evidence.agreement.get(donor) or [], donor)
            if donor in evidence.trace
            else []
        )
        plots += layers.alignment(evidence.bridges[donor], donor) if donor in evidence.bridges else []
        if plots:
            by_donor.append((donor, placed(plots)))
    tried = {name: tasks for name, tasks in evidence.uncertainty.items() if not roles.variants[name].control_for}
    of_tasks = [
        (task, draw) for task in ("capability", "retention") for draw in (charts.reliability, charts.risk_coverage)
    ]
    return {
        "phrasings": placed([charts.phrasings(summary, roles)]),
        "selections": placed(selection.selection(rows, donor) for donor, rows in evidence.selection.items()),
        "frontier": placed([charts.frontier(summary, roles)]),
        "layers": by_donor,
        "training": placed(charts.training(evidence.curves)),
        "reliability": placed(draw(tried, task) for task, draw in of_tasks),
    }
