"""Experts that a mixture is made to prefer: a bias on its routers' logits, before the best experts are chosen."""

from collections.abc import Callable

import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils.hooks import RemovableHandle


class RouterBias(nn.Module):
    """z ← z + b for the logits z of some of a model's routers, so that experts with b > 0 are chosen more often.

    Mixtral, Qwen2-MoE, Qwen3-MoE, OLMoE and Phi-MoE are meant: a router there is one linear map without a bias, and
    gives (logits, weights, indices). Such a map is odd, W(−x) = −Wx, so no W' has W'x = Wx + b for all states x: a
    bias cannot be folded into the weights, nor has the architecture a place for one, and so it travels as a part.
    """

    def __init__(self, routers: list[str], experts: int):
        super().__init__()
        self.given = {"routers": routers, "experts": experts}  # dotted names in the model, experts of each
        self.register_buffer("bias", torch.zeros(len(routers), experts))

    def hold(self, model: nn.Module) -> list[RemovableHandle]:
        """Biases the routers of `model` until the handles are removed; all zero, it changes no bit of any logit."""
        named = zip(self.given["routers"], self.bias, strict=True)
        return [model.get_submodule(name).register_forward_hook(_biased(bias)) for name, bias in named]


def _biased(bias: torch.Tensor) -> Callable:
    """A hook that gives what the router makes of its logits plus `bias` [experts]."""
    silent = not bias.any()

    def hook(router: nn.Module, args: tuple, output: tuple) -> tuple | None:
        if silent:
            return None
        with _Added(bias.to(output[0].device)):  # in float32: 20 plus a small difference is 20 in bfloat16
            again = router.forward(*args)
        return tuple(new.to(old.dtype) for new, old in zip(again, output, strict=True))

    return hook


class _Added(TorchFunctionMode):
    """Inside the block every linear map gives its result plus `bias`; a router has one."""

    def __init__(self, bias: torch.Tensor):
        super().__init__()
        self.bias = bias

    def __torch_function__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        return result.float() + self.bias if func is nn.functional.linear else result
