"""Whole models merged tensor by tensor: what comes out, what is refused, and that it is a plain model directory."""

import stat

import pytest
import torch
import yaml
from safetensors.torch import load_file

from stages.anatomy.loading import load, load_tokenizer
from stages.anatomy.weights import Weights, write_weights
from stages.errors import BadInput
from stages.merge import main, merge
from stages.recipes.merge import MergeRecipe
from stages.storage import read_json
from tests import grafts
from tests.families import FAMILIES, tiny, tokenizer

IDS = torch.tensor([[5, 60, 7, 91, 3, 44]])
METHODS = {
    "linear": {}, "slerp": {}, "task_arithmetic": {}, "ties": {"density": 1.0}, "dare": {"density": 1.0},
    "dare_ties": {"density": 1.0},
}  # fmt: skip


def recipe(method: str, donors: dict[str, float] | None = None, **given) -> MergeRecipe:
    return MergeRecipe.model_validate({"method": method, "donors": donors or {"one": 1.0}} | given)


def weights(path) -> dict[str, torch.Tensor]:
    return {name: value.float() for name, value in Weights(path).items()}


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """A target and two donors."""
    made = tmp_path_factory.mktemp("models")
    for name, seed in (("target", 0), ("one", 1), ("two", 2)):
        grafts.directory(tiny("llama", seed, vocab_size=grafts.VOCABULARY), grafts.bpe(), made / name)
    return made


@pytest.mark.parametrize("family", FAMILIES)
def test_half_the_way_is_the_mean_of_all_weights_in_every_family(family, tmp_path):
    target, donor = grafts.target(tmp_path, family), grafts.target(tmp_path, family, seed=1)
    merge(recipe("task_arithmetic", {"one": 0.5}), target, {"one": donor}, tmp_path / "out")
    graft, receiving, giving = (load(path).state_dict() for path in (tmp_path / "out", target, donor))
    for name, value in graft.items():
        expected = (receiving[name] + 0.5 * (giving[name] - receiving[name])).to(torch.bfloat16).float()
        assert torch.equal(value, expected), name


@pytest.mark.parametrize("family", ["llama", "gpt2", "phi3", "mixtral", "gemma2"])
@pytest.mark.parametrize("method", METHODS)
def test_a_merge_with_itself_changes_no_logit(family, method, tmp_path):
    target = grafts.target(tmp_path, family)
    told = merge(recipe(method, {"one": 0.4}, **METHODS[method]), target, {"one": target}, tmp_path / "out")
    with torch.no_grad():
        before, after = (load(path)(input_ids=IDS).logits for path in (target, tmp_path / "out"))
    assert torch.equal(before, after)
    assert (
        told.moves.moved == 0 and told.figures["relative_move"] == 0 and told.figures["cosine_to_task_vectors"] is None
    )


@pytest.mark.parametrize("method", METHODS)
def test_the_whole_weight_of_one_donor_is_the_donor(method, models, tmp_path):
    told = merge(recipe(method, **METHODS[method]), models / "target", {"one": models / "one"}, tmp_path / "out")
    given = weights(models / "one")
    for name, value in weights(tmp_path / "out").items():
        torch.testing.assert_close(value, given[name], rtol=2**-8, atol=1e-6)
    assert told.figures["cosine_to_task_vectors"] == pytest.approx(1, abs=1e-4)


def test_two_donors_merge_by_their_weights_and_their_disputes_are_counted(models, tmp_path):
    given = {"one": 0.5, "two": -0.25}
    told = merge(recipe("task_arithmetic", given), models / "target",
                 {name: models / name for name in given}, tmp_path / "out")  # fmt: skip
    target, one, two = (weights(models / name) for name in ("target", "one", "two"))
    disputed = 0
    for name, value in weights(tmp_path / "out").items():
        vectors = one[name] - target[name], two[name] - target[name]
        disputed += int((vectors[0] * vectors[1] < 0).sum())
        expected = (target[name] + 0.5 * vectors[0] - 0.25 * vectors[1]).to(torch.bfloat16).float()
        torch.testing.assert_close(value, expected, rtol=2**-7, atol=1e-6)
    assert told.figures["disputed_entries"] == disputed > 0


