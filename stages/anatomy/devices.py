"""Several processes or several devices for one model."""

import os

import torch
from torch import distributed
from transformers import PreTrainedModel


def join() -> tuple[int, int]:
    """This process's number and how many there are, as `accelerate launch` and `torchrun` say; (0, 1) without them.

    The processes only wait for each other, so their group is gloo's on any device.
    """
    count = int(os.environ.get("WORLD_SIZE", "1"))
    if count > 1 and not distributed.is_initialized():
        distributed.init_process_group("gloo")
    return share()


def share() -> tuple[int, int]:
    """This process's number and how many there are."""
    if not (distributed.is_available() and distributed.is_initialized()):
        return 0, 1
    return distributed.get_rank(), distributed.get_world_size()


def together() -> None:
    """Waits until every process has come here."""
    if share()[1] > 1:
        distributed.barrier()


def own_device() -> str | None:
    """The GPU of this process when there are several; None where the choice is free."""
    several = share()[1] > 1 and torch.cuda.is_available()
    return f"cuda:{int(os.environ.get('LOCAL_RANK', '0')) % torch.cuda.device_count()}" if several else None


def spread(model: PreTrainedModel) -> PreTrainedModel:
    """`model` with its blocks on all GPUs, and on the CPU what they cannot hold, as accelerate's `device_map` does."""
    from accelerate import dispatch_model, infer_auto_device_map

    undivided = sorted(model._no_split_modules or ())
    return dispatch_model(model, infer_auto_device_map(model, no_split_module_classes=undivided))


def entry_of(model: PreTrainedModel) -> torch.device:
    """Where `model` wants its token ids: beside its embedding, or where accelerate brings that for a pass."""
    embedding = model.get_input_embeddings()
    chosen = getattr(getattr(embedding, "_hf_hook", None), "execution_device", None)
    return torch.device(chosen) if chosen is not None else next(embedding.parameters()).device
