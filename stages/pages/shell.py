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

_HERE = Path(__file__).parent


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


def page(template: str, charts: Charts, **given: Any) -> str:
    """The page as HTML that loads nothing, every word of `given` escaped; the same input gives the same bytes."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_HERE),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "number": words.number,
        "span": words.span,
        "chance": words.chance,
        "breakable": words.breakable,
    }
    bundle = vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;")
    specs = json.dumps(charts.specs, sort_keys=True, ensure_ascii=False, allow_nan=False)
    return environment.get_template(template).render(
        **given,
        css=Markup((_HERE / "shell.css").read_text(encoding="utf-8")),
        js=Markup((_HERE / "shell.js").read_text(encoding="utf-8")),
        bundle=Markup(bundle.replace("</script", "<\\/script").replace("<!--", "<\\!--")),
        specs=Markup(specs.replace("<", "\\u003c")),
    )
