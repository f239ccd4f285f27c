"""Embeddings from a donor's: nothing moves from itself, a turned space is turned back, new tokens are whole."""

import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM, AutoTokenizer

from stages.anatomy.additions import add_tokens, lacking
from stages.anatomy.correspondence import HOW, corresponding
from stages.anatomy.embeddings import fit, spelled
from stages.anatomy.loading import load, load_tokenizer
from stages.embed import embed, main
from stages.errors import BadInput
from stages.recipes.embeddings import EmbeddingsRecipe
from stages.specialize import character_tokenizer
from stages.storage import read_json
from tests import grafts
from tests.families import FAMILIES, tiny, token_ids

IDS = token_ids()
TIED = [family for family in FAMILIES if tiny(family).config.get_text_config().tie_word_embeddings]


def recipe(**given) -> EmbeddingsRecipe:
    return EmbeddingsRecipe.model_validate({"donor": "d"} | given)


def model_of(family: str = "llama", seed: int = 0, **given):
    return tiny(family, seed, vocab_size=given.pop("vocab_size", grafts.VOCABULARY), **given)


def fresh():
    """A tokenizer of its own, that a test may add tokens to."""
    return grafts.bpe.__wrapped__()


def logits(model, ids=IDS) -> torch.Tensor:
    return model(input_ids=ids, use_cache=False).logits


def table(model) -> torch.Tensor:
    return model.get_input_embeddings().weight


