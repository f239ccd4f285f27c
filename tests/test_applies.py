"""The table of what applies where is what trying every way on every family finds."""

import pytest

from tests.applies import PAGE, found, page
from tests.families import FAMILIES, MIXTURES

EXPERTS = {"implanted expert", "router bias", "expert swap"}
GATED = ("llama", "mistral", "olmo2", "phi3", "qwen2", "qwen3", "stablelm")
"""Dense families whose MLP is what a Mixtral's expert is: two maps and a gate, silu, no biases."""

pytestmark = pytest.mark.filterwarnings("ignore:fan_in_fan_out is set:UserWarning")  # PEFT corrects it for Conv1D


@pytest.mark.parametrize("family", FAMILIES)
def test_all_but_ways_with_experts_apply_to_dense_families_and_all_but_dense_ones_to_mixtures(family):
    refused = {way for way, reason in found(family).items() if reason != "yes"}
    if family in MIXTURES:
        assert refused == {"FFN projection", "MLP as an expert"}
    else:
        assert refused == EXPERTS | ({"MLP as an expert"} if family not in GATED else set())


@pytest.mark.timeout(1200)  # alone it tries all families, where the others have not done so before it
def test_the_page_says_what_is_found():
    assert PAGE.read_text() == page(), "run `python -m tests.applies` and commit docs/families.md"
