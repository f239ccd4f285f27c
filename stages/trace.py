"""What each part of a donor causes, on the capability and on what must not be lost: exactly, and estimated."""

import random
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet
import pydantic
import torch
from transformers import PreTrainedModel

from stages.anatomy.attribution import attribute
from stages.anatomy.blocks import blocks
from stages.anatomy.contrast import Contrast, contrast, partners
from stages.anatomy.effects import Effects
from stages.anatomy.encoding import answers_of, encode, texts_of
from stages.anatomy.interventions import Kind, intervened
from stages.anatomy.loading import load, load_tokenizer
from stages.anatomy.local import fits
from stages.anatomy.modules import linear_paths
from stages.anatomy.names import layer_of, matching
from stages.anatomy.outcomes import Judge
from stages.anatomy.positions import Position, digits_of
from stages.anatomy.restart import exchanged, swapped
from stages.anatomy.sites import sites_of
from stages.anatomy.vocabulary import shared
from stages.command import run
from stages.errors import BadInput
from stages.items import PROMPT, TEXT, read_items
from stages.settings import Settings, read
from stages.storage import new_file, write_json


class Trace(Settings):
    """What effects are measured on, which beyond those of whole blocks, and how their intervals are drawn."""

    prompts: int = pydantic.Field(default=24, ge=2)
    """Capability items, from the top of the file."""
    texts: int = pydantic.Field(default=8, ge=2)
    """Retention texts, from the top of the file."""
    text_tokens: int = pydantic.Field(default=16, gt=0)
    """Positions read from the beginning of each text."""
    batch_tokens: int = pydantic.Field(default=128, gt=0)
    """Tokens a forward pass, pads included."""
    attribution: bool = True
    """Whether to estimate the effect of each linear module's weights and of the states at each of `sites`."""
    probes: int = pydantic.Field(default=8, gt=0)
    """Random directions a text from which an estimated divergence comes."""
    modules: int = pydantic.Field(default=0, ge=0)
    """Linear modules, drawn at random, whose weights are also exchanged exactly, to check the estimates."""
    activations: tuple[Kind, ...] = ()
    """What stands, exactly, in place of the target's states at each of `sites`: the donor's, zero, their mean over the
    texts; `clean` puts the states of a prompt into the run of the same prompt with other numbers."""
    sites: tuple[str, ...] = ("layers.*", "layers.*.self_attn", "layers.*.mlp")
    """Patterns of the sites whose states are exchanged or estimated; `layers.*.self_attn.heads.*` and
    `layers.*.mlp.neurons.*` mean single heads and groups of neurons."""
    neuron_groups: int = pydantic.Field(default=8, gt=0)
    """Groups of neighbours into which the neurons of each MLP are cut."""
    positions: tuple[Position, ...] = ()
    """Where `activations` stand alone too: 0 for the first token, -1 for the last before the answer, `but_first`, or
    `numbers`, the prompt's tokens that hold a digit."""
    resamples: int = pydantic.Field(default=2000, gt=0)
    seed: int = 0


_DRAWN = ("capability", "capability_low", "capability_high", "retention", "retention_low", "retention_high")
_COMPARED = (
    ("attribution_blocks", "weights_in"),
    ("attribution_weights", "module_in"),
    ("attribution_states", "states"),
    ("attribution_states", "donor_states"),
)


def check_alike(target: PreTrainedModel, donor: PreTrainedModel) -> None:
    """Raises BadInput unless each block of the donor fits in the place of the target's."""
    ours, theirs = blocks(target), blocks(donor)
    if not fits(target, donor):
        raise BadInput(
            "Tracing needs a donor of the target's architecture and equal widths, got "
            f"{len(theirs)} × {type(theirs[0]).__name__} of width {donor.config.hidden_size} for "
            f"{len(ours)} × {type(ours[0]).__name__} of width {target.config.hidden_size}; leave it out of `trace`."
        )