@pytest.mark.parametrize("bridge", ["identity", "orthogonal", "similarity"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_model_s_own_embeddings_change_no_logit(family, bridge):
    model, plain = model_of(family), logits(model_of(family))
    told = embed(recipe(bridge=bridge), model, model_of(family), fresh(), fresh())
    torch.testing.assert_close(logits(model), plain, rtol=0, atol=1e-5)
    assert told["tables"] == (1 if family in TIED else 2) and told["tokens_exact"] == grafts.VOCABULARY - 3
    assert told["tokens_moved"] == told["tokens_exact"] and told["tokens_role"] == 3
    assert told["input_cosine"] == pytest.approx(1, abs=1e-6) and told["input_r2"] == pytest.approx(1, abs=1e-6)
    assert told["rows_fit"] == 254 and told["rows_held_out"] == 63


@pytest.mark.parametrize("bridge", ["orthogonal", "ridge"])
def test_a_donor_whose_space_is_turned_and_wider_is_turned_back(bridge):
    model, donor, plain = model_of(), model_of(hidden_size=48), logits(model_of())
    turn = torch.linalg.qr(torch.randn(48, 32, generator=torch.Generator().manual_seed(0)))[0].T
    table(donor).data, donor.lm_head.weight.data = table(model) @ turn, model.lm_head.weight @ turn
    told = embed(recipe(bridge=bridge, ridge=1e-9), model, donor, fresh(), fresh())
    assert told["input_r2"] == pytest.approx(1, abs=1e-5) and told["output_cosine"] == pytest.approx(1, abs=1e-5)
    torch.testing.assert_close(logits(model), plain, rtol=0, atol=1e-3)


def test_unrelated_embeddings_agree_no_better_than_chance():
    told = embed(recipe(), model_of(), model_of(seed=1), fresh(), fresh())
    assert abs(told["input_cosine"] or 1) < 0.2 and (told["input_r2"] or 1) < 0


def test_strength_goes_from_the_target_to_the_donor_and_special_tokens_stay():
    before, donor = table(model_of()).clone(), table(model_of(seed=1))
    model = model_of()
    embed(recipe(bridge="identity", strength=0.25), model, model_of(seed=1), fresh(), fresh())
    torch.testing.assert_close(table(model)[3:], before[3:] + 0.25 * (donor[3:] - before[3:]))
    assert torch.equal(table(model)[:3], before[:3])


@pytest.mark.parametrize(("tables", "moved"), [(["input"], (True, False)), (["output"], (False, True))])
def test_one_table_can_be_moved_alone(tables, moved):
    model, plain = model_of(), model_of()
    embed(recipe(bridge="identity", tables=tables), model, model_of(seed=1), fresh(), fresh())
    changed = (not torch.equal(table(model), table(plain)), not torch.equal(model.lm_head.weight, plain.lm_head.weight))
    assert changed == moved


def test_random_vectors_are_as_long_as_the_donor_s_and_point_elsewhere():
    drawn, given = model_of(), model_of()
    for model, vectors in ((drawn, "random"), (given, "donor")):
        embed(recipe(vectors=vectors), model, model_of(seed=1), fresh(), fresh())
    ours, theirs = table(drawn)[3:], table(given)[3:]
    torch.testing.assert_close(ours.norm(dim=1), theirs.norm(dim=1))
    assert torch.cosine_similarity(ours, theirs).mean().abs() < 0.1


def test_a_token_of_many_is_the_mean_of_those_that_spell_it():
    target, donor = fresh(), character_tokenizer()
    vectors = torch.randn(len(donor), 8, generator=torch.Generator().manual_seed(0))
    found = corresponding(target, donor)
    made = spelled(found, vectors)
    many = [t for t in range(len(target)) if HOW[found.how[t]] == "decomposed"]
    assert many
    for token in many:
        torch.testing.assert_close(made[token], vectors[found[token]].mean(0))
    assert not made[found.how == HOW.index("missing")].any()


@pytest.mark.parametrize("family", FAMILIES)
def test_new_tokens_have_rows_in_every_table_and_leave_the_others_logits(family, tmp_path):
    model, donor, tokenizer = model_of(family), model_of(family, seed=1), fresh()
    plain, rows = logits(model_of(family)), table(model_of(family)).clone()
    pieces = tokenizer(" zebra").input_ids
    told = embed(recipe(ways=[], add=[" zebra", "42."], strength=0.5), model, donor, tokenizer, fresh())
    assert tokenizer("A zebra").input_ids == [*tokenizer("A").input_ids, grafts.VOCABULARY]
    assert tokenizer.decode([grafts.VOCABULARY + 1]) == "42."
    assert (told["tokens_added"], told["tokens_moved"], told["added_from_pieces"]) == (2, 2, 0)
    assert len(table(model)) == grafts.VOCABULARY + 2 == model.config.get_text_config().vocab_size
    torch.testing.assert_close(logits(model)[..., :-2], plain, rtol=0, atol=1e-5)
    assert not torch.allclose(table(model)[-2], rows[pieces].mean(0), atol=1e-3)
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    again, reread = AutoModelForCausalLM.from_pretrained(tmp_path).eval(), AutoTokenizer.from_pretrained(tmp_path)
    assert reread("A zebra").input_ids == tokenizer("A zebra").input_ids
    ids = torch.tensor([tokenizer("A zebra says 42.").input_ids])
    assert torch.equal(logits(again, ids), logits(model, ids))


def test_a_new_token_at_no_strength_is_the_mean_of_its_pieces_and_at_full_the_donor_s():
    pieces, donor = fresh()(" zebra").input_ids, model_of(seed=1, vocab_size=grafts.VOCABULARY + 1)
    with_it = fresh()
    add_tokens(with_it, [" zebra"])
    for strength, bridge in ((0.0, "orthogonal"), (1.0, "identity")):
        model = model_of()
        embed(recipe(ways=[], add=[" zebra"], strength=strength, bridge=bridge), model, donor, fresh(), with_it)
        expected = table(model_of())[pieces].mean(0) if not strength else table(donor)[-1]
        torch.testing.assert_close(table(model)[-1], expected)


def test_a_new_token_that_the_donor_cannot_spell_is_the_mean_of_its_pieces():
    model, donor = model_of(), model_of(seed=1, vocab_size=len(character_tokenizer()))
    told = embed(recipe(ways=[], add=[" ☂"]), model, donor, fresh(), character_tokenizer())
    assert (told["added_from_pieces"], told["tokens_moved"]) == (1, 0)
    torch.testing.assert_close(table(model)[-1], table(model_of())[fresh()(" ☂").input_ids].mean(0))


def test_rows_to_spare_are_used_before_the_tables_grow():
    model = model_of(vocab_size=grafts.VOCABULARY + 8)
    embed(recipe(ways=[], add=["zebra"]), model, model_of(), fresh(), fresh())
    assert len(table(model)) == grafts.VOCABULARY + 8


def test_the_donor_s_own_tokens_are_added_as_they_come():
    target, donor = character_tokenizer(), fresh()
    texts = lacking(target, donor, 5)
    told = corresponding(donor, target)
    spelt = [donor.decode([t]) for t in range(len(donor)) if HOW[told.how[t]] == "decomposed"]
    assert texts == spelt[:5]
    model = model_of(vocab_size=len(target))
    figures = embed(recipe(ways=[], add="donor", most=5), model, model_of(seed=1), target, donor)
    assert figures["tokens_added"] == figures["tokens_moved"] == 5
    assert target(texts[0]).input_ids == [len(character_tokenizer())]


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"bridge": "identity"}, "equal width for bridge: identity, got 48 and 32"),
        ({"add": ["a"]}, "tokens that the target's tokenizer lacks, got 'a', which it has"),
        ({"add": [""]}, "got an empty one"),
        ({"add": ["née"]}, "can write, got 'née', which it would write as"),
        ({"add": "donor"}, "a donor with tokens that the target lacks, got none"),
    ],
)
def test_what_cannot_be_done_is_refused_before_anything_changes(given, says):
    model, tokenizer = model_of(), fresh()
    with pytest.raises(BadInput, match=says):
        embed(recipe(**given), model, model_of(hidden_size=48), tokenizer, fresh())
    assert torch.equal(logits(model), logits(model_of())) and len(tokenizer) == grafts.VOCABULARY


