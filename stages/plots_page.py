"""The page that DVC's plots stand in, with the scripts that draw them inside, so that it opens offline."""

from pathlib import Path

import vl_convert

from stages.command import run
from stages.storage import new_file

_VEGA_LITE = "5.21"  # DVC's templates are written for Vega-Lite 5
_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; script-src 'unsafe-inline' 'unsafe-eval'; \
style-src 'unsafe-inline'; img-src 'self' data:">
{refresh_tag}
<title>Graftline's plots</title>
<style>
body { font-family: system-ui, sans-serif; margin: 1.5rem; color: #1c2127; background: #fff; }
table { border-spacing: 1rem; }
</style>
<script>SCRIPTS</script>
</head>
<body>
{plot_divs}
</body>
</html>
"""
"""DVC fills in what stands in braces; its own scripts, which a network would have to bring, have no place."""


def page() -> str:
    """The page, with Vega, Vega-Lite and Vega-Embed as vl-convert bundles them."""
    bundle = vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;", vl_version=_VEGA_LITE)
    return _PAGE.replace("SCRIPTS", bundle.replace("</script", "<\\/script").replace("<!--", "<\\!--"))


def main(out: Path) -> None:
    """Write the page; `dvc config plots.html_template` names it."""
    with new_file(out) as scratch:
        scratch.write_text(page(), encoding="utf-8")


if __name__ == "__main__":
    run(main)
