"""Minimal pairs that every model is put to: generated ones, and the user's own."""

from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import pydantic

from stages.capabilities.names import Name
from stages.command import run
from stages.contrasts.categories import categories
from stages.contrasts.own import own
from stages.contrasts.pair import Pair, drawn
from stages.settings import Settings, read
from stages.storage import write_jsonl


class Compose(Settings):
    """How many generated pairs there are."""

    moving: int = pydantic.Field(gt=0)
    """Pairs of each category whose right continuation changes."""
    still: int = pydantic.Field(gt=0)
    """Pairs of each category that differ in what does not matter."""
    capabilities: tuple[Name, ...] = ("arithmetic",)
    """Whose operands are changed."""
    seed: int = 0


def compose(settings: Compose, path: Path | None = None) -> list[Pair]:
    """The generated pairs by category, those that move first, and the pairs in the JSONL file at `path`.

    Raises BadInput when a category has not as many, and as `own` does.
    """
    kinds = categories(settings.capabilities)
    made = [] if path is None else own(path, {kind.name for kind in kinds})

    def generated() -> Iterator[Pair]:
        for kind in kinds:
            yield from drawn(kind, True, settings.moving, settings.seed)
            yield from drawn(kind, False, settings.still, settings.seed)

    return [*generated(), *made]


def main(own: Path, out: Path, params: Path = Path("params.yaml")) -> None:
    """Write the pairs that params.yaml asks for under `counterfactual.pairs`, and the user's own."""
    made = compose(read(params, "counterfactual.pairs", Compose), own)
    write_jsonl(out, ({"id": pair.id, **asdict(pair)} for pair in made))


if __name__ == "__main__":
    run(main)
