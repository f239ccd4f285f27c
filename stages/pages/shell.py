"""What every page stands in: its template's language, its style and scripts, and the charts that the scripts draw."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import jinja2
import vl_convert
from markupsafe import Markup

from stages.pages import words
from stages.pages.plots import Plot
from stages.pages.texts import tame

_HERE = Path(__file__).parent
_NO_CHOICE: Mapping[str, Any] = {"chosen": [], "shown": None, "most": 0}


_PICTURE = 680  # pixels wide
_PAPER = {
    "view": {"stroke": None},
    "axis": {"gridColor": "#e6e8e5", "domain": False, "tickColor": "#e6e8e5", "labelFontSize": 11, "titleFontSize": 12,
             "titleFontWeight": 400, "labelColor": "#4a5560", "titleColor": "#4a5560"},
    "axisY": {"ticks": False},
    "legend": {"orient": "top", "direction": "horizontal", "labelFontSize": 12, "symbolOpacity": 1},
    "rule": {"color": "#5b6672"},
}  # fmt: skip


class Charts:
    """The charts of a page, each under an identifier of its own."""

    def __init__(self):
        self.specs: dict[str, Mapping[str, Any]] = {}

    def placed(self, plots: Iterable[Plot | None]) -> list[dict[str, Any]]:
        """`plots` that there are, each with the id under which the page's script finds it."""
        kept = []
        for plot in filter(None, plots):
            kept.append({"id": f"chart-{len(self.specs)}", "plot": plot})
            self.specs[kept[-1]["id"]] = plot.spec
        return kept


def page(template: str, charts: Charts, choice: Mapping[str, Any] = _NO_CHOICE, **given: Any) -> str:
    """The page as HTML that loads nothing, every word of `given` escaped; the same input gives the same bytes.

    `choice` says which variants the page shows before the reader chooses: `chosen` to compare, `shown` elsewhere.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_HERE),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        finalize=lambda value: tame(value) if isinstance(value, str) and not isinstance(value, Markup) else value,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "number": words.number,
        "span": words.span,
        "chance": words.chance,
        "breakable": words.breakable,
        "amount": words.amount,
        "told": words.told,
    }
    bundle = vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;")
    return environment.get_template(template).render(
        **given,
        css=Markup((_HERE / "shell.css").read_text(encoding="utf-8")),
        js=Markup((_HERE / "shell.js").read_text(encoding="utf-8")),
        bundle=Markup(bundle.replace("</script", "<\\/script").replace("<!--", "<\\!--")),
        specs=_json(charts.specs),
        choice=choice,
        choices=_json(choice),
    )


def _json(value: Any) -> Markup:
    """JSON that cannot end the script element that it stands in."""
    found = json.dumps(value, sort_keys=True, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return Markup(tame(found).replace("<", "\\u003c"))


def picture(plot: Plot) -> str:
    """The chart as an SVG file, on white paper."""
    spec = {**plot.spec, "width": _PICTURE, "background": "white", "padding": 12}
    return tame(vl_convert.vegalite_to_svg(spec, config=_PAPER))
