"""A variant with `strategy: auto` as the section that builds it: the plan's recipe, and what is held fixed."""

from pathlib import Path
from typing import Any, Literal

import pydantic
import yaml

from stages.command import run
from stages.errors import BadInput, nearest
from stages.recipes.blade import BladeRecipe
from stages.settings import Settings, parse, read
from stages.storage import new_file, read_json


class Auto(Settings):
    """A variant's section under `auto`; other keys are those of a blade and held fixed whatever the plan says."""

    model_config = pydantic.ConfigDict(extra="allow")

    donor: str
    """The donor whose plan is followed."""
    strategy: Literal["auto"] = "auto"

    @property
    def fixed(self) -> dict[str, Any]:
        """The keys that the plan does not decide."""
        return dict(self.model_extra or {})


def choose(variant: str, auto: Auto, plans: dict[str, Any]) -> BladeRecipe:
    """The recipe of the plan for the variant's donor, with its fixed keys; those under `training` one by one.

    A gate and bridge that learn nothing drop the plan's training. Raises BadInput when the donor has no plan, when
    nothing can be built for it, or when a fixed key is not a blade's.
    """
    if auto.donor not in plans:
        raise BadInput(
            f"auto.{variant}: expected a donor that was aligned, got {auto.donor!r}; name it under evidence.aligned, "
            f"or {nearest(auto.donor, plans)}"
        )
    planned = plans[auto.donor]["recommendation"]["recipe"]
    if planned is None:
        raise BadInput(
            f"auto.{variant}: expected a plan for {auto.donor!r} with something to build, got none; align or trace it."
        )
    merged = planned | auto.fixed
    if merged["gate"] in ("identity", "closed") and merged["bridge"] == "identity" and "training" not in auto.fixed:
        del merged["training"]
    elif isinstance(auto.fixed.get("training"), dict):
        merged["training"] = planned["training"] | auto.fixed["training"]
    return parse(merged, f"auto.{variant}", BladeRecipe)


def main(variant: str, plan: Path, out: Path, params: Path = Path("params.yaml")) -> None:
    """Write the section of an auto variant as a parameter file of its own, which changes only where its recipe does."""
    recipe = choose(variant, read(params, f"auto.{variant}", Auto), read_json(plan)["donors"])
    with new_file(out) as scratch:
        scratch.write_text(yaml.safe_dump({"inject": {variant: recipe.model_dump(exclude_none=True)}}))
    print(f"{variant}: a {recipe.gate} gate over a {recipe.bridge} bridge at layer {recipe.layer}")


if __name__ == "__main__":
    run(main)
