import json
from pathlib import Path

import pytest

from stages.compose import Compose, compose, main
from stages.contrasts.own import own
from stages.errors import BadInput
from stages.storage import read_jsonl, write_jsonl

ROW = {"category": "world", "first": "Bees make", "second": "Cows give", "right": " honey.", "wrong": " milk."}
STILL = ROW | {"moves": False, "first": "Today bees make", "second": "Now bees make", "cluster": "bees"}
SHIPPED = Path(__file__).parents[2] / "data" / "sources" / "pairs.jsonl"


def test_own_pairs_are_read_as_they_stand(tmp_path):
    write_jsonl(tmp_path / "pairs.jsonl", [ROW, STILL])
    one, other = own(tmp_path / "pairs.jsonl", {"agreement"})
    assert one.moves and one.sides[1] == ("Cows give", " milk.", " honey.")
    assert not other.moves and other.sides[1] == ("Now bees make", " honey.", " milk.")
    assert (one.cluster, other.cluster) == ("world: Bees make", "world: bees")


@pytest.mark.parametrize(
    ("row", "sentence"),
    [
        ({key: value for key, value in ROW.items() if key != "wrong"}, "the key 'wrong' is missing, add it"),
        (ROW | {"rihgt": " x"}, "unknown key 'rihgt', did you mean 'right'?"),
        (ROW | {"right": ""}, "right: .*at least 1 character.*got ''"),
        (ROW | {"moves": "perhaps"}, "moves: .*got 'perhaps'"),
        (ROW | {"category": "My pairs"}, "category: .*got 'My pairs'"),
        (ROW | {"second": ROW["first"]}, "expected two prompts that differ, got 'Bees make' twice; change one"),
        (ROW | {"wrong": " honey"}, "neither begins with the other.*end both with a full stop"),
        (ROW | {"category": "agreement"}, "the category 'agreement' is generated already; give it another name"),
        (ROW | {"first": "Cows give", "second": "Bees make"}, "expected distinct pairs, got .* again; drop one"),
        (["no object"], "got \\['no object'\\]"),
    ],
)
def test_a_bad_line_is_named_in_one_sentence(tmp_path, row, sentence):
    write_jsonl(tmp_path / "pairs.jsonl", [ROW, row])
    with pytest.raises(BadInput, match=f"pairs.jsonl, line 2: .*{sentence}") as raised:
        own(tmp_path / "pairs.jsonl", {"agreement"})
    assert "\n" not in str(raised.value)


def test_a_line_that_is_no_json_is_named(tmp_path):
    (tmp_path / "pairs.jsonl").write_text(json.dumps(ROW) + "\n{first: }\n")
    with pytest.raises(BadInput, match=r"pairs.jsonl, line 2: expected a JSON object"):
        own(tmp_path / "pairs.jsonl", set())


def test_the_stage_writes_generated_pairs_and_own_ones_with_the_same_bytes(tmp_path):
    (tmp_path / "params.yaml").write_text("counterfactual: {pairs: {moving: 5, still: 3}}")
    for name in ("one", "again"):
        main(SHIPPED, tmp_path / name, tmp_path / "params.yaml")
    assert (tmp_path / "one").read_bytes() == (tmp_path / "again").read_bytes()
    rows, shipped = read_jsonl(tmp_path / "one"), read_jsonl(SHIPPED)
    assert len(rows) == len({row["id"] for row in rows}) == 5 * 8 + len(shipped)
    for category in ("agreement", "negation", "number", "entity", "operand"):
        assert [row["moves"] for row in rows if row["category"] == category] == [True] * 5 + [False] * 3


def test_operands_are_of_the_capabilities_that_are_named():
    settings = Compose(moving=2, still=1, capabilities=("letters", "units"))
    assert [c for c in dict.fromkeys(pair.category for pair in compose(settings)) if c.startswith("operand")] == [
        "operand_letters",
        "operand_units",
    ]
