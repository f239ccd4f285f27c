"""`python -m stages.ask "PROMPT" --graft DIR`: target, donor and graft side by side, the gates token by token."""

import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer
from rich.columns import Columns
from rich.console import Console
from rich.table import Table
from rich.text import Text
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from stages.amounts import Amounts, amounts
from stages.anatomy.loading import load, load_tokenizer
from stages.answers import answers
from stages.errors import BadInput
from stages.pages.roles import read_roles
from stages.program import program
from stages.visible import visible

Loaded = tuple[PreTrainedModel, PreTrainedTokenizerBase]
_SHADE = (22, 137, 123)  # of an open gate


@dataclass(frozen=True)
class Told:
    """What became of one prompt."""

    prompt: str
    answers: Mapping[str, str]
    """By model: target, donor where there is one, graft."""
    gates: Amounts
    """On the prompt and the graft's own answer."""


def ask(models: Mapping[str, Loaded], prompt: str, tokens: int) -> Told:
    """The greedy answers of all models to `prompt`, and the gates of the one called graft.

    Raises BadInput for a prompt that a model cannot read.
    """
    if not prompt.strip():
        raise BadInput("Expected a prompt with words, got none; give one.")
    told = {name: answers(*model, [prompt], tokens)[0] for name, model in models.items()}
    return Told(prompt, {name: said.strip() for name, said in told.items()},
                amounts(*models["graft"], prompt + told["graft"]))  # fmt: skip


def plain(told: Told) -> Iterator[str]:
    """Lines of plain text: an answer each, then a token each, with a column for every part that has a gate."""
    yield visible(told.prompt)
    width = max(map(len, told.answers))
    yield from (f"  {name.ljust(width)}  {_words(answer)}" for name, answer in told.answers.items())
    yield said(told.gates)
    if told.gates.parts:
        for token, row in zip(told.gates.tokens, told.gates.open.tolist(), strict=True):
            yield f"  {'  '.join(f'{amount:.2f}' for amount in row)}  {_piece(token)}"


def said(gates: Amounts) -> str:
    """What the columns of gates are, or that there are none."""
    if not gates.parts:
        return "This graft has no gate: it is changed in its weights, or by parts that work at every token."
    return f"Gates, token by token (0 closed, 1 open): {', '.join(gates.parts)}"


def shaded(told: Told) -> Iterator[Text | Table | Columns]:
    """The same for a terminal: answers side by side, and tokens shaded by how far a gate is open, above the figure."""
    table = Table(*told.answers, title=Text(visible(told.prompt)), title_justify="left")
    table.add_row(*(Text(_words(answer)) for answer in told.answers.values()))
    yield table
    yield Text(said(told.gates))
    for part, name in enumerate(told.gates.parts):
        if len(told.gates.parts) > 1:
            yield Text(name, style="bold")
        pairs = zip(told.gates.tokens, told.gates.open[:, part].tolist(), strict=True)
        yield Columns([_cell(token, amount) for token, amount in pairs], padding=(0, 1))


def _words(answer: str) -> str:
    return visible(answer) or "(no words)"


def _piece(token: str) -> str:
    """A token that can be seen: spaces alone as their picture, and · where it spells nothing by itself."""
    return visible(token) if token.strip(" ") else "␠" * len(token) or "·"


def _cell(token: str, amount: float) -> Text:
    """A token on a ground as strong as the gate is open, above the amount."""
    share = min(max(amount, 0.0), 1.0) if amount == amount else 0.0
    red, green, blue = (round(255 + share * (ink - 255)) for ink in _SHADE)
    return Text.assemble((_piece(token), f"black on rgb({red},{green},{blue})"), "\n", (f"{amount:.2f}", "dim"))


def prompts(given: Sequence[str]) -> Iterator[str]:
    """Those given, or else the lines of the standard input, without their ends; on a terminal they are asked for."""
    if given:
        yield from given
        return
    asking = sys.stdin.isatty()
    while True:
        if asking:
            print("prompt> ", end="", file=sys.stderr, flush=True)
        line = sys.stdin.readline()
        if not line:
            return
        if line.strip():
            yield line.rstrip("\r\n")


def donor_of(graft: Path, params: Path) -> Path | None:
    """Where the donor of a graft lies whose directory bears a variant's name; None where params.yaml does not say."""
    role = read_roles(params).variants.get(graft.resolve().name) if params.is_file() else None
    found = graft.parent.parent / "models" / role.giver if role and role.giver else None
    return found if found and found.is_dir() else None


def main(
    prompt: Annotated[list[str] | None, typer.Argument(help="What to ask; without any, lines are read.")] = None,
    graft: Annotated[Path, typer.Option(help="The graft's directory.")] = Path("data/grafts/blade"),
    target: Annotated[Path, typer.Option(help="Its target's.")] = Path("data/models/target"),
    donor: Annotated[Path | None, typer.Option(help="Its donor's; by default the one that params.yaml names.")] = None,
    tokens: Annotated[int, typer.Option(min=1, help="The most tokens of an answer.")] = 24,
    params: Annotated[Path, typer.Option(help="The experiment.")] = Path("params.yaml"),
) -> int:
    """Put prompts to target, donor and graft, and show how far the graft's gates open at every token."""
    places = {"target": target, "donor": donor or donor_of(graft, params), "graft": graft}
    models = {name: (load(path), load_tokenizer(path)) for name, path in places.items() if path}
    console = Console(highlight=False, markup=False, emoji=False)
    failed = 0
    for each in prompts(prompt or []):
        try:
            told = ask(models, each, tokens)
        except BadInput as error:
            print(f"graftline: {error}", file=sys.stderr)
            failed = 2
            continue
        if console.is_terminal:
            console.print(*shaded(told), sep="\n")
        else:
            print(*plain(told), sep="\n", flush=True)
    return failed


if __name__ == "__main__":
    program(main)
