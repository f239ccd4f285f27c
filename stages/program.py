"""A command that a person types: its arguments by position, bad input as one sentence and exit code 2."""

import functools
import sys
from collections.abc import Callable
from typing import Any

import typer

from stages.errors import BadInput


def program(main: Callable[..., Any]) -> None:
    """Run `main` with what was typed, as the Typer annotations of its parameters say; ends the process with the exit
    status that it gives, 0 for None."""

    @functools.wraps(main)
    def ended(*given: Any, **named: Any) -> None:
        raise typer.Exit(main(*given, **named) or 0)

    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command()(ended)
    try:
        app()
    except BadInput as error:
        print(f"graftline: {error}", file=sys.stderr)
        sys.exit(2)
