"""Several blades in one graft: each behind its own gate, as it was trained, or all under one that shares a budget."""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import pydantic
import torch

from stages.anatomy.loading import load, load_tokenizer
from stages.errors import BadInput
from stages.graft.shared import Shared
from stages.reading import reading
from stages.recipes.blade import BladeRecipe, Parts, Training, built, specified
from stages.settings import Settings, parse
from stages.storage import read_json
from stages.trained import read_trained


class TogetherRecipe(Settings):
    """A variant's section under `together`."""

    blades: tuple[str, ...] = pydantic.Field(min_length=2)
    """Folders of data/ with the trained gates that are put together, such as `gates/blade` or `trained/units_blade`."""
    donors: tuple[str, ...]
    """The donor of each."""
    prompts: tuple[str, ...]
    """The folder of data/prompts that each learned on."""
    control_for: str | tuple[str, ...] | None = None
    """The variant, or variants, that this one is a control for: made to fail."""
    gate: Literal["stacked", "shared", "closed"]
    """`stacked`: each blade as it was trained, one after the other. `shared`: at one layer under one gate that starts
    from theirs and learns on the prompts of all. `closed`: the donors are carried and never heard."""
    training: Training | None = None
    """Of a shared gate; `prompts` counts those of each blade."""

    @pydantic.model_validator(mode="after")
    def _fits(self):
        if not len(self.blades) == len(self.donors) == len(self.prompts):
            raise ValueError(
                f"expected a donor and a folder of prompts for each blade, got {len(self.blades)} blades, "
                f"{len(self.donors)} donors and {len(self.prompts)} folders; name one of each"
            )
        if (self.gate == "shared") != (self.training is not None):
            need = "has to learn; add" if self.gate == "shared" else "has nothing to learn; drop"
            raise ValueError(f"a {self.gate} gate {need} the training section")
        return self


def together(
    recipe: TogetherRecipe, target: Path, donors: Sequence[Path], blades: Sequence[Path]
) -> tuple[Parts, list[int]]:
    """The parts of the recipe, on the gates that `train_gates` left in the directories `blades`.

    Second, for each gate which blade it belongs to; a shared one counts as one for each.
    A donor that several blades have is loaded once. Raises BadInput when a blade is not of the donor named beside it,
    was trained between other models, or when blades under one gate do not change the same block in the same way by
    token gates.
    """
    told = [parse(read_json(path / "training.json")["recipe"], path.name, BladeRecipe) for path in blades]
    for name, donor, each in zip(recipe.blades, recipe.donors, told, strict=True):
        if each.donor != donor:
            raise BadInput(f"Expected blade {name!r} to have the donor {donor!r}, got {each.donor!r}; name that one.")
        if each.condition is not None and recipe.donors.count(donor) > 1:
            raise BadInput(
                f"Expected a donor of its own for the conditional blade {name!r}, got {donor!r} for several; drop the "
                "condition or the other blade."
            )
    receiving, tokenizer = load(target), load_tokenizer(target)
    specs: list[dict] = []
    readings = []
    for donor in dict.fromkeys(recipe.donors):
        members = [i for i, name in enumerate(recipe.donors) if name == donor]
        path = donors[members[0]]
        giving, taken = load(path), []
        for i in members:
            made, more = specified(told[i], receiving, giving)
            place = {"donor": len(readings)}
            for spec in made:
                behind = {"taken": len(taken) + spec["taken"]} if "taken" in spec else {}
                specs.append(spec | place | behind | {"blade": i})
            taken += more
        readings.append(reading(giving, load_tokenizer(path), receiving, tokenizer, taken))
    specs.sort(key=lambda spec: spec["blade"])
    owners = [spec.pop("blade") for spec in specs]
    with torch.device(receiving.device):
        made = torch.nn.ModuleList(built(spec) for spec in specs)
    for i, path in enumerate(blades):
        mine = torch.nn.ModuleList(part for part, owner in zip(made, owners, strict=True) if owner == i)
        mine.load_state_dict(read_trained(path / "gate.safetensors", (target, donors[i])))
    gates = [place for place, spec in enumerate(specs) if spec["kind"] == "injection"]
    owners = [owners[place] for place in gates]
    if recipe.gate == "shared":
        spec, shared = _under_one_gate(recipe, [specs[place] for place in gates], [made[place] for place in gates])
        rest = [place for place in range(len(specs)) if place not in gates]
        specs, made = [spec, *(specs[i] for i in rest)], torch.nn.ModuleList([shared, *(made[i] for i in rest)])
    elif recipe.gate == "closed":
        specs = [specs[place] | {"gate": "closed"} for place in gates]
        trained, made = made, torch.nn.ModuleList(built(spec) for spec in specs).to(receiving.device)
        for part, place in zip(made, gates, strict=True):
            part.bridge.load_state_dict(trained[place].bridge.state_dict())
    return Parts(receiving, tokenizer, tuple(readings), made, tuple(specs)), owners


def _under_one_gate(
    recipe: TogetherRecipe, specs: Sequence[dict], single: Sequence[torch.nn.Module]
) -> tuple[dict, Shared]:
    """A shared gate that starts from the token gates of single blades, which it equals where one alone opens."""
    for key, wanted in (("gate", "token"), ("layer", specs[0]["layer"]), ("mix", specs[0]["mix"]), ("alpha", 1.0)):
        got = sorted({str(spec[key]) for spec in specs})
        if got != [str(wanted)]:
            raise BadInput(
                f"Blades under one gate must all have {key} {wanted}, got {', '.join(got)} among "
                f"{', '.join(recipe.blades)}; set gate: stacked, or train them so."
            )
    keys = ("donor", "taken", "bridge", "donor_width")
    spec = {"kind": "shared"} | {key: specs[0][key] for key in ("mix", "alpha", "target_width", "layer")}
    spec["sources"] = [{key: each[key] for key in keys} for each in specs]
    shared = Shared(**{key: value for key, value in spec.items() if key != "kind"})
    shared.to(next(single[0].parameters()).device)
    for place, blade in enumerate(single):
        shared.bridges[place].load_state_dict(blade.bridge.state_dict())
        shared.gate.reads[place].load_state_dict(blade.gate.read.state_dict())
    return spec, shared
