"""A donor's largest neurons as the target's feed-forward networks, with what fewer of them would cost."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from stages.anatomy.activity import activity, silencing
from stages.anatomy.blocks import layer_index
from stages.anatomy.crossing import bridges, rows_of
from stages.anatomy.encoding import texts_of
from stages.anatomy.ffn import FeedForward, Neurons, feed_forwards, resize
from stages.anatomy.loading import load, load_tokenizer
from stages.anatomy.outcomes import Judge
from stages.command import run
from stages.errors import BadInput
from stages.items import PROMPT, TEXT, read_items
from stages.making import Curve, curve, write_making
from stages.recipes.projection import By, ProjectionRecipe
from stages.saving import save
from stages.settings import read
from stages.storage import new_directory

WAYS: tuple[By, ...] = ("activation", "weights", "random")


@dataclass(frozen=True)
class Projection:
    """A donor's neurons in the target's blocks, and the order in which they are kept."""

    networks: Mapping[int, FeedForward]
    """The target's, by block."""
    own: Mapping[int, Neurons]
    """What they were made of before."""
    given: Mapping[int, Neurons]
    """The donor's, in the target's space, all of them."""
    sizes: Mapping[By, Mapping[int, torch.Tensor]]
    """Each neuron's magnitude [neurons], by the way to measure it."""
    figures: Mapping[str, float | None]
    """Agreement of the bridges on texts held out; empty without."""

    def kept(self, by: By, layer: int, count: int) -> torch.Tensor:
        """The `count` largest neurons, in their order in the donor."""
        return self.sizes[by][layer].topk(count).indices.sort().values

    def made(self, recipe: ProjectionRecipe, layer: int, chosen: torch.Tensor | slice = slice(None)) -> Neurons:
        """What a block's network becomes with the donor's neurons `chosen`."""
        given = self.given[layer] if isinstance(chosen, slice) else self.given[layer][chosen]
        given = given.scaled(recipe.strength)
        return self.own[layer].beside(given) if recipe.place == "beside" else given


def pairs(recipe: ProjectionRecipe, target: PreTrainedModel, donor: PreTrainedModel) -> dict[int, int]:
    """The donor's block for each of the target's that are changed.

    Raises BadInput for a block that does not exist, one named twice, and networks that neurons cannot be shared by.
    """
    ours, theirs = feed_forwards(target), feed_forwards(donor)
    layers = [layer_index(spec, len(ours)) for spec in recipe.layers or range(len(ours))]
    specs = recipe.donor_layers or tuple(layers)
    found = {layer: layer_index(spec, len(theirs)) for layer, spec in zip(layers, specs, strict=True)}
    if len(found) < len(layers):
        raise BadInput(f"Expected each of the target's blocks once, got {layers}; name every layer once.")
    for layer, donor_layer in found.items():
        forms = ours[layer].form, theirs[donor_layer].form
        if forms[0] != forms[1]:
            raise BadInput(
                f"Expected a donor whose feed-forward network is {forms[0]} as the target's in block {layer}, got "
                f"{forms[1]}; inject a blade, which runs the donor's own, instead."
            )
    return found


def project(
    recipe: ProjectionRecipe,
    target: PreTrainedModel,
    donor: PreTrainedModel,
    tokenizers: tuple[PreTrainedTokenizerBase, PreTrainedTokenizerBase],
    texts: Sequence[str],
) -> Projection:
    """The donor's neurons, brought into the target's space where its width is another, and how large each is.

    A donor's neuron reads up · x and writes down. At another width x is estimated from what the target's network reads,
    and what is written goes to the space of what the target's network writes; both maps are ridge regressions without
    intercept, on the tokens of `texts` that end at the same character. Fails where the two spaces are not linearly
    alike, as the R² on texts held out tells.
    """
    found = pairs(recipe, target, donor)
    encoded = [
        each(list(texts), add_special_tokens=False, return_offsets_mapping=True, truncation=False)
        for each in tokenizers
    ]
    ours = {layer: feed_forwards(target)[layer] for layer in found}
    theirs = {layer: feed_forwards(donor)[layer] for layer in found.values()}
    doing = activity(donor, theirs, encoded[1].input_ids)
    own = {layer: network.neurons() for layer, network in ours.items()}
    raw = {layer: theirs[found[layer]].neurons() for layer in found}
    generator = torch.Generator().manual_seed(recipe.seed)
    sizes: dict[By, dict[int, torch.Tensor]] = {
        "activation": {n: doing[found[n]].mean.to(raw[n].down) * raw[n].down.norm(dim=1) for n in found},
        "weights": {n: raw[n].sizes() for n in found},
        "random": {n: torch.rand(len(raw[n]), generator=generator) for n in found},
    }
    if target.config.get_text_config().hidden_size == donor.config.get_text_config().hidden_size:
        return Projection(ours, own, raw, sizes, {})
    beside = activity(target, ours, encoded[0].input_ids)
    rows, held = rows_of(encoded)
    given, told = {}, []
    for layer, donor_layer in found.items():
        into, out, agreed = bridges(beside[layer], doing[donor_layer], rows, held, recipe.ridge)
        given[layer] = raw[layer].bridged(into, out)
        told.append(agreed)
    means = {name: fmean(each[name] for each in told) for name in told[0]}
    return Projection(
        ours, own, given, sizes, means | {"rows_fit": int((~held).sum()), "rows_held_out": int(held.sum())}
    )


