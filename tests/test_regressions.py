"""What got worse is listed item by item, with the words that were asked and answered."""

import json

import pytest
from synthetic import items, params

from stages import regressions as stage
from stages.errors import BadInput
from stages.storage import read_jsonl

HOSTILE = "</script><b>‮🙂</b>"


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    root = tmp_path_factory.mktemp("regressions")
    params(root)
    frames = {name: items(name) for name in ("target", "sibling", "random_transplant", "closed_gate")}
    for name, rows in frames.items():
        rows = rows.assign(answered=f"{name} says {HOSTILE}", split="test")
        rows.loc[rows.index[:40], "split"] = "calibration"
        (root / "evaluation" / name).mkdir(parents=True)
        rows.to_parquet(root / "evaluation" / name / "items.parquet", index=False)
        frames[name] = rows.loc[rows["split"] == "test"]
    write(root / "prompts" / "capability" / "test.jsonl",
          [{"id": f"test-{i:05d}", "prompt": f"ask {i}", "answer": f" {i}."} for i in range(300)])  # fmt: skip
    asked = {"question": f"Why {HOSTILE}?", "choices": ["a", "b"], "answer": 1}
    write(root / "prompts" / "retention" / "questions.jsonl", [{"id": f"q{i:03d}"} | asked for i in range(120)])
    stage.main(root / "evaluation", root / "prompts", root / "out", root / "params.yaml")
    return root, frames


def write(path, rows):
    path.parent.mkdir(parents=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_exactly_the_items_are_listed_that_the_target_has_right_and_the_variant_wrong(made):
    root, frames = made
    ours, theirs = (
        frames[name].set_index(["task", "id"]).right.dropna().astype(int) for name in ("random_transplant", "target")
    )
    wanted = sorted(theirs.index[theirs - ours == 1])
    told = (root / "out" / "random_transplant.jsonl").read_text().splitlines()
    assert [(row["task"], row["id"]) for row in map(json.loads, told)] == wanted != []


def test_a_variant_that_differs_nowhere_has_none(made):
    assert (made[0] / "out" / "closed_gate.jsonl").read_text() == ""


def test_only_variants_that_were_evaluated_have_a_list(made):
    assert {path.stem for path in (made[0] / "out").iterdir()} == {"random_transplant", "closed_gate"}


def test_a_row_tells_what_was_asked_and_what_both_answer(made):
    target = items("target").assign(answered="four")
    variant = target.assign(answered=HOSTILE)
    index = target.index[(target.task == "retention") & target.right.fillna(False)][0]
    variant.loc[index, "right"] = False
    (row,) = stage.regressions(target, variant, stage.questions(made[0] / "prompts"))
    assert row == {"task": "retention", "id": target.id[index], "prompt": f"Why {HOSTILE}?", "expected": "b",
                   "target": "four", "variant": HOSTILE}  # fmt: skip


def test_items_of_further_tasks_tell_their_own_words_and_what_nobody_told_is_none():
    target = (
        items("target").query("task == 'retention'").assign(task="mmlu", prompt="Which?", right=True, answered=None)
    )
    variant = target.assign(right=[False, *[True] * (len(target) - 1)])
    (row,) = stage.regressions(target, variant, {})
    assert (row["prompt"], row["expected"], row["target"], row["variant"]) == ("Which?", None, None, None)


def test_the_same_input_gives_the_same_bytes(made, tmp_path):
    root, _ = made
    stage.main(root / "evaluation", root / "prompts", tmp_path / "again", root / "params.yaml")
    for path in (root / "out").iterdir():
        assert (tmp_path / "again" / path.name).read_bytes() == path.read_bytes()
    assert all(read_jsonl(path) for path in (root / "out").iterdir() if path.stat().st_size)


def test_nothing_is_listed_without_the_target(made, tmp_path):
    with pytest.raises(BadInput, match="items of the target"):
        stage.main(tmp_path, made[0] / "prompts", tmp_path / "out", made[0] / "params.yaml")
