"""What each gate lets through."""

import pytest
import torch

from stages.graft.gate import KINDS, Gate

WIDTH = 16
LEARNED = [kind for kind in KINDS if kind not in ("identity", "closed")]


def states(seed: int) -> torch.Tensor:
    return torch.randn(2, 5, WIDTH, generator=torch.Generator().manual_seed(seed))


def stirred(kind: str) -> Gate:
    gate = Gate(kind, WIDTH)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in gate.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return gate


def test_identity_is_one_and_closed_is_zero_and_neither_learns():
    for kind, amount in (("identity", 1.0), ("closed", 0.0)):
        gate = Gate(kind, WIDTH)
        assert gate(states(0), states(1)).tolist() == [amount]
        assert not list(gate.parameters())


@pytest.mark.parametrize(
    ("kind", "amount"),
    [("scalar", 0.5), ("sigmoid", 0.5), ("linear", 0.5), ("softmax", 1.0), ("token", 0.5), ("channel", 0.5)],
)
def test_a_learned_gate_starts_with_one_amount_for_everything(kind, amount):
    gate = Gate(kind, WIDTH)(states(0), states(1))
    assert torch.allclose(gate, torch.full_like(gate, amount), atol=1e-6)


@pytest.mark.parametrize(
    ("kind", "shape"),
    [("scalar", (1,)), ("sigmoid", (WIDTH,)), ("linear", (WIDTH,)), ("softmax", (WIDTH,)), ("token", (2, 5, 1)),
     ("channel", (2, 5, WIDTH))],
)  # fmt: skip
def test_amounts_are_a_scalar_a_channel_a_token_or_both(kind, shape):
    assert stirred(kind)(states(0), states(1)).shape == shape


@pytest.mark.parametrize("kind", ["scalar", "sigmoid", "token", "channel"])
def test_sigmoid_amounts_lie_from_zero_to_one(kind):
    amount = stirred(kind)(states(0), states(1))
    assert ((amount >= 0) & (amount <= 1)).all()


def test_softmax_shares_out_as_much_as_an_open_gate_lets_through():
    assert stirred("softmax")(states(0), states(1)).sum().item() == pytest.approx(WIDTH, rel=1e-5)


@pytest.mark.parametrize("kind", ["token", "channel"])
def test_what_a_token_gets_depends_on_the_direction_of_its_own_states_alone(kind):
    gate, h, x = stirred(kind), states(0), states(1)
    amount = gate(h, x)
    assert torch.allclose(gate(40 * h + 3, 7 * x - 1), amount, atol=1e-4)
    order = torch.tensor([3, 1, 4, 0, 2])
    assert torch.allclose(gate(h[:, order], x[:, order]), amount[:, order], atol=1e-6)
    assert not torch.allclose(gate(states(2), x), amount, atol=1e-2)
    assert not torch.allclose(gate(h, states(2)), amount, atol=1e-2)


@pytest.mark.parametrize("kind", ["token", "channel"])
def test_it_learns_to_open_for_some_states_and_close_for_others(kind):
    torch.manual_seed(0)
    gate, wanted = Gate(kind, WIDTH), torch.tensor([1.0, 0.0, 1.0, 0.0, 0.0])[None, :, None]
    optimizer = torch.optim.Adam(gate.parameters(), lr=0.05)
    for _ in range(150):
        optimizer.zero_grad()
        (gate(states(0)[:1], states(1)[:1]) - wanted).square().mean().backward()
        optimizer.step()
    assert (gate(states(0)[:1], states(1)[:1]) - wanted).abs().max() < 0.1


@pytest.mark.parametrize("kind", LEARNED)
def test_every_weight_of_a_learned_gate_receives_a_gradient(kind):
    gate = stirred(kind)
    (gate(states(0), states(1)) * states(2)).sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in gate.parameters())


@pytest.mark.parametrize("kind", KINDS)
def test_a_gate_that_is_a_sigmoid_can_be_shut_at_first(kind):
    gate, before = Gate(kind, WIDTH), Gate(kind, WIDTH)(states(0), states(1))
    gate.shut()
    shut = torch.full_like(before, 0.018) if kind in ("scalar", "sigmoid", "token", "channel") else before
    assert torch.allclose(gate(states(0), states(1)), shut, atol=1e-3)


def test_an_unknown_kind_is_refused_with_the_valid_ones():
    with pytest.raises(ValueError, match=r"identity, closed, scalar.*got 'tokens'"):
        Gate("tokens", WIDTH)