def test_a_random_merge_goes_as_far_and_elsewhere_and_comes_out_the_same_again(models, tmp_path):
    found = {}
    for name, method, seed in (("task", "task_arithmetic", 0), ("random", "random", 0), ("again", "random", 0),
                               ("other", "random", 1)):  # fmt: skip
        told = merge(recipe(method, seed=seed), models / "target", {"one": models / "one"}, tmp_path / name)
        found[name] = told.figures
    assert found["random"]["relative_move"] == pytest.approx(found["task"]["relative_move"], rel=1e-3)
    assert abs(found["random"]["cosine_to_task_vectors"] or 1) < 0.02
    files = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("random", "again", "other")]
    assert files[0] == files[1] != files[2]


def test_the_stage_writes_a_plain_model_directory_and_what_it_did(models, tmp_path):
    (tmp_path / "params.yaml").write_text(yaml.safe_dump({"merge": {"m": recipe("ties", density=0.5).model_dump()}}))
    for name in ("out", "again"):
        main("m", models / "target", models, tmp_path / name, tmp_path / f"{name}.json", tmp_path / "params.yaml")
    files = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert {"config.json", "generation_config.json", "model.safetensors", "tokenizer.json"} <= set(files)
    assert all((tmp_path / "out" / name).read_bytes() == (tmp_path / "again" / name).read_bytes() for name in files)
    assert read_json(tmp_path / "out" / "config.json") == read_json(models / "target" / "config.json")
    assert load_tokenizer(tmp_path / "out").get_vocab() == grafts.bpe().get_vocab()
    told = read_json(tmp_path / "out.json")
    target, graft = weights(models / "target"), weights(tmp_path / "out")
    assert told["parameters"] == {"moved": sum(int((graft[n] != v).sum()) for n, v in target.items()), "added": 0}
    assert told["way"] == "merge" and told["donors"] == ["one"] and told["recipe"]["density"] == 0.5
    points = told["curves"]["Change of the weights by block"]["points"]
    inside = [(graft[n] - v, v) for n, v in target.items() if ".layers.2." in n]
    norms = [torch.cat([each[i].flatten() for each in inside]).norm() for i in (0, 1)]
    assert [x for x, _ in points] == [0, 1, 2, 3] and points[2][1] == pytest.approx(
        float(norms[0] / norms[1]), rel=1e-4
    )


def test_a_tied_head_stays_tied_and_moves_with_the_embedding(tmp_path):
    made = [grafts.directory(tiny("llama", seed, vocab_size=320, tie_word_embeddings=True), grafts.bpe(),
                             tmp_path / str(seed)) for seed in (0, 1)]  # fmt: skip
    merge(recipe("linear", {"one": 0.25}), made[0], {"one": made[1]}, tmp_path / "out")
    assert "lm_head.weight" not in Weights(tmp_path / "out")
    graft, target, donor = (load(path) for path in (tmp_path / "out", *made))
    expected = 0.75 * target.lm_head.weight + 0.25 * donor.lm_head.weight
    assert torch.equal(graft.lm_head.weight, expected.to(torch.bfloat16).float())
    assert graft.lm_head.weight is graft.get_input_embeddings().weight
    norms = [model.get_parameter("model.layers.1.input_layernorm.weight") for model in (graft, target)]
    assert torch.equal(*norms), "norms of a random model are all ones"


def test_shards_hold_the_same_tensors_and_no_file_is_above_the_limit(models, tmp_path):
    whole = load_file(models / "target" / "model.safetensors")
    (tmp_path / "out").mkdir()
    write_weights(tmp_path / "out", sorted(whole.items()), shard=24_000)
    files = sorted((tmp_path / "out").glob("*.safetensors"))
    assert len(files) > 3 and files[0].name == f"model-00001-of-{len(files):05d}.safetensors"
    (tmp_path / "out" / "config.json").write_bytes((models / "target" / "config.json").read_bytes())
    found = Weights(tmp_path / "out")
    assert all(torch.equal(found[name], value) for name, value in whole.items()) and len(found) == len(whole)
    assert sum(v.nbytes for v in load_file(files[1]).values()) <= 24_000
    with torch.no_grad():
        one, other = (load(path)(input_ids=IDS).logits for path in (models / "target", tmp_path / "out"))
    assert torch.equal(one, other)


