"""Blades put together: stacked they are the single ones in turn, shared they start from them and learn to share."""

from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from stages import join
from stages.anatomy.encoding import encode
from stages.blades import keep, logits
from stages.errors import BadInput
from stages.openings import openings
from stages.recipes.blade import BladeRecipe, parts
from stages.recipes.together import TogetherRecipe, together
from stages.storage import read_json, write_json, write_jsonl
from tests import grafts

SUMS = [(f"What is {a} + {b}? Answer:", f" {a + b}.") for a, b in ((12, 30), (1, 1), (99, 1), (7, 8))]
WORDS = [(f"The old town sells {word}", " and bread.") for word in ("tea", "cafe", "one", "two")]
NAMES = ("sums", "words")


def blade(root: Path, name: str, giving: Path, **given) -> Path:
    """What training leaves of a blade, its weights drawn instead."""
    recipe = grafts.recipe(donor=giving.name, **given)
    made = grafts.stir(parts(recipe, grafts.target(root), giving))
    (root / "gates" / name).mkdir(parents=True)
    learned = {n: v.to(torch.bfloat16).contiguous() for n, v in made.parts.state_dict().items()}
    save_file(learned, root / "gates" / name / "gate.safetensors")
    write_json(root / "gates" / name / "training.json", {"curve": [], "recipe": recipe.model_dump()})
    return root / "gates" / name


def recipe(donors: list[str], gate: str, **given) -> TogetherRecipe:
    section = {"blades": NAMES, "donors": donors, "prompts": NAMES, "gate": gate}
    if gate == "shared":
        section["training"] = grafts.UNTRAINED | {"steps": 2, "prompts": 4, "batch": 4, "texts": 2, "positions": 9}
    return TogetherRecipe.model_validate(section | given)


@pytest.fixture
def two(tmp_path):
    """Paths of two donors, one of another width and tokenizer, and of the gates of their blades."""
    donors = grafts.target(tmp_path, seed=1), grafts.characters(tmp_path)
    blades = blade(tmp_path, "sums", donors[0]), blade(tmp_path, "words", donors[1], bridge="linear")
    return donors, blades


def kept(made, told=SUMS):
    return keep(made, [(e.ids, e.start) for e in encode(grafts.bpe(), told)], predictions=False)


def test_stacked_blades_are_the_single_ones_in_turn(tmp_path, two):
    donors, blades = two
    made, owners = together(recipe([d.name for d in donors], "stacked"), grafts.target(tmp_path), donors, blades)
    assert owners == [0, 1] and [spec["donor"] for spec in made.specs] == [0, 1]
    for part, path, giving in zip(made.parts, blades, donors, strict=True):
        alone = parts(
            BladeRecipe.model_validate(read_json(path / "training.json")["recipe"]), tmp_path / "llama_0", giving
        )
        alone.parts.load_state_dict(load_file(path / "gate.safetensors"))
        told, single = part.state_dict(), alone.parts[0].state_dict()
        assert all(torch.equal(told[name], value) for name, value in single.items())


@torch.no_grad()
def test_a_shared_gate_starts_where_each_blade_alone_is_itself(tmp_path, two):
    donors, blades = two
    made, _ = together(recipe([d.name for d in donors], "shared"), grafts.target(tmp_path), donors, blades)
    stacked, _ = together(recipe([d.name for d in donors], "stacked"), grafts.target(tmp_path), donors, blades)
    (k,) = kept(made, SUMS[:1])
    never = torch.zeros(1, len(k.ids), dtype=torch.bool)
    d, known = [k.read[0][0][None], k.read[1][0][None]], [k.known[0][None], k.known[1][None]]
    for alone in (0, 1):
        heard = [where if i == alone else never for i, where in enumerate(known)]
        single = stacked.parts[alone](k.h[None], d[alone], known[alone])
        assert torch.allclose(made.parts[0](k.h[None], d, heard), single, atol=1e-5)


def test_a_donor_of_two_blades_is_carried_once(tmp_path):
    giving = grafts.target(tmp_path, seed=1)
    blades = (
        blade(tmp_path, "sums", giving, donor_layer=2),
        blade(tmp_path, "words", giving, layer=[3, 1], donor_layer=[0, 1]),
    )
    told = recipe([giving.name] * 2, "stacked")
    made, owners = together(told, grafts.target(tmp_path), [giving, giving], blades)
    assert len(made.readings) == 1 and made.readings[0].spec["taken"] == [2, 0, 1]
    assert [(s["layer"], s["taken"]) for s in made.specs] == [(2, 0), (3, 1), (1, 2)] and owners == [0, 1, 1]