def test_vocabularies_with_too_little_in_common_are_refused():
    rows = torch.randn(10, 4)
    with pytest.raises(BadInput, match="at least 16 tokens.*exactly alike, got 10; these tokenizers cannot be aligned"):
        fit(rows, rows, "orthogonal", 0.01, 0.2, 0)


@pytest.mark.parametrize("given", [{"tables": []}, {"ways": []}, {"add": ["a", "a"]}, {"strength": 1.5}])
def test_settings_that_make_no_sense_are_refused(given):
    with pytest.raises(ValueError, match="nothing would change|names a token twice|strength"):
        recipe(**given)


def test_a_graft_is_a_plain_model_directory_with_its_own_tokenizer(tmp_path):
    target, donor = grafts.target(tmp_path), grafts.characters(tmp_path)
    section = {"e": recipe(ways=["exact", "decomposed"], add=["zebra"]).model_dump(mode="json")}
    (tmp_path / "params.yaml").write_text(yaml.safe_dump({"embed": section}))
    for name in ("out", "again"):
        main("e", target, donor, tmp_path / name, tmp_path / f"{name}.json", tmp_path / "params.yaml")
    assert (tmp_path / "out.json").read_bytes() == (tmp_path / "again.json").read_bytes()
    out, again = (sorted((tmp_path / name).iterdir()) for name in ("out", "again"))
    assert [p.read_bytes() for p in out] == [p.read_bytes() for p in again]
    told = read_json(tmp_path / "out.json")
    assert told["way"] == "embed" and told["parameters"]["added"] == 2 * 32
    assert told["parameters"]["moved"] == told["figures"]["tokens_moved"] * 2 * 32
    graft = load(tmp_path / "out")
    assert len(table(graft)) == len(load_tokenizer(tmp_path / "out")) == grafts.VOCABULARY + 1