@pytest.mark.parametrize(
    ("made", "sentence"),
    [
        (
            lambda: tiny("llama", intermediate_size=48, vocab_size=320),
            "the target's intermediate_size 64, got 48; take",
        ),
        (lambda: tiny("llama", num_attention_heads=8, vocab_size=320), "the target's num_attention_heads 4, got 8"),
        (lambda: tiny("mistral", vocab_size=320), "the target's model_type llama, got mistral; take weights from"),
        (lambda: tiny("llama", tie_word_embeddings=True, vocab_size=320), "39 tensors, got lm_head.weight in one of"),
        (lambda: tiny("llama", 1), "to have the target's shape"),
    ],
)
def test_other_models_are_refused_before_any_work(made, sentence, models, tmp_path):
    other = grafts.directory(made(), grafts.bpe(), tmp_path / "other")
    with pytest.raises(BadInput, match=sentence):
        merge(recipe("linear"), models / "target", {"one": other}, tmp_path / "out")
    assert not list(tmp_path.glob("out*"))


def test_another_tokenizer_or_no_model_is_refused(models, tmp_path):
    other = tiny("llama", vocab_size=grafts.VOCABULARY)
    other.save_pretrained(tmp_path / "other")
    tokenizer().save_pretrained(tmp_path / "other")
    for path, sentence in (
        (tmp_path / "other", "the target's tokenizer, got another"),
        (tmp_path / "no", "got nothing"),
    ):
        with pytest.raises(BadInput, match=sentence):
            merge(recipe("linear"), models / "target", {"one": path}, tmp_path / "out")
    (models.parent / "broken").mkdir()
    (models.parent / "broken" / "config.json").write_text("{}")
    (models.parent / "broken" / "model.safetensors").write_text("no")
    with pytest.raises(BadInput, match="is no safetensors file"):
        Weights(models.parent / "broken")


@pytest.mark.parametrize(
    "given",
    [
        {"method": "ties"}, {"method": "linear", "density": 0.5}, {"method": "slerp", "donors": {"a": 0.5, "b": 0.5}},
        {"method": "slerp", "donors": {"a": 1.5}}, {"method": "linear", "donors": {"a": 0.7, "b": 0.4}},
        {"method": "linear", "donors": {"a": -0.1}}, {"method": "linear", "donors": {}}, {"method": "mergekit"},
        {"method": "dare", "density": 1.2},
    ],
)  # fmt: skip
def test_settings_that_do_not_go_together_are_refused(given):
    with pytest.raises(ValueError, match="density|slerp|linear|donors|mergekit"):
        MergeRecipe.model_validate({"donors": {"a": 0.5}} | given)


def test_mergekit_is_run_as_a_program_and_asked_for_where_it_is_missing(models, tmp_path, monkeypatch):
    made = recipe("mergekit", {"two": 0.3}, mergekit={"merge_method": "della", "parameters": {"density": 0.5}})
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(BadInput, match="Expected the program mergekit-yaml.*pip install 'graftline"):
        merge(made, models / "target", {"two": models / "two"}, tmp_path / "out")
    program = tmp_path / "mergekit-yaml"
    program.write_text(f'#!/bin/sh\n/bin/cp "$1" {tmp_path}/seen.yaml\n/bin/cp -r {models}/one "$2"\n')
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    merge(made, models / "target", {"two": models / "two"}, tmp_path / "out")
    seen = yaml.safe_load((tmp_path / "seen.yaml").read_text())
    assert seen["merge_method"] == "della" and seen["base_model"] == str(models / "target")
    assert seen["models"] == [{"model": str(models / "two"), "parameters": {"weight": 0.3}}]
    assert all(torch.equal(value, weights(models / "one")[name]) for name, value in weights(tmp_path / "out").items())
    program.write_text("#!/bin/sh\necho no such method >&2\nexit 1\n")
    with pytest.raises(BadInput, match=r"refused the configuration \(no such method\)"):
        merge(made, models / "target", {"two": models / "two"}, tmp_path / "again")
    grafts.directory(tiny("llama", num_hidden_layers=3, vocab_size=320), grafts.bpe(), tmp_path / "short")
    program.write_text(f'#!/bin/sh\n/bin/cp -r {tmp_path}/short "$2"\n')
    with pytest.raises(BadInput, match="Expected mergekit to keep the target's tensors"):
        merge(made, models / "target", {"two": models / "two"}, tmp_path / "again")
