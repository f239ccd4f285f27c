"""A model card for every variant, from the figures of the report."""

from pathlib import Path

from stages.command import run
from stages.errors import BadInput
from stages.pages.card import Known, card
from stages.pages.roles import read_roles
from stages.settings import Settings, read
from stages.storage import new_directory, read_json


class Cards(Settings):
    """What no file says of the models."""

    license: str | None = None
    """Of the target, as the Hugging Face hub names licenses; None where it is not known."""
    base_models: tuple[str, ...] = ()
    """The target and whatever the donors were made from, by their names on the hub."""
    datasets: tuple[str, ...] = ()
    """On the hub, that donors or gates were trained on."""
    language: tuple[str, ...] = ()
    """Codes of ISO 639-1."""
    capability: str = "capability"
    """What is transferred, in a few words."""
    limits: tuple[str, ...] = ()
    """Sentences that every card has."""


def main(summary: Path, cost: Path, out: Path, params: Path = Path("params.yaml")) -> None:
    """Write `out`/VARIANT.md for every variant of the summary; what `cost` does not hold is called not measured."""
    settings, roles, found = read(params, "cards", Cards), read_roles(params), read_json(summary)
    missing = sorted(set(roles.variants) - set(found["variants"]))
    if missing:
        raise BadInput(f"Expected figures of {', '.join(missing)} in {summary}, got none; run `dvc repro report`.")
    known = Known(**settings.model_dump())
    with new_directory(out) as directory:
        for name in roles.variants:
            costs = cost / f"{name}.json"
            told = card(name, found, roles, known, read_json(costs) if costs.is_file() else None)
            (directory / f"{name}.md").write_text(told, encoding="utf-8")
    print(f"{len(roles.variants)} cards")


if __name__ == "__main__":
    run(main)
