"""What made the page: programs, seeds, files by hash, and how each donor and variant was made."""

import importlib.metadata
import platform
from collections.abc import Mapping
from typing import Any

from stages.pages.evidence import Evidence
from stages.pages.roles import Roles
from stages.pages.words import line

View = dict[str, Any]

_PROGRAMS = ("torch", "transformers", "peft", "lm-eval", "numpy", "scipy", "pandas", "dvc", "altair")


def provenance(roles: Roles, evidence: Evidence, settings: Mapping[str, Any]) -> View:
    """`versions`, `seeds` by what they decide, `sources` of models and `recipes`."""
    return {
        "versions": versions(),
        "seeds": seeds(roles, evidence, settings),
        "sources": sources(evidence),
        "recipes": recipes(roles, evidence),
    }


def versions() -> dict[str, str]:
    """Python and the packages that figures depend on, as installed where the page was made."""
    found = {"Python": platform.python_version()}
    for name in _PROGRAMS:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


def seeds(roles: Roles, evidence: Evidence, settings: Mapping[str, Any]) -> dict[str, str]:
    """Every seed that a recipe or the report states, by where it stands; others have their defaults."""
    whole: dict[str, Mapping[str, Any]] = {"report": settings}
    whole |= {
        name: {**how, **(evidence.trained.get(name, {}).get("recipe") or {})} for name, how in roles.donors.items()
    }
    whole |= {name: {**role.recipe, **evidence.built.get(name, {})} for name, role in roles.variants.items()}
    told = {name: ", ".join(f"{key} {value}" for key, value in _seeds(section)) for name, section in whole.items()}
    return {name: words for name, words in told.items() if words}


def _seeds(section: Mapping[str, Any], above: str = "") -> list[tuple[str, Any]]:
    found = []
    for key, value in section.items():
        if isinstance(value, Mapping):
            found += _seeds(value, f"{above}{key}.")
        elif "seed" in str(key) and value is not None:
            found.append((f"{above}{key}", value))
    return found


def recipes(roles: Roles, evidence: Evidence) -> list[View]:
    """How each donor was trained, unless its weights were drawn anew, and what params.yaml says of each variant.

    Of a variant that follows the plan also the layers and parts that this came to.
    """
    rows = []
    for name, adoption in roles.donors.items():
        learned = {} if adoption.get("null_seed") is not None else evidence.trained.get(name, {}).get("recipe") or {}
        rows.append({"name": name, "donor": None, "recipe": {**adoption, **learned}})
    for name, role in roles.variants.items():
        kept = ("layer", "donor_layer", "gate", "bridge", "mix") if role.strategy else ()
        followed = {key: value for key, value in evidence.built.get(name, {}).items() if key in kept}
        followed |= {"strategy": role.strategy} if role.strategy else {}
        rows.append({"name": name, "donor": role.donor, "recipe": {**followed, **role.recipe}})
    return [row | {"recipe": line(row["recipe"])} for row in rows]


def sources(evidence: Evidence) -> list[View]:
    """Where each model came from, its files by hash, and the hash of the rows that it was judged by."""
    return [
        {"name": name, "source": line(found.get("source", "")), "revision": line(found.get("revision") or "–"),
         "files": sorted((found.get("files") or {}).items()), "rows": evidence.digests.get(name)}
        for name, found in (
            (name, evidence.sources.get(name, {})) for name in dict.fromkeys([*evidence.sources, *evidence.digests])
        )
    ]  # fmt: skip
