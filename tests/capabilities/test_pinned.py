"""What a domain generates is for ever: the donors that come with a clone learnt from it, and not from its test."""

import hashlib
import itertools
import json
from dataclasses import asdict

import pytest

from stages.capabilities.domains import DOMAINS

PINNED = {
    "arithmetic": {
        "stream": "d05cd1d00b75d55c07222cecc96e68654e9d5da9755952a440ef8f16f681568f",
        "framed": "401e997ac9084664436f5a69f4d9827dbc2526269f8037bfa328a32e51cae15b",
        "test": "f471e4a8f8dcbd9c476905a5beccedefd2f19864ca95085930fc591040bcab7c",
        "calibration": "156c106a8eb06bf7758668d7f27b7d52b2d518c8517884e92425f543aa79214d",
    },
    "units": {
        "stream": "ecd84c522b478203bcdd3fee8fe540cfcf01af38ee57f058c3dc16d36ed4e520",
        "framed": "077037d58c26d45e9cb5628f0fd8ad06d86518a631d0ddf9ec90fbf5936c5616",
        "test": "b01ad8ab76e21b0cd14fe8a471e1a13a854494ba81fe8d4dc2251097144b54ed",
        "calibration": "3b471b63b7a9d8247aee5c5b79b8125d3e545038b207e8c3af6447ce72c2550e",
    },
    "dates": {
        "stream": "18c1b567d778464d736b29fe6b93dfb0d4b6a2a720a6636d15e9b95616a8ca7a",
        "framed": "2435f596ca22bbe3782e7c1881e3a3a43a2d4116bd1d9e3422f02fd6feab815f",
        "test": "211832b5fbdb6c928e0b24df0ee71ff0abf9fcdb02f100834231020d349c1e49",
        "calibration": "f90c7ed3b9d3365e43f80b8e082fed5079bf25bd240b00d941c782d5a0f4e259",
    },
    "letters": {
        "stream": "2bd89d4a8d9c0a8a7aa71e34df06549e6292b4755ffcec8966e4cfd3989db6bb",
        "framed": "b3d47896fdcf91e8f152aaa825be6020db7003e681037aab4c86af6f0465a9d9",
        "test": "dd9128f75c65e720aeed0747d9d3b1eccf6062b81f9b74d1d022704bfc81a12f",
        "calibration": "ed8bfcbed266bf822f5a6ba3bebc67f9861c761616caf25c5023ae5a09793641",
    },
}


def digest(items) -> str:
    """Of all that the items say."""
    told = "".join(json.dumps(asdict(item), sort_keys=True) + "\n" for item in items)
    return hashlib.sha256(told.encode()).hexdigest()


@pytest.mark.parametrize("name", DOMAINS)
def test_what_a_domain_generates_never_changes(name):
    domain = DOMAINS[name]
    assert {
        "stream": digest(itertools.islice(domain.stream(0), 3000)),
        "framed": digest(itertools.islice(domain.stream(7, 0.9), 500)),
        "test": digest(domain.items("test", 1000, 0, 0.3)),
        "calibration": digest(domain.items("calibration", 300, 0)),
    } == PINNED[name]
