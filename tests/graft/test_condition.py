"""A donor that runs only where it will be heard: what a row gets depends on nothing to its right and no other row."""

from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel

from stages.graft.condition import Condition
from stages.graft.donor import Donor
from stages.graft.modeling import GraftForCausalLM
from tests import grafts
from tests.families import FAMILIES

ROWS = [
    grafts.bpe()(text).input_ids for text in ("What is 12 + 30? Answer:", "A café in the old town", "The sum of 1 is")
]
OPENER = next(token for token in ROWS[0][2:] if all(token not in row for row in ROWS[1:]))
GREEDY = {"do_sample": False, "max_new_tokens": 8, "min_new_tokens": 8, "pad_token_id": 0}


def built(root: Path, family: str, giving: Path | None = None, **given) -> GraftForCausalLM:
    """A conditional graft, which opens where the tests say by `opening_at`."""
    giving = giving or grafts.target(root, family, seed=1)
    settings = {"condition": {"layer": 0}, "layer": 2, "donor_layer": 1} | given
    return grafts.loaded(grafts.built(root / f"{family}_graft", grafts.target(root, family), giving, **settings)[1])


def opening_at(graft: GraftForCausalLM, monkeypatch, *tokens: int) -> None:
    """The condition finds evidence at these tokens, and nowhere else."""
    seen: list[torch.Tensor] = []
    graft.target.get_input_embeddings().register_forward_pre_hook(lambda m, args: seen.append(args[0]))
    found = torch.tensor(tokens)
    monkeypatch.setattr(Condition, "forward", lambda self, h: torch.isin(seen[-1], found).float() - 0.5)


def runs(graft: GraftForCausalLM, monkeypatch) -> list[torch.Tensor]:
    """The ids that the donor is given in each pass from now on."""
    given: list[torch.Tensor] = []
    plain = Donor.states

    def states(self, input_ids, mask, heard):
        given.append(input_ids)
        return plain(self, input_ids, mask, heard)

    monkeypatch.setattr(Donor, "states", states)
    return given


@torch.no_grad()
def logits(model: PreTrainedModel, ids, mask=None) -> torch.Tensor:
    return model(input_ids=ids, attention_mask=mask, use_cache=False).logits


@pytest.mark.parametrize("family", FAMILIES)
def test_rows_that_never_open_are_the_targets_bit_for_bit_and_run_no_donor(tmp_path, monkeypatch, family):
    graft = built(tmp_path, family)
    opening_at(graft, monkeypatch)
    given, (ids, mask) = runs(graft, monkeypatch), grafts.padded(ROWS)
    for row in ROWS:
        assert torch.equal(logits(graft, torch.tensor([row])), logits(graft.target, torch.tensor([row])))
    told = [model.generate(input_ids=ids, attention_mask=mask, **GREEDY) for model in (graft, graft.target)]
    assert torch.equal(*told) and not given


@pytest.mark.parametrize("family", FAMILIES)
def test_it_generates_with_a_cache_as_without_and_alone_as_in_company(tmp_path, monkeypatch, family):
    graft = built(tmp_path, family)
    ids, mask = grafts.padded(ROWS)
    plain = graft.target.generate(input_ids=ids, attention_mask=mask, **GREEDY)
    later = plain[:, ids.shape[1] + 2].tolist()  # one opens in its prompt, the others while they are generated
    opening_at(graft, monkeypatch, OPENER, *later)
    cached = graft.generate(input_ids=ids, attention_mask=mask, use_cache=True, **GREEDY)
    assert torch.equal(cached, graft.generate(input_ids=ids, attention_mask=mask, use_cache=False, **GREEDY))
    for row, alone in enumerate(ROWS):
        told = graft.generate(input_ids=torch.tensor([alone]), **GREEDY)[0, len(alone) :]
        assert torch.equal(cached[row, ids.shape[1] :], told)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_token_is_as_in_the_row_alone_from_the_opening_on_and_the_targets_before(tmp_path, monkeypatch, family):
    graft, at = built(tmp_path, family), ROWS[0].index(OPENER)
    opening_at(graft, monkeypatch, OPENER)
    given = runs(graft, monkeypatch)
    for side in ("left", "right"):
        ids, mask = grafts.padded(ROWS, side, filler=40)
        told = logits(graft, ids, mask)
        assert [len(each) for each in given] == [1]  # the rows that stay closed are not read
        for row, plain in enumerate(ROWS):
            real, target = mask[row].bool(), logits(graft.target, torch.tensor([plain]))[0]
            opened = at if row == 0 else len(plain)
            assert torch.allclose(told[row, real], logits(graft, torch.tensor([plain]))[0], atol=1e-4)
            assert torch.allclose(told[row, real][:opened], target[:opened], atol=1e-4)
            assert row or not torch.allclose(told[row, real][opened:], target[opened:], atol=1e-2)
        given.clear()


def test_from_the_opening_on_the_donor_has_read_all_that_came_before(tmp_path, monkeypatch):
    graft = built(tmp_path, "llama")
    opening_at(graft, monkeypatch, OPENER)
    ids, at = torch.tensor(ROWS[:1]), ROWS[0].index(OPENER)
    given, cache, steps = runs(graft, monkeypatch), None, []
    for column in range(ids.shape[1]):
        with torch.no_grad():
            step = graft(input_ids=ids[:, column : column + 1], past_key_values=cache, use_cache=True)
        cache = step.past_key_values
        steps.append(step.logits[0, -1])
    assert [each.shape[1] for each in given] == [at + 1] + [1] * (ids.shape[1] - at - 1)
    assert torch.equal(given[0], ids[:, : at + 1])
    assert torch.allclose(torch.stack(steps), logits(graft, ids)[0], atol=1e-4)


@pytest.mark.parametrize("name", ["llama", "spelt"])
def test_beams_are_those_that_it_gives_without_a_cache(tmp_path, monkeypatch, name):
    spelt = {"giving": grafts.characters(tmp_path), "bridge": "linear", "mix": "add"} if name == "spelt" else {}
    graft = built(tmp_path, "llama", **spelt)
    ids, mask = grafts.padded(ROWS)
    opening_at(graft, monkeypatch, OPENER, *range(40, 120))
    given = {"input_ids": ids, "attention_mask": mask, "num_beams": 3, "num_return_sequences": 2, **GREEDY}
    assert torch.equal(graft.generate(**given, use_cache=True), graft.generate(**given, use_cache=False))


def test_the_condition_reads_its_layer_and_opens_above_zero(tmp_path):
    graft = built(tmp_path, "llama", condition={"layer": 1})
    ids, condition = torch.tensor(ROWS[:1]), graft.parts[-1]
    assert condition.layer == 1
    with torch.no_grad():
        early = graft.target(input_ids=ids, output_hidden_states=True).hidden_states[2]
        evidence = condition(early)[0]
        told, target = logits(graft, ids)[0], logits(graft.target, ids)[0]
        assert torch.allclose(evidence, condition.read(torch.nn.functional.layer_norm(early, (32,)))[0, :, 0])
        condition.read.bias -= evidence.sort().values[-2:].mean()  # one token alone has evidence
        moved = (logits(graft, ids)[0] - target).abs().amax(-1) > 0
        assert (evidence > 0).any() and not torch.equal(told, target)
    assert moved.tolist() == [place >= evidence.argmax() for place in range(len(moved))]