def quality(
    recipe: ProjectionRecipe, projection: Projection, judge: Judge, target: PreTrainedModel
) -> tuple[dict[str, Curve], dict[str, float]]:
    """KL(target ‖ graft) on texts, in nats a token, over the neurons kept: curves by way, and figures at `keep`.

    The target's networks hold all of the donor's neurons meanwhile, and all but the kept ones are silenced.
    """
    tokens = int(judge.tokens.sum())

    def divergence(by: By, share: float | None) -> float:
        masks = {}
        for layer, given in projection.given.items():
            count = recipe.count(len(given)) if share is None else max(1, round(share * len(given)))
            mask = torch.zeros(len(given), dtype=torch.bool)
            mask[projection.kept(by, layer, count)] = True
            own = len(projection.own[layer]) if recipe.place == "beside" else 0
            masks[layer] = torch.cat([torch.ones(own, dtype=torch.bool), mask])
        with silencing(projection.networks, masks):
            return float(judge.outcome(target).divergence.sum()) / tokens

    curves, neurons = {}, fmean(len(each) for each in projection.given.values())
    try:
        for layer, network in projection.networks.items():
            network.put(projection.made(recipe, layer))
        for by in WAYS:
            points = [(share * neurons, divergence(by, share)) for share in recipe.curve]
            curves[f"divergence by {by}"] = curve("neurons kept a block", "KL(target ‖ graft), nats a token", points)
        figures = {"divergence": divergence(recipe.by, None), "random_divergence": divergence("random", None)}
    finally:
        for layer, network in projection.networks.items():
            network.put(projection.own[layer])
    return curves, figures | {"judged_tokens": tokens}


def build(recipe: ProjectionRecipe, projection: Projection, target: PreTrainedModel) -> dict[str, float]:
    """Puts the kept neurons into the target; gives the figures of what was kept."""
    made, shares = {}, []
    needed = [len(network.neurons()) for network in feed_forwards(target)]
    for layer, given in projection.given.items():
        kept = projection.kept(recipe.by, layer, recipe.count(len(given)))
        made[layer] = projection.made(recipe, layer, kept)
        needed[layer] = len(made[layer])
        largest = projection.sizes[recipe.by if recipe.by != "random" else "activation"][layer]
        shares.append(float(largest[kept].sum() / largest.sum()))
    width = resize(target, made)
    return {
        "blocks": len(made), "neurons": fmean(len(each) for each in projection.given.values()),
        "kept": fmean(recipe.count(len(each)) for each in projection.given.values()), "kept_magnitude": fmean(shares),
        "width": width, "zero_neurons": sum(width - count for count in needed),
    }  # fmt: skip


def main(
    variant: str, target: Path, donor: Path, capability: Path, text: Path, out: Path, making: Path,
    params: Path = Path("params.yaml"),
) -> None:  # fmt: skip
    """Build the graft of the variant that params.yaml describes under `project`."""
    recipe = read(params, f"project.{variant}", ProjectionRecipe)
    same = target.resolve() == donor.resolve()
    tokenizers = load_tokenizer(target), load_tokenizer(donor)
    asked = [row["prompt"] + row["answer"] for row in read_items(capability, PROMPT, recipe.prompts or 1)]
    told = [row["text"] for row in read_items(text, TEXT)]
    seen, judged = told[: recipe.texts], told[recipe.texts :][: recipe.judged]
    ids = [tokenizers[0](each, add_special_tokens=False).input_ids[: recipe.tokens + 1] for each in judged]
    ids = [each for each in ids if len(each) > 1]
    if not ids:
        raise BadInput(
            f"Expected more than {recipe.texts} texts of two or more tokens in {text}, got {len(told)}; lower texts."
        )
    receiving = load(target)
    giving = receiving if same else load(donor)
    before = receiving.num_parameters()
    projection = project(recipe, receiving, giving, tokenizers, [*asked[: recipe.prompts], *seen])
    del giving
    curves, figures = quality(recipe, projection, Judge(receiving, [], texts_of(ids, 1024)), receiving)
    figures |= build(recipe, projection, receiving) | dict(projection.figures)
    moved = 0 if same else sum(recipe.count(len(n)) * n.parameters for n in projection.given.values())
    added = receiving.num_parameters() - before
    with new_directory(out) as directory:
        save(receiving, tokenizers[0], directory)
    write_making(making, "project", [recipe.donor], recipe, moved, added, figures, curves)
    print(
        f"{figures['kept']:g} of {figures['neurons']:g} neurons in {figures['blocks']} blocks: divergence "
        f"{figures['divergence']:.3f}, at random {figures['random_divergence']:.3f} nats a token"
    )


if __name__ == "__main__":
    run(main)
