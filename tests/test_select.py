"""The frontier: what is judged, beside what chance, at what cost, and the same bytes every time."""

import json

import pandas as pd
import pytest
import torch

from stages.anatomy.encoding import answers_of, encode, texts_of
from stages.anatomy.outcomes import Judge
from stages.anatomy.strengths import mixing
from stages.errors import BadInput
from stages.maths.statistics import Bootstrap, draw
from stages.search import STEP, Found
from stages.select import Select, Selection, judged, main, pieces, selections
from stages.storage import read_json
from tests.families import saved, tiny, token_ids, tokenizer

SETTINGS = Select(points=3, sizes=(0.25, 0.5), draws=2)
SIZES = torch.tensor([4, 4, 4, 4, 9, 9, 9, 9])


def steps(count: int = 10) -> list[Found]:
    """A descent that gives up one part after the other, the last first."""
    made = []
    for step in range(count):
        strengths = (torch.linspace(1.0, 0.3, 8) - step / count).clamp(0, 1)
        gain, harm = torch.arange(8.0).double(), torch.tensor([1e-9, 1, 1, 1, 1, 100, 100, 100]).double()
        made.append(Found(1.0 + step, strengths, 1.0, 1.0, gain, harm))
    return made


def test_every_selection_of_our_own_stands_beside_its_random_control():
    made = list(selections(SETTINGS, steps(), SIZES))
    for method, count in (("strengths", 3), ("subset", 2)):
        own = [each for each in made if each.method == method]
        chance = [each for each in made if each.method == f"random {method}"]
        assert (len(own), len(chance)) == (count, count * SETTINGS.draws)
        for index, control in enumerate(chance):
            beside = own[index // SETTINGS.draws]
            for size in (4, 9):
                pair = [each.strengths[size == SIZES].sort().values for each in (control, beside)]
                assert torch.equal(*pair), "as many parameters move as far"
    assert [each.strengths[0].item() for each in made if each.method in ("target", "all", "donor")] == [
        0.0, pytest.approx(0.8), 1.0,
    ]  # fmt: skip


def test_subsets_keep_what_the_descent_kept_and_foils_follow_the_first_slopes():
    made = {(each.method, int((each.strengths > 0).sum())): each for each in selections(SETTINGS, steps(), SIZES)
            if each.method in ("subset", "gain", "gain over harm")}  # fmt: skip
    taken = {key: each.strengths.nonzero()[:, 0].tolist() for key, each in made.items()}
    assert taken == {
        ("subset", 2): [0, 1], ("subset", 4): [0, 1, 2, 3], ("gain", 2): [6, 7], ("gain", 4): [4, 5, 6, 7],
        ("gain over harm", 2): [3, 4], ("gain over harm", 4): [1, 2, 3, 4],
    }  # fmt: skip
    assert all(each.strengths.max().item() == pytest.approx(0.8) for each in made.values())


def test_passes_are_those_of_the_steps_that_led_there():
    made = list(selections(SETTINGS, steps(), SIZES))
    assert [each.passes for each in made if each.method == "strengths"] == [STEP * 4, STEP * 7, STEP * 10]
    assert {each.passes for each in made if each.method == "subset"} == {STEP * 10}
    assert {each.passes for each in made if each.method.startswith("random")} == {0}


def test_the_ends_of_the_frontier_are_target_and_donor():
    target, donor = tiny("llama"), tiny("llama", seed=1)
    answers = encode(tokenizer(), [(f"{a} + {a * 7} =", f" {a * 8}.") for a in (1, 2, 30, 41)])
    texts = [token_ids(1, length, seed=length)[0].tolist() for length in (9, 4, 14)]
    judge = Judge(target, answers_of(answers, 99), texts_of(texts, 99))
    draws = {"prompts": draw(range(4), Bootstrap(200)), "texts": draw(range(3), Bootstrap(200))}
    plain = judge.outcome(target)
    with mixing(target, donor, channels=8) as mixture:
        rows = [judged(mixture, judge, Selection(m, torch.full((len(mixture.names),), s), 7), draws)
                for m, s in (("target", 0.0), ("donor", 1.0))]  # fmt: skip
    assert rows[0]["divergence"] == pytest.approx(0, abs=1e-6) and rows[1]["divergence"] > 0.1
    assert rows[0]["capability"] == pytest.approx(plain.loglikelihood.mean().item())
    assert (rows[0]["size"], rows[1]["size"], rows[1]["parameters"]) == (0, len(mixture.names), mixture.sizes.sum())
    assert rows[1]["divergence_low"] <= rows[1]["divergence"] <= rows[1]["divergence_high"]
    assert (rows[1]["passes"], rows[1]["prompts"], rows[1]["texts"]) == (7, 4, 3)


def test_pieces_hold_every_token_that_follows_once():
    found = pieces([list(range(25)), [1, 2], list(range(9))], 8)
    assert [each[1:] for each in found[:3]] == [list(range(1, 9)), list(range(9, 17)), list(range(17, 25))]
    assert found[3:] == [list(range(9))]


def test_the_stage_writes_the_same_bytes_every_time_and_restarts_after_a_kill(tmp_path):
    items = [{"prompt": f"{a} + 1 =", "answer": f" {a + 1}"} for a in range(12)]
    texts = [{"text": f"A text number {a} to be kept as it is, and read."} for a in range(6)]
    for name, rows in (("items", items), ("texts", texts)):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "params.yaml").write_text(
        "select: {steps: 3, prompts: 4, texts: 2, piece: 8, points: 2, channels: 16, check_prompts: 5, resamples: 100}"
    )
    target, donor = (saved(tiny("llama", seed=seed), tmp_path / str(seed)) for seed in (0, 1))
    rest = (tmp_path / "items.jsonl", tmp_path / "texts.jsonl")
    (tmp_path / "b.partial").mkdir()
    (tmp_path / "b.partial" / "half").write_text("half a file of a killed run")
    for name in ("a", "b"):
        main(target, donor, *rest, tmp_path / name, tmp_path / "params.yaml")
    files = sorted(path.name for path in (tmp_path / "a").iterdir())
    assert files == ["descent.json", "frontier.parquet", "strengths.json"]
    assert all((tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes() for name in files)
    frontier, strengths = pd.read_parquet(tmp_path / "a" / "frontier.parquet"), read_json(tmp_path / "a/strengths.json")
    assert list(frontier.id) == list(range(len(strengths)))
    assert [len(each) for each in strengths] == frontier["size"].tolist()
    assert set(frontier.prompts) == {5}
    (tmp_path / "same").mkdir()
    with pytest.raises(BadInput, match="Expected a donor that differs from the target, got the same weights"):
        main(target, target, *rest, tmp_path / "same" / "out", tmp_path / "params.yaml")
    assert not (tmp_path / "same" / "out").exists()


def test_settings_name_what_is_wrong():
    with pytest.raises(ValueError, match="two prices above 0, the second not below the first"):
        Select(prices=(2.0, 1.0))
