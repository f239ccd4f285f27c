"""The catalog of a donor: how far, how steadily and by which of its parts it departs from the target, site by site."""

from collections.abc import Mapping
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet
import pydantic
import torch
from torch import Tensor
from transformers import PreTrainedModel

from stages.activations import Activations
from stages.anatomy.loading import load
from stages.anatomy.local import fits
from stages.catalog import ON, Rows, curves
from stages.command import run
from stages.errors import BadInput
from stages.figures import FEWEST, add_between, add_captured, add_local, add_own
from stages.items import read_items
from stages.maths.change import relative_change
from stages.pairs import block_sites, paired
from stages.settings import Settings, read
from stages.storage import new_file, write_json
from stages.workings import sample, workings

Models = tuple[PreTrainedModel, PreTrainedModel]
_ROUNDING = 0.05
"""The most that states may differ from those in a file, in bfloat16 and perhaps from another machine."""


class Analyze(Settings):
    """On how much of what was captured the models are run again, and ranks are taken."""

    prompts: int = pydantic.Field(default=8, ge=0)
    """Capability prompts, from the top of the captured ones, for local changes, attention, neurons and the lens."""
    texts: int = pydantic.Field(default=3, ge=0)
    """Retention texts, likewise; 0 of both runs no model."""
    text_tokens: int = pydantic.Field(default=32, gt=0)
    """Of the target's tokens, read from the beginning of each text."""
    positions: int = pydantic.Field(default=6, gt=0)
    """Places in each text at which early predictions are read; in a prompt it is before each token of the answer."""
    rank_rows: int = pydantic.Field(default=256, ge=4)
    """Tokens, at most, that an effective rank is taken of; the rank is never more."""


def analyze(
    settings: Analyze,
    target: Activations,
    donor: Activations,
    models: Models | None = None,
    answers: Mapping[str, int] | None = None,
) -> pa.Table:
    """The catalog, in the columns of `stages.catalog.SCHEMA`, from two captures of the same texts.

    A donor with the target's tokens, sites and widths has a row for each site. From the captured states: `change` is
    the mean of ‖d - t‖ / ‖t‖ over tokens, `consistency` the mean cosine of a prompt's mean change with that of the
    other prompts, `norm_ratio` the donor's mean norm over the target's, `cka` the debiased linear CKA, `rank` and
    `donor_rank` the effective rank of the centred states, `change_rank` that of d - t.

    Of `models` (target, donor), run on the first of these texts: `local_change` and `local_consistency` are the same of
    the donor's module on the target's own input, `locality` is the site's part of the sum of local changes over all
    sites of its kind, and `own_share` the part of the change that arises in the module itself. (Modules that change
    consistently and locally are those that arXiv 2602.16189 transplants; these figures are local in that sense, and
    their formulas are ours.) `entropy` is the attention's by head and on average, nats, `head_similarity` that of the
    donor's head with the target's; `lens_agreement` and `lens_divergence` tell how near the prediction from a block's
    state is to the model's own last one, where `answers` (characters before the answer by prompt id) says that an
    answer's token follows, and at places of texts; `active`, `gini` and `neuron_overlap` are of the MLP's neurons.

    Any other donor has a row for each pair of a donor's and a target's block with the CKA alone, since its channels
    mean other things, then rows of each model's own figures, with no site on the other side. Each prompt's first token
    and attention sinks are left out; `rows`, `run_rows` and `lens_rows` count the tokens behind the figures.
    Raises BadInput when the files are of different texts, or of other models than `models`.
    """
    pairing = paired(target, donor)
    widths = [{site: each.width(site) for site in each.sites} for each in (target, donor)]
    alike = pairing.same_tokens and widths[0] == widths[1]
    if models is not None:
        for file, model in zip((target, donor), models, strict=True):
            _check_sizes(file, model)
    rows = Rows()
    chosen = {on: target.of_kind(on)[pairing.target] for on in ON}
    for on, of_kind in chosen.items():
        add_captured(rows, on, (target, donor), pairing, of_kind, alike, settings.rank_rows)
    for on, count in zip(ON, (settings.prompts, settings.texts), strict=True):
        if models is None or not count:
            continue
        some = chosen[on] & _first(target, on, count, settings.text_tokens)[pairing.target]
        if int(some.sum()) < FEWEST:
            continue
        before = (answers or {}) if on == "capability" else {}
        given, found = [], []
        for file, index, model in zip((target, donor), (pairing.target, pairing.donor), models, strict=True):
            own = index[some].unique()
            given.append(sample(file, own, before, settings.positions))
            found.append(workings(model, given[-1]))
            _check_states(file, own, found[-1].states)
        add_own(rows, on, given, found, alike)
        if alike:
            add_between(rows, on, found)
            if fits(*models):
                add_local(rows, on, models, given[0], pairing.prompt[some], found)
    return rows.table()


def _first(file: Activations, on: str, count: int, text_tokens: int) -> Tensor:
    """[tokens], those of the first `count` prompts or texts, of a text only the first `text_tokens`."""
    numbers = [i for i, kind in enumerate(file.kinds) if kind == on][:count]
    some = torch.isin(file.prompt, torch.tensor(numbers, dtype=torch.long))
    column = torch.arange(len(file.tokens)) - file.starts[file.prompt]
    return some & (column < text_tokens) if on == "text" else some


def _check_sizes(file: Activations, model: PreTrainedModel) -> None:
    """Raises BadInput when a file's tokens or states cannot be the model's."""
    width, most = model.config.get_text_config().hidden_size, model.get_input_embeddings().weight.shape[0]
    own, last = file.width(block_sites(file)[0]), int(file.tokens.max())
    if last >= most or own != width:
        raise BadInput(
            f"Expected activations of a model of width {width} with {most} tokens, got {file.path} of width {own} "
            f"with token {last}; capture that model, or name the one that was captured."
        )


def _check_states(file: Activations, rows: Tensor, states: Mapping[str, Tensor]) -> None:
    """Raises BadInput when the states of a run are not those that were captured, save for rounding."""
    for site in set(block_sites(file)) & set(states):
        apart = relative_change(file.mapped(site)[rows].float(), states[site])
        if apart > _ROUNDING:
            raise BadInput(
                f"Expected in {file.path} the states of the model that is run, got others at {site} (apart by "
                f"{apart:.0%}); capture that model again, or name the one that was captured."
            )


def main(
    target: Path, donor: Path, target_model: Path, donor_model: Path, capability: Path, out: Path, curves_out: Path,
    params: Path = Path("params.yaml"),
) -> None:  # fmt: skip
    """Compare a donor with the target, site by site, as params.yaml says under `analyze`."""
    settings = read(params, "analyze", Analyze)
    files, models = (Activations(target), Activations(donor)), None
    for file, model in zip(files, (target_model, donor_model), strict=True):
        file.check_model(model)
    if settings.prompts or settings.texts:
        models = load(target_model), load(donor_model)
    answers = {row["id"]: len(row["prompt"]) for row in read_items(capability, ("prompt",))}
    table = analyze(settings, *files, models, answers)
    with new_file(out) as scratch:
        pyarrow.parquet.write_table(table, scratch)
    write_json(curves_out, curves(table))
    print(f"{table.num_rows} rows")


if __name__ == "__main__":
    run(main)
