"""Who takes part in an experiment: the donors, the variants, and which variant is a control for which."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pydantic
import yaml

from stages.errors import BadInput, nearest
from stages.settings import parse


class Role(pydantic.BaseModel):
    """What the report needs to know of a variant; the rest of its section is its recipe."""

    model_config = pydantic.ConfigDict(frozen=True, extra="allow")

    donor: str | None = None
    donors: Mapping[str, Any] | Sequence[Any] = ()
    """Several, where a recipe takes several."""
    control_for: tuple[str, ...] = ()
    """The variants that this one is a control for; in params.yaml one name, or a list."""
    strategy: str | None = None
    """`auto` where the plan is followed."""
    section: str = ""
    """Of params.yaml, that it stands in."""

    @pydantic.field_validator("control_for", mode="before")
    @classmethod
    def _listed(cls, named: Any) -> Any:
        return () if named is None else (named,) if isinstance(named, str) else named

    @property
    def aims(self) -> tuple[str, ...]:
        """The tasks that it is to gain on: those of the folders of data/prompts that it learns on, if it names any."""
        told = (self.model_extra or {}).get("prompts")
        folders = (told,) if isinstance(told, str) else told if isinstance(told, list) else ()
        return tuple(dict.fromkeys(str(each).split("/")[-1] for each in folders)) or ("capability",)

    @property
    def giver(self) -> str | None:
        """The donor, where there is one and no more."""
        return self.donor or (str(*self.donors) if len(self.donors) == 1 else None)

    @property
    def recipe(self) -> dict[str, Any]:
        """The section's other keys."""
        return dict(self.model_extra or {})


REPORTED = ("inject", "auto", "transplant")
"""The sections whose variants the report judges."""


@dataclass(frozen=True)
class Roles:
    """The models of an experiment beside the target."""

    donors: Mapping[str, Mapping[str, Any]]
    """Name → how it was adopted."""
    variants: Mapping[str, Role]
    """In the order of params.yaml; a control follows the last of the variants that it is for."""

    def controls(self, name: str) -> list[str]:
        """The controls of a variant."""
        return [control for control, role in self.variants.items() if name in role.control_for]

    def aims(self, name: str) -> tuple[str, ...]:
        """The tasks that a variant is to gain on; of a control, those of the variants that it is for."""
        judged = [self.variants[each] for each in self.variants[name].control_for] or [self.variants[name]]
        return tuple(dict.fromkeys(task for role in judged for task in role.aims))


def read_roles(
    params: Path,
    sections: Sequence[str] = REPORTED,
    givers: Sequence[str] = ("adopt",),
    lenders: Sequence[str] = ("specialists",),
) -> Roles:
    """The roles that params.yaml gives in `sections`, with donors under `givers`; a missing section has nobody.

    Models under `lenders` may be donors too, and are not judged themselves.

    Raises BadInput when a variant's donor or the variant that it controls does not exist.
    """
    if not params.is_file():
        raise BadInput(f"Expected a parameter file at {params}, but there is none; run from the repository root.")
    found = yaml.safe_load(params.read_text()) or {}
    fields = {name: (dict[str, Role], {}) for name in sections}
    adopted = {name: (dict[str, dict[str, Any]], {}) for name in {*givers, *lenders}}
    model = pydantic.create_model("Sections", **fields, **adopted)  # type: ignore[call-overload]
    told = parse({k: found[k] for k in model.model_fields if found.get(k) is not None}, str(params), model)
    donors = {name: how for section in givers for name, how in getattr(told, section).items()}
    known = {name for section in adopted for name in getattr(told, section)}
    named: dict[str, Role] = {}
    for section in sections:
        for name, role in getattr(told, section).items():
            if name in named:
                raise BadInput(f"{named[name].section} and {section} both have a variant {name!r}, expected one of "
                               "them; rename the other.")  # fmt: skip
            about = {"section": section} | ({"strategy": "auto"} if section == "auto" else {})
            named[name] = role.model_copy(update=about)
    for name, role in named.items():
        if role.donor not in (None, "target", *known):
            under = " or ".join(dict.fromkeys((*givers, *lenders)))
            raise BadInput(f"{name}: the donor {role.donor!r} is not under {under}; {nearest(str(role.donor), known)}")
        for judged in role.control_for:
            if judged not in named or named[judged].control_for:
                valid = [other for other, its in named.items() if not its.control_for]
                raise BadInput(f"{name}: control_for names {judged!r}, expected a variant that is no control; "
                               f"{nearest(judged, valid)}")  # fmt: skip
    ordered: dict[str, Role] = {}
    for name, role in named.items():
        if not role.control_for:
            ordered[name] = role
            due = {c: its for c, its in named.items() if name in its.control_for}
            ordered |= {c: its for c, its in due.items() if ordered.keys() >= set(its.control_for)}
    return Roles(donors, ordered)


def models(summary: Mapping[str, Any], roles: Roles) -> list[tuple[str, str, Mapping[str, Any]]]:
    """(name, role, entry) of every model: the target, donors, then each variant followed by its controls."""
    rows = [("target", "target", summary["target"])]
    rows += [(name, "donor", summary["donors"][name]) for name in roles.donors]
    for name, role in roles.variants.items():
        rows.append((name, "control" if role.control_for else "variant", summary["variants"][name]))
    return rows