def trace(
    settings: Trace,
    target: PreTrainedModel,
    donor: PreTrainedModel,
    judge: Judge,
    pairs: Contrast | None = None,
    digits: torch.Tensor | None = None,
) -> pa.Table:
    """The effects of each intervention, in the columns of SCHEMA; the first is the whole donor in the target's place.

    For each block l: `states` lets the donor's residual stream leave block l of the target; `weights_in` runs the
    donor's block l inside the target, `weights_out` the target's block l inside the donor. All are exact, and each
    restarts from cached states, so that only what differs runs. `attribution_weights`, `attribution_blocks` and
    `attribution_states` estimate the donor's linear modules, those of a whole block, and states in the target.
    With `modules`, `module_in` runs single ones of the donor's; `activations` add `donor_states`, `zero`, `mean` and,
    on `pairs`, `clean_states`, whose host is the target on the corrupted prompts; each at all positions, then at each
    of `positions` alone. `digits` [vocabulary] says which tokens are numbers.
    Raises BadInput when the architectures differ or a pattern of sites means none.
    """
    check_alike(target, donor)
    effects = Effects(judge.tokens, settings.resamples, settings.seed)
    ours, theirs = judge.states(target), judge.states(donor)
    last = len(ours) - 1
    hosts = {"target": judge.outcome(target, last, ours[last]), "donor": judge.outcome(donor, last, theirs[last])}
    effects.add("donor", "target", None, hosts["donor"], hosts["target"])
    for layer in range(len(ours)):
        site = f"layers.{layer}"
        effects.add("states", "target", site, judge.outcome(target, layer, theirs[layer]), hosts["target"], layer)
        for name, host_name, host, guest, kept in (
            ("weights_in", "target", target, donor, ours),
            ("weights_out", "donor", donor, target, theirs),
        ):
            with swapped(host, layer, blocks(guest)[layer]):
                outcome = judge.outcome(host, layer - 1, kept[layer - 1]) if layer else judge.outcome(host)
            effects.add(name, host_name, site, outcome, hosts[host_name], layer)
    sites = (
        matching(settings.sites, sites_of(target, settings.neuron_groups))
        if settings.attribution or settings.activations
        else []
    )
    if settings.attribution:
        found = attribute(target, donor, judge.answers, judge.texts, sites, settings.probes, settings.seed)
        for (kind, site), each in found.items():
            effects.add_estimate(f"attribution_{kind}", site, each.capability, each.retention)
    paths = linear_paths(target)
    known = sorted(
        random.Random(f"modules {settings.seed}").sample(range(len(paths)), min(settings.modules, len(paths)))
    )
    for site, path in (list(paths.items())[i] for i in known):
        before = (layer_of(site) or 0) - 1
        with exchanged(target, path, donor.get_submodule(path)):
            outcome = judge.outcome(target, before, ours[before]) if before >= 0 else judge.outcome(target)
        effects.add("module_in", "target", site, outcome, hosts["target"])
    for each in intervened(
        settings.activations,
        sites,
        target,
        donor,
        judge,
        ours,
        pairs,
        settings.batch_tokens,
        settings.positions,
        digits,
    ):
        at = None if each.position is None else str(each.position)
        effects.add(each.intervention, "target", each.site, each.outcome, each.unpatched, position=at)
    return effects.table(_COMPARED)


def curves(table: pa.Table) -> list[dict[str, Any]]:
    """What each intervention on a whole block does, a row a layer: what `dvc plots` draws.

    `states_capability` is what the donor's states leaving the block do to the answers' log-likelihood, nats; retention
    is KL(target ‖ patched) on text, nats a token. None where an intervention was not made.
    """
    rows = [r for r in table.to_pylist() if r["site"] and r["layer"] is not None and r["position"] is None]
    whole = [r for r in rows if r["site"] == f"layers.{r['layer']}" and r["host"] == "target"]
    names = [f"{kind}_{figure}" for kind in sorted({r["intervention"] for r in whole}) for figure in _DRAWN]
    layers: dict[int, dict[str, Any]] = {}
    for row in whole:
        into = layers.setdefault(row["layer"], {"layer": row["layer"]} | dict.fromkeys(names))
        into |= {f"{row['intervention']}_{figure}": row[figure] for figure in _DRAWN}
    return [layers[layer] for layer in sorted(layers)]


def main(
    target: Path, donor: Path, capability: Path, text: Path, out: Path, curves_out: Path,
    params: Path = Path("params.yaml"),
) -> None:  # fmt: skip
    """Trace a donor's parts, as params.yaml says under `trace`."""
    settings = read(params, "trace", Trace)
    tokenizer = load_tokenizer(target)
    if not shared(tokenizer, load_tokenizer(donor)):
        raise BadInput(
            f"Tracing needs a donor with the target's tokenizer, got another in {donor}; leave it out of `trace`."
        )
    items, told = read_items(capability, PROMPT), read_items(text, TEXT, settings.texts)
    everything = encode(tokenizer, [(row["prompt"], row["answer"]) for row in items])
    answers = everything[: settings.prompts]
    encoded = tokenizer([row["text"] for row in told], add_special_tokens=False).input_ids
    cut = [ids[: settings.text_tokens + 1] for ids in encoded if len(ids) > 1]
    if not cut:
        raise BadInput(f"Expected a text of at least two tokens in {text}, got none; add one.")
    pairs = None
    if "clean" in settings.activations:
        found = partners([row["prompt"] for row in items], everything, settings.prompts)
        pairs = contrast(found, settings.batch_tokens)
    ours, theirs = load(target), load(donor)
    judge = Judge(ours, answers_of(answers, settings.batch_tokens), texts_of(cut, settings.batch_tokens))
    digits = digits_of(tokenizer) if "numbers" in settings.positions else None
    table = trace(settings, ours, theirs, judge, pairs, digits)
    with new_file(out) as scratch:
        pyarrow.parquet.write_table(table, scratch)
    write_json(curves_out, curves(table))
    print(f"{table.num_rows} interventions on {len(answers)} prompts and {len(cut)} texts")


if __name__ == "__main__":
    run(main)
