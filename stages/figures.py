"""The catalog's figures: of captured states, of what each model does inside, and of a donor's modules by themselves."""

from collections.abc import Mapping

from torch import Tensor, linspace
from transformers import PreTrainedModel

from stages.activations import Activations
from stages.anatomy.local import compare_on_shared_inputs
from stages.catalog import Rows, part_of
from stages.maths.attention import attention_entropy, head_similarity
from stages.maths.change import consistency, norm_ratio, own_share, relative_change
from stages.maths.cka import cka_of, debiased_cka, scaled
from stages.maths.neurons import active_share, gini, top_overlap
from stages.maths.rank import effective_rank
from stages.pairs import Pairing, block_sites
from stages.workings import Sample, Workings

FEWEST = 4
"""Rows below which no figure is given."""


def add_captured(
    rows: Rows,
    on: str,
    files: tuple[Activations, Activations],
    pairing: Pairing,
    chosen: Tensor,
    alike: bool,
    most: int,
) -> None:
    """Figures of the captured states at the `chosen` pairs of rows, ranks on at most `most` of them."""
    target, donor = files
    ours, theirs, prompt = (each[chosen] for each in (pairing.target, pairing.donor, pairing.prompt))
    count = {"rows": len(ours)}
    spaced = linspace(0, len(ours) - 1, min(most, len(ours))).round().long()

    def rank(states: Tensor) -> float:
        return effective_rank(states - states.mean(0))

    if len(ours) < FEWEST:
        for site in target.sites:
            rows.add(site, site if alike else None, on, count)
    elif alike:
        for site in target.sites:
            states, others = target.mapped(site)[ours].float(), donor.mapped(site)[theirs].float()
            few, few_others = states[spaced], others[spaced]
            figures = {
                "change": relative_change(states, others),
                "consistency": consistency(states, others, prompt),
                "cka": debiased_cka(states, others),
                "norm_ratio": norm_ratio(states, others),
                "rank": rank(few),
                "donor_rank": rank(few_others),
                "change_rank": effective_rank(few_others - few),
            }
            rows.add(site, site, on, count | figures)
    else:
        ready = {site: scaled(donor.mapped(site)[theirs].float()) for site in block_sites(donor)}
        for site in block_sites(target):
            states = scaled(target.mapped(site)[ours].float())
            for donor_site, others in ready.items():
                rows.add(site, donor_site, on, count | {"cka": cka_of(states, others)})
        for site in target.sites:
            rows.add(site, None, on, count | {"rank": rank(target.mapped(site)[ours[spaced]].float())})
        for site in donor.sites:
            rows.add(None, site, on, count | {"donor_rank": rank(donor.mapped(site)[theirs[spaced]].float())})


def add_own(rows: Rows, on: str, given: list[Sample], found: list[Workings], alike: bool) -> None:
    """What each model does inside, on its own tokens."""
    for side, (prefix, each, did) in enumerate(zip(("", "donor_"), given, found, strict=True)):

        def add(site: str, figures: Mapping[str, float], side: int = side, prefix: str = prefix) -> None:
            named = {f"{prefix}{name}": value for name, value in figures.items() if not name.endswith("_rows")}
            counts = {name: value for name, value in figures.items() if name.endswith("_rows")}
            rows.add(site if alike or not side else None, site if alike or side else None, on, named | counts)

        count = {"run_rows": len(each.row)}
        for layer, pattern in did.patterns.items():
            entropy = attention_entropy(pattern)
            add(f"layers.{layer}.self_attn", count | {"entropy": entropy.mean().item()})
            for head, value in enumerate(entropy.tolist()):
                add(f"layers.{layer}.self_attn.heads.{head}", count | {"entropy": value})
        for layer, neurons in did.neurons.items():
            figures = {"active": active_share(neurons), "gini": gini(neurons)}
            add(f"layers.{layer}.mlp", count | figures)
        for layer, agreement in did.agreement.items():
            figures = {"lens_agreement": agreement, "lens_divergence": did.divergence[layer]}
            add(f"layers.{layer}", count | {"lens_rows": int(each.lens.sum())} | figures)


def add_between(rows: Rows, on: str, found: list[Workings]) -> None:
    """How alike heads and neurons are, for models whose tokens and channels correspond."""
    ours, theirs = found
    for layer, pattern in ours.patterns.items():
        other = theirs.patterns.get(layer)
        if other is not None and other.shape == pattern.shape:
            similarity = head_similarity(pattern, other)
            site = f"layers.{layer}.self_attn"
            rows.add(site, site, on, {"head_similarity": similarity.mean().item()})
            for head, value in enumerate(similarity.tolist()):
                rows.add(f"{site}.heads.{head}", f"{site}.heads.{head}", on, {"head_similarity": value})
    for layer, neurons in ours.neurons.items():
        other = theirs.neurons.get(layer)
        if other is not None and other.shape == neurons.shape:
            site = f"layers.{layer}.mlp"
            rows.add(site, site, on, {"neuron_overlap": top_overlap(neurons, other)})


def add_local(
    rows: Rows,
    on: str,
    models: tuple[PreTrainedModel, PreTrainedModel],
    given: Sample,
    prompt: Tensor,
    found: list[Workings],
) -> None:
    """What the donor's modules change by themselves, on the target's own inputs."""
    changes: dict[str, float] = {}

    def see(site: str, ours: Tensor, theirs: Tensor) -> None:
        target, donor = (each[given.row, given.column].float().cpu() for each in (ours, theirs))
        changes[site] = relative_change(target, donor)
        figures = {"run_rows": len(target), "local_change": changes[site]}
        figures["local_consistency"] = consistency(target, donor, prompt)
        if site in found[0].states:
            figures["own_share"] = own_share(found[1].states[site] - found[0].states[site], donor - target)
        rows.add(site, site, on, figures)

    compare_on_shared_inputs(*models, given.ids, see)
    for kind in {part_of(site) for site in changes}:
        sites = [site for site in changes if part_of(site) == kind]
        total = sum(changes[site] for site in sites)
        for site in sites:
            rows.add(site, site, on, {"locality": changes[site] / total if total else float("nan")})
