"""A graft's model card: metadata that the Hugging Face hub reads, and the same figures for people."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from huggingface_hub import EvalResult, ModelCardData

from stages.pages.roles import Roles
from stages.pages.words import figure, inert, line, listing

FIGURES = {
    "capability": "accuracy on the capability",
    "capability_unseen": "the same in phrasings that training never showed",
    "gain": "gain over the target",
    "recovery": "recovery of the donor's lead",
    "over_control": "lead over its control",
    "retention": "accuracy on other questions",
    "retention_change": "its change from the target",
    "perplexity_ratio": "perplexity on text, as a ratio to the target's",
    "kl_to_target": "KL from the target on text, nats a token",
}
"""What a card says of a variant, in this order; `measures` defines the figures."""
_TASKS = {"capability": "capability", "retention": "retention", "perplexity": "text", "kl": "text"}
_ACCURACIES = ("capability", "capability_unseen", "retention")


@dataclass(frozen=True)
class Known:
    """What an experiment's owner says of the models, since no file does."""

    license: str | None = None
    base_models: Sequence[str] = ()
    datasets: Sequence[str] = ()
    language: Sequence[str] = ()
    capability: str = "capability"
    limits: Sequence[str] = ()
    tags: Sequence[str] = field(default=("graftline", "model-graft"))


def card(name: str, summary: Mapping[str, Any], roles: Roles, known: Known, cost: Mapping[str, Any] | None) -> str:
    """The card of variant `name` as Markdown under YAML, every figure of it as `summary` has it.

    What was not measured is called that. Names and reasons stand escaped, since they may come from anywhere.
    """
    entry, role = summary["variants"][name], roles.variants[name]
    parts = [
        f"---\n{metadata(name, entry, known)}\n---",
        f"# {inert(name)}",
        _opening(name, entry, roles, known),
        f"## Results\n\n{_results(name, summary, roles)}",
        f"## Controls\n\n{_controls(name, summary, roles)}",
        f"## Cost\n\n{_cost(cost)}",
        f"## Limits\n\n{_limits(entry, known)}",
        f"## Use\n\n{_use(role.section)}",
    ]
    if role.recipe:
        parts.append(f"## Recipe\n\n{inert(line(role.recipe))}")
    parts.append("`reproduce/`, where there is one, holds the parameters, the lock, the versions and the hashes.")
    return "\n\n".join(parts) + "\n"


def metadata(name: str, entry: Mapping[str, Any], known: Known) -> str:
    """The YAML above a card: license, base models, data sets, tags, and evaluation results as a model index."""
    results = [
        EvalResult(
            task_type="text-generation",
            dataset_type=f"graftline/{_task(key)}",
            dataset_name=known.capability if _task(key) == "capability" else _task(key),
            dataset_split="test",
            metric_type="accuracy" if key in _ACCURACIES else key,
            metric_name=words,
            metric_value=entry[key]["value"],
        )
        for key, words in FIGURES.items()
        if entry.get(key)
    ]
    for task, found in sorted((entry.get("tasks") or {}).items()):
        if isinstance(found.get("accuracy"), Mapping):
            results.append(
                EvalResult(
                    task_type="text-generation",
                    dataset_type=task,
                    dataset_name=task,
                    dataset_split="test",
                    metric_type="accuracy",
                    metric_name="accuracy",
                    metric_value=found["accuracy"]["value"],
                )
            )
    data = ModelCardData(
        license=known.license,
        base_model=list(known.base_models) or None,
        datasets=list(known.datasets) or None,
        language=list(known.language) or None,
        library_name="transformers",
        pipeline_tag="text-generation",
        tags=[*known.tags],
        model_name=name if results else None,
        eval_results=results or None,
        ignore_metadata_errors=False,
    )
    return data.to_yaml()


def _task(key: str) -> str:
    """The task that a figure is taken on."""
    return next((task for start, task in _TASKS.items() if key.startswith(start)), "capability")


