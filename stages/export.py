"""`python -m stages.export VARIANT --out DIR`: a graft with its card, and what it takes to make and check it again."""

import platform
import shlex
import shutil
import subprocess
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path, PurePosixPath
from typing import Annotated, Any

import typer
import yaml

from stages.anatomy.loading import check
from stages.errors import BadInput, nearest
from stages.program import program
from stages.storage import new_directory, read_json, write_json
from stages.sums import SUMS, hashed, sums

PACKAGES = (
    "torch", "transformers", "tokenizers", "safetensors", "numpy", "scipy", "pandas", "pyarrow", "peft", "lm-eval",
    "dvc",
)  # fmt: skip
"""Whose versions decide about the bytes."""


@dataclass(frozen=True)
class Sources:
    """Where the pieces of an export lie."""

    grafts: Path = Path("data/grafts")
    cards: Path = Path("data/cards")
    summary: Path = Path("data/report/summary.json")
    params: Path = Path("params.yaml")
    lock: Path = Path("dvc.lock")


def export(variant: str, sources: Sources, out: Path) -> None:
    """Writes the directory `out`: the graft, its card as README.md, and reproduce/, which `stages.verify` checks.

    reproduce/ holds params.yaml, what dvc.lock says of the variant and of all upstream of it, versions.json,
    figures.json (what the summary has of target, donor, variant and controls), command.sh and SHA256SUMS over every
    other file. Raises BadInput when a piece is missing or `out` holds anything.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise BadInput(f"Expected nothing or an empty directory at {out}, got files; name another or remove them.")
    graft, card = sources.grafts / variant, sources.cards / f"{variant}.md"
    figures = figures_of(variant, read_json(sources.summary))
    check(graft)
    for path in (card, sources.params, sources.lock):
        if not path.is_file():
            raise BadInput(f"Expected {path}, but it is not there; run `dvc repro cards` to make it.")
    lock = yaml.safe_load(sources.lock.read_text())
    with new_directory(out) as directory:
        for path in sorted(path for path in graft.rglob("*") if path.is_file() and "__pycache__" not in path.parts):
            place = directory / path.relative_to(graft)
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, place)
        shutil.copyfile(card, directory / "README.md")
        notes = directory / "reproduce"
        notes.mkdir(exist_ok=True)
        shutil.copyfile(sources.params, notes / "params.yaml")
        part = {"schema": lock.get("schema", "2.0"), "stages": lineage(lock.get("stages") or {}, variant)}
        (notes / "dvc.lock").write_text(yaml.safe_dump(part, sort_keys=True), encoding="utf-8")
        told = versions(sources.params.resolve().parent)
        write_json(notes / "versions.json", told)
        write_json(notes / "figures.json", figures)
        (notes / "command.sh").write_text(command(variant, part["stages"], told["graftline"]), encoding="utf-8")
        (directory / SUMS).write_text(sums(directory), encoding="utf-8")


def figures_of(variant: str, summary: Mapping[str, Any]) -> dict[str, Any]:
    """What the summary has of a variant, its target, its donor and its controls."""
    variants = summary["variants"]
    if variant not in variants:
        raise BadInput(f"Expected a variant of the report, got {variant!r}; {nearest(variant, variants)}")
    giver = variants[variant].get("donor")
    return {
        "variant": variant,
        "target": summary["target"],
        "donors": {name: entry for name, entry in summary["donors"].items() if name == giver},
        "variants": {
            name: entry
            for name, entry in variants.items()
            if name == variant or variant in (entry.get("control_for") or ())
        },
    }


def lineage(stages: Mapping[str, Any], variant: str) -> dict[str, Any]:
    """Of dvc.lock's stages those that made `variant`, or judged it for the report or its card, and all upstream of
    them; report and cards themselves come without their other upstreams."""
    told = [name for name in ("report", "cards") if name in stages]
    own = [name for name in upstream(stages, told) if name.partition("@")[2] == variant]
    kept = {*upstream(stages, own), *told}
    return {name: stage for name, stage in stages.items() if name in kept}


def upstream(stages: Mapping[str, Any], names: Iterable[str]) -> set[str]:
    """These stages and all that they wait for: whose outputs are a dep, hold one or lie in one."""
    outs = {out["path"]: name for name, stage in stages.items() for out in stage.get("outs") or []}
    found: set[str] = set()
    waiting = list(names)
    while waiting:
        name = waiting.pop()
        if name not in found:
            found.add(name)
            deps = [PurePosixPath(dep["path"]) for dep in stages[name].get("deps") or []]
            waiting += [outs[str(up)] for dep in deps for up in (dep, *dep.parents) if str(up) in outs]
            waiting += [maker for out, maker in outs.items() for dep in deps if dep in PurePosixPath(out).parents]
    return found


def versions(root: Path) -> dict[str, Any]:
    """Of Python, of the packages that decide about bytes, and of Graftline: its commit, and whether files differ."""
    packages = {}
    for name in PACKAGES:
        try:
            packages[name] = version(name)
        except PackageNotFoundError:
            packages[name] = None
    commit, changes = (_git(root, *words) for words in (("rev-parse", "HEAD"), ("status", "--porcelain")))
    graftline = {"commit": commit or None, "changed": None if changes is None else bool(changes)}
    return {"python": platform.python_version(), "packages": packages, "graftline": graftline}


def _git(root: Path, *words: str) -> str | None:
    """What git says; None where it is not a repository, or there is no git."""
    try:
        done = subprocess.run(["git", "-C", str(root), *words], capture_output=True, text=True)
    except FileNotFoundError:
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def command(variant: str, stages: Iterable[str], graftline: Mapping[str, Any]) -> str:
    """The shell commands, to be typed in a clone of Graftline's repository, that make the export again."""
    wanted = sorted(name for name in stages if name.partition("@")[2] == variant)
    at = f"git checkout {graftline['commit']}" if graftline["commit"] else "# At which commit, is not known."
    changed = "# Some files differed from that commit when this was made.\n" if graftline["changed"] else ""
    return (
        "# In a clone of Graftline's repository; EXPORT is the directory that holds reproduce/.\n"
        f"{changed}{at}\n"
        'cp "$EXPORT/reproduce/params.yaml" params.yaml\n'
        f"dvc repro {' '.join(shlex.quote(name) for name in [*wanted, 'cards'])}\n"
        f"python -m stages.export {shlex.quote(variant)} --out anew\n"
        'python -m stages.verify "$EXPORT" --against anew\n'
    )


def main(
    variant: Annotated[str, typer.Argument(help="The name of a variant that the report judges.")],
    out: Annotated[Path, typer.Option(help="A new directory.")],
    data: Annotated[Path, typer.Option(help="Where the stages write.")] = Path("data"),
    params: Annotated[Path, typer.Option(help="The experiment.")] = Path("params.yaml"),
    lock: Annotated[Path, typer.Option(help="What DVC says it ran.")] = Path("dvc.lock"),
) -> None:
    """Write a graft that can be given away: with its card, and reproduce/ to make and check it again."""
    sources = Sources(data / "grafts", data / "cards", data / "report" / "summary.json", params, lock)
    export(variant, sources, out)
    print(f"{out}: SHA-256 of {SUMS} {hashed(out / SUMS)}")


if __name__ == "__main__":
    program(main)
