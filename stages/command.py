"""A stage's command line: options from the signature of its main, bad input as one sentence and exit code 2."""

import functools
import inspect
import sys
from collections.abc import Callable
from typing import Any

import typer

from stages.errors import BadInput


def run(main: Callable[..., Any]) -> None:
    """Run `main` with its parameters as named options: those without a default are required."""
    signature = inspect.signature(main)

    @functools.wraps(main)
    def named(**options: Any) -> None:
        main(**options)

    named.__signature__ = signature.replace(  # type: ignore[attr-defined]
        parameters=[
            p.replace(kind=p.KEYWORD_ONLY, default=typer.Option(... if p.default is p.empty else p.default))
            for p in signature.parameters.values()
        ]
    )
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command()(named)
    try:
        app()
    except BadInput as error:
        print(f"graftline: {error}", file=sys.stderr)
        sys.exit(2)
