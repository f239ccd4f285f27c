"""A condition fitted on kept early states, so that a donor runs only where its gate will open."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch.nn.functional import layer_norm, softplus

from stages.errors import BadInput
from stages.graft.condition import Condition
from stages.openings import openings
from stages.recipes.blade import Conditional, Parts
from stages.train_gates import Kept

STEPS, RATE, DECAY = 300, 0.01, 1e-3


@dataclass(frozen=True)
class Evidence:
    """What a condition has to tell apart."""

    opened: list[torch.Tensor]
    """[tokens, width], early states of each text in which the gate opens, up to where it first does."""
    closed: list[torch.Tensor]
    """[tokens, width], of each text in which it never does."""


def evidence(parts: Parts, kept: Sequence[Kept], opens: float) -> Evidence:
    """Early states by whether a gate lets `opens` or more through, after the layer norm."""
    opened, closed = [], []
    for k, amounts in zip(kept, openings(parts, kept), strict=True):
        assert k.early is not None
        states = layer_norm(k.early.clone(), k.early.shape[-1:])
        wide = (amounts >= opens).any(dim=1).nonzero()[:, 0].tolist()
        (opened if wide else closed).append(states[: wide[0] + 1] if wide else states)
    return Evidence(opened, closed)


def fit(condition: Condition, seen: Evidence, calibration: Evidence, recall: float) -> dict[str, float | None]:
    """Fits w and b in place, in the precision of exports; gives how it does on either.

    w: logistic regression where a text counts by its greatest evidence, as the condition decides, and where each token
    of a text that stays closed counts too, since there are few such texts. b: the greatest threshold that lets the
    asked share of the calibration's opened texts through before the gate opens; where the closed texts' greatest
    evidence lies below it, half way between. Raises BadInput where the gate opens in no text, or in all.
    """
    for name, texts in (("opens", seen.opened), ("stays shut", seen.closed), ("opens", calibration.opened)):
        if not texts:
            which = "a calibration prompt" if texts is calibration.opened else "a training prompt or text"
            raise BadInput(f"Expected {which} in which the gate {name}, got none; drop the condition or train longer.")
    condition.read.weight.data.zero_()
    condition.read.bias.data.zero_()
    weight, bias = condition.read.weight, condition.read.bias
    optimizer = torch.optim.Adam([weight, bias], lr=RATE)
    with torch.enable_grad():
        for _ in range(STEPS):
            optimizer.zero_grad(set_to_none=True)
            shut = torch.cat(seen.closed) @ weight[0] + bias
            loss = softplus(-_greatest(seen.opened, weight, bias)).mean() + softplus(shut).mean()
            loss = loss + softplus(_greatest(seen.closed, weight, bias)).mean() + DECAY * weight.square().sum()
            loss.backward()
            optimizer.step()
    with torch.no_grad():
        weight.copy_(weight.to(torch.bfloat16))
        low, high = (_greatest(texts, weight, bias) for texts in (seen.closed, calibration.opened))
        kept = high.sort().values[int((1 - recall) * len(high) + 1e-9)]
        threshold = torch.minimum(kept, (kept + low.max()) / 2)
        bias.copy_(_rounded_up(bias - threshold))
        return {
            "recall": _share(_greatest(calibration.opened, weight, bias)),
            "calibration_opened": float(len(calibration.opened)),
            "opened_in_training": float(len(seen.opened)),
            "closed_in_training": float(len(seen.closed)),
            "closed_let_through": _share(_greatest(seen.closed, weight, bias)),
        }


def _greatest(texts: Sequence[torch.Tensor], weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """[texts], the greatest evidence in each."""
    every = torch.cat(list(texts)) @ weight[0] + bias
    return torch.stack([each.amax() for each in every.split([len(text) for text in texts])])


def _share(evidence: torch.Tensor) -> float:
    return (evidence > 0).float().mean().item()


def _rounded_up(value: torch.Tensor) -> torch.Tensor:
    """The next number of bfloat16 above `value`, so that what lies at the threshold gets through."""
    return torch.nextafter(value.to(torch.bfloat16), torch.full_like(value, torch.inf, dtype=torch.bfloat16))
