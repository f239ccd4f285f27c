"""Experts that a mixture is made to prefer: a bias on its routers' logits, before the best experts are chosen."""

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from .call import Call


class RouterBias(nn.Module):
    """z ← z + b for the logits z of some of a model's routers, so that experts with b > 0 are chosen more often.

    Mixtral, Qwen2-MoE, Qwen3-MoE, OLMoE and Phi-MoE are meant: a router there is one linear map without a bias, and
    gives (logits, weights, indices). Such a map is odd, W(−x) = −Wx, so no W' has W'x = Wx + b for all states x: a
    bias cannot be folded into the weights, nor has the architecture a place for one, and so it travels as a part.
    """

    bias: torch.Tensor  # [routers, experts]

    def __init__(self, routers: list[str], experts: int):
        super().__init__()
        self.routers = routers  # dotted names in the target
        self.register_buffer("bias", torch.zeros(len(routers), experts))

    def attach(self, call: Call) -> None:
        """Takes hold of the target's routers for one pass; all zero, it changes no bit of any logit."""
        for name, bias in zip(self.routers, self.bias, strict=True):
            router = call.target.get_submodule(name)
            call.remake(router, lambda args, output, router=router, bias=bias: rerouted(router, args, output, bias))


def rerouted(router: nn.Module, args: tuple, output: tuple, bias: torch.Tensor) -> tuple:
    """What `router` makes of its logits plus `bias` [experts], where it made `output` of its logits alone.

    It is the router's own code that chooses and weighs, whatever its family does there.
    """
    if not bias.any():
        return output
    with _Raised(bias.to(output[0].device)):
        again = router.forward(*args)
    return tuple(new.to(old.dtype) for new, old in zip(again, output, strict=True))


class _Raised(TorchFunctionMode):
    """Inside the block every linear map gives its result plus `bias`; a router has one."""

    def __init__(self, bias: torch.Tensor):
        super().__init__()
        self.bias = bias.float()  # as 20 and a little more are the same in half precision

    def __torch_function__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        return result.float() + self.bias if func is nn.functional.linear else result
