"""What arithmetic generates is for ever: the donors that come with a clone learnt from it, and not from its test."""

import hashlib
import itertools
import json
from dataclasses import asdict

from stages.capabilities.arithmetic import DOMAIN


def digest(items) -> str:
    """Of all that the items say."""
    told = "".join(json.dumps(asdict(item), sort_keys=True) + "\n" for item in items)
    return hashlib.sha256(told.encode()).hexdigest()


def test_training_never_changes():
    drawn = itertools.islice(DOMAIN.stream(0), 3000)
    assert digest(drawn) == "d05cd1d00b75d55c07222cecc96e68654e9d5da9755952a440ef8f16f681568f"
    drawn = itertools.islice(DOMAIN.stream(7, 0.9), 500)
    assert digest(drawn) == "401e997ac9084664436f5a69f4d9827dbc2526269f8037bfa328a32e51cae15b"


def test_the_held_out_splits_never_change():
    test, calibration = DOMAIN.items("test", 1000, 0, 0.3), DOMAIN.items("calibration", 300, 0)
    assert digest(test) == "f471e4a8f8dcbd9c476905a5beccedefd2f19864ca95085930fc591040bcab7c"
    assert digest(calibration) == "156c106a8eb06bf7758668d7f27b7d52b2d518c8517884e92425f543aa79214d"