@torch.no_grad()
def test_openings_are_the_gates_own_amounts(tmp_path, two):
    donors, blades = two
    names = [d.name for d in donors]
    for gate in ("stacked", "shared", "closed"):
        made, _ = together(recipe(names, gate), grafts.target(tmp_path), donors, blades)
        items = kept(made)
        told = openings(made, items)
        assert [each.shape for each in told] == [(len(k.ids), 2) for k in items]
        k = items[2]
        if gate == "closed":
            assert not any(each.any() for each in told)
        elif gate == "stacked":
            assert torch.allclose(told[2][:, :1], made.parts[0].gate(k.h, k.read[0][0]), atol=1e-5)
        else:
            x = [b(k.read[i][0][None]) for i, b in enumerate(made.parts[0].bridges)]
            expected = made.parts[0].gate(k.h[None], x, [where[None] for where in k.known])[0]
            assert torch.allclose(told[2], expected, atol=1e-5)


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ({"layer": 3}, "must all have layer 2, got 2, 3 among sums, words; set gate: stacked"),
        ({"gate": "channel"}, "must all have gate token, got channel, token"),
        ({"mix": "add"}, "must all have mix delta, got add, delta"),
        ({"alpha": 0.5}, r"must all have alpha 1.0, got 0.5, 1.0"),
    ],
)
def test_blades_that_cannot_share_a_gate_are_refused(tmp_path, changed, sentence):
    giving = grafts.target(tmp_path, seed=1)
    blades = blade(tmp_path, "sums", giving), blade(tmp_path, "words", giving, **changed)
    with pytest.raises(BadInput, match=sentence):
        together(recipe([giving.name] * 2, "shared"), grafts.target(tmp_path), [giving] * 2, blades)


def test_a_blade_of_another_donor_than_named_is_refused(tmp_path, two):
    donors, blades = two
    with pytest.raises(BadInput, match="Expected blade 'words' to have the donor 'other', got 'characters'"):
        together(recipe([donors[0].name, "other"], "stacked"), grafts.target(tmp_path), donors, blades)


def test_a_recipe_that_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="2 blades, 1 donors and 2 folders"):
        recipe(["one"], "stacked")
    with pytest.raises(ValueError, match="a shared gate has to learn; add the training section"):
        recipe(["one", "two"], "shared", training=None)
    with pytest.raises(ValueError, match="a stacked gate has nothing to learn"):
        recipe(["one", "two"], "stacked", training=grafts.UNTRAINED)


@pytest.fixture
def run(tmp_path, two):
    donors, blades = two
    for name, told in (("sums", SUMS), ("words", WORDS)):
        write_jsonl(tmp_path / f"{name}.jsonl", [{"prompt": p, "answer": a} for p, a in told])
    write_jsonl(tmp_path / "text.jsonl", [{"text": text} for text in grafts.SENTENCES])
    sections = {
        gate: recipe([d.name for d in donors], gate).model_dump(mode="json") for gate in ("shared", "stacked", "closed")
    }
    (tmp_path / "params.yaml").write_text(yaml.safe_dump({"together": sections}))
    prompts = [tmp_path / "sums.jsonl", tmp_path / "words.jsonl"]

    def made(variant: str, name: str) -> tuple[Path, Path]:
        out, making = tmp_path / name, tmp_path / f"{name}.json"
        join.main(variant, grafts.target(tmp_path), list(blades), list(donors), prompts, tmp_path / "text.jsonl", out,
                  making, tmp_path / "params.yaml")  # fmt: skip
        return out, making

    return made


def test_the_same_run_gives_the_same_bytes_and_tells_what_it_made(run):
    (one, told), (other, again) = run("shared", "one"), run("shared", "other")
    assert all(p.read_bytes() == (other / p.name).read_bytes() for p in one.iterdir())
    assert told.read_bytes() == again.read_bytes()
    making = read_json(told)
    assert making["way"] == "together" and making["donors"] == ["llama_1", "characters"]
    graft = grafts.loaded(one)
    assert making["parameters"]["moved"] == sum(p.numel() for p in graft.donors.parameters())
    assert making["parameters"]["added"] == sum(p.numel() for p in graft.parts.parameters())
    assert all(0 < making["figures"][f"{b}_open_on_{p}"] < 1 for b in NAMES for p in NAMES)
    assert [len(curve["points"]) for curve in making["curves"].values()] == [2, 2]


def test_what_is_written_is_what_was_put_together(tmp_path, two, run):
    donors, blades = two
    (path, making), names = run("stacked", "out"), [d.name for d in donors]
    made, _ = together(recipe(names, "stacked"), grafts.target(tmp_path), donors, blades)
    graft, items = grafts.loaded(path), kept(made)
    whole = [graft(input_ids=torch.tensor([k.ids]), use_cache=False).logits[0, k.start - 1 : -1] for k in items]
    assert torch.allclose(logits(made, items)[0], torch.cat(whole), atol=1e-4)
    assert not read_json(making)["curves"]


def test_closed_gates_leave_the_targets_logits_bit_for_bit(run):
    graft = grafts.loaded(run("closed", "out")[0])
    ids = torch.tensor([grafts.bpe()(SUMS[0][0]).input_ids])
    assert torch.equal(graft(input_ids=ids).logits, graft.target(input_ids=ids).logits)


def test_a_donor_that_repeats_the_target_counts_as_such(tmp_path):
    own = grafts.target(tmp_path)
    made, _ = together(
        recipe([own.name] * 2, "stacked"), own, [own] * 2, [blade(tmp_path, "sums", own), blade(tmp_path, "words", own)]
    )
    assert join.repeated(made) == sum(p.numel() for p in made.readings[0].donor.parameters())
