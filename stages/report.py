"""The verdict for people and for machines: a page that stands alone, a Markdown table, and the figures as JSON."""

from pathlib import Path

import pydantic

from stages.command import run
from stages.maths.statistics import Bootstrap
from stages.pages.compare import at_first, lines
from stages.pages.evidence import Places, gather
from stages.pages.markdown import images, markdown, measured
from stages.pages.page import pictures, render
from stages.pages.roles import read_roles
from stages.pages.shell import picture
from stages.pages.summary import summarize
from stages.pages.verdict import Rules
from stages.pages.words import finding
from stages.settings import Settings, read
from stages.storage import new_directory, write_json


class Report(Settings):
    """How intervals are drawn; the rules of the verdict stand under `verdict`."""

    resamples: int = pydantic.Field(default=2000, ge=100)
    """Bootstrap resamples behind each interval."""
    confidence: float = pydantic.Field(default=0.95, gt=0, lt=1)
    """Of the intervals."""
    seed: int = 0
    seeds: dict[str, tuple[str, ...]] = {}
    """For a variant, those that are the same recipe with other seeds: {NAME: [NAME, ...]}."""


def report(settings: Report, rules: Rules, places: Places, params: Path, out: Path) -> str:
    """Writes summary.json, summary.md with its SVG charts, and index.html into `out`, and gives the finding in a
    sentence.

    Who takes part is read from params.yaml's adopt, inject and transplant, so that what a renamed variant left behind
    is not shown. Evidence that is missing is called not measured. Raises BadInput when the target was not evaluated,
    or a file cannot be read.
    """
    roles = read_roles(params)
    evidence = gather(places, roles)
    bootstrap = Bootstrap(settings.resamples, settings.confidence, settings.seed)
    summary = summarize(evidence.items, roles, bootstrap, rules, settings.seeds)
    told = settings.model_dump() | rules.model_dump()
    with new_directory(out) as directory:
        write_json(directory / "summary.json", summary)
        charts = pictures(summary, roles)
        written = (
            markdown(summary, roles),
            images(charts),
            measured(lines(summary, roles, evidence), at_first(summary, roles)),
        )
        (directory / "summary.md").write_text("\n".join(filter(None, written)), encoding="utf-8")
        for name, chart in charts.items():
            (directory / name).write_text(picture(chart), encoding="utf-8")
        (directory / "index.html").write_text(render(summary, roles, evidence, told), encoding="utf-8")
    return finding(summary, roles)


def main(
    evaluation: Path, uncertainty: Path, catalog: Path, trace: Path, bridges: Path, gates: Path, plan: Path,
    models: Path, out: Path, donors: Path = Path("data/donors"),
    selection: Path = Path("data/selection"), regressions: Path = Path("data/regressions"),
    counterfactual: Path = Path("data/counterfactual"), showcase: Path = Path("data/showcase"),
    cost: Path = Path("data/cost"), params: Path = Path("params.yaml"),
) -> None:  # fmt: skip
    """Judge every model that was evaluated, and write the report."""
    places = Places(
        evaluation, uncertainty, catalog, trace, bridges, gates, plan, models, donors, selection, regressions,
        counterfactual, showcase, cost,
    )  # fmt: skip
    print(report(read(params, "report", Report), read(params, "verdict", Rules), places, params, out))


if __name__ == "__main__":
    run(main)