def _opening(name: str, entry: Mapping[str, Any], roles: Roles, known: Known) -> str:
    role = roles.variants[name]
    base = listing([inert(each) for each in known.base_models]) or "a target model"
    giver = f", with parts of the donor {inert(role.giver)} " if role.giver else " "
    control = (
        f" It is a control for {listing([inert(each) for each in role.control_for])}, made to fail."
        if role.control_for
        else ""
    )
    reasons = "; ".join(entry.get("reasons") or [])
    why = f": {inert(reasons)}" if reasons else ""
    return (
        f"A graft of {base}{giver}made to bring over {inert(known.capability)}.{control} "
        f"Verdict: **{inert(entry.get('verdict', 'not measured'))}**{why}."
    )


def _results(name: str, summary: Mapping[str, Any], roles: Roles) -> str:
    """A line a figure: of the target, of the donor where there is one, and of the graft, with intervals and n."""
    giver = roles.variants[name].giver
    entries = {"target": summary["target"], name: summary["variants"][name]}
    if giver in summary["donors"]:
        entries = {"target": summary["target"], str(giver): summary["donors"][giver], **entries}
    lines = [f"| figure | {' | '.join(map(inert, entries))} | n |", "|---" * (len(entries) + 2) + "|"]
    graft = summary["variants"][name]
    for key, words in FIGURES.items():
        cells = [figure(entry, key) for entry in entries.values()]
        lines.append(f"| {words} | {' | '.join(cells)} | {graft[key]['n'] if graft.get(key) else '–'} |")
    reasons = [f"{FIGURES[key]}: {inert(why)}" for key, why in graft.get("undefined", {}).items() if key in FIGURES]
    told = f"\n\nWithout a figure: {'; '.join(reasons)}." if reasons else ""
    return "\n".join(lines) + "\n\nIn brackets: bootstrap intervals, paired by item." + told


def _controls(name: str, summary: Mapping[str, Any], roles: Roles) -> str:
    told = [f"- {inert(control)}: gain {figure(summary['variants'][control], 'gain')}, "
            f"{inert(summary['variants'][control].get('verdict', 'not measured'))}"
            for control in roles.controls(name)]  # fmt: skip
    return "\n".join(told) or "None of its own, so a gain may have other reasons than the donor."


def _cost(cost: Mapping[str, Any] | None) -> str:
    if not cost:
        return "Not measured."
    return (
        f"{cost['parameters']:,} parameters, {cost['added_parameters']:,} more than the target; "
        f"{cost['bytes']:,} bytes of weights; {cost['flops_per_token']:,} operations a token "
        f"(target {cost['target_flops_per_token']:,}); {cost['ms_per_token']} ms a token where it was measured "
        f"(target {cost['target_ms_per_token']}); {cost['peak_bytes']:,} bytes of tensors at most."
    )


def _limits(entry: Mapping[str, Any], known: Known) -> str:
    told = [inert(limit) for limit in known.limits]
    told.append("Judged on the items above and on no others; what the target gets wrong elsewhere, it gets wrong too.")
    if not entry.get("capability_unseen"):
        told.append("Not measured in phrasings that training never showed.")
    missing = [words for key, words in FIGURES.items() if not entry.get(key)]
    if missing:
        told.append(f"Not measured or not defined: {', '.join(missing)}.")
    return "\n".join(f"- {each}" for each in told)


def _use(section: str) -> str:
    """How to load it: grafts of weights alone need no code of ours."""
    trust = "" if section == "transplant" else ", trust_remote_code=True"
    note = (
        "" if section == "transplant" else "\n\nThe code in the directory is Graftline's; read it before you trust it."
    )
    return (
        "```python\nfrom transformers import AutoModelForCausalLM, AutoTokenizer\n\n"
        'path = "."  # this directory\n'
        f"graft = AutoModelForCausalLM.from_pretrained(path{trust})\n"
        f"tokenizer = AutoTokenizer.from_pretrained(path{trust})\n```{note}"
    )
