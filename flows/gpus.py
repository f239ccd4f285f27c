"""Which stages share this machine's GPUs, as a tag that a Prefect concurrency limit counts."""

import os
import platform
from pathlib import Path


def tag() -> str:
    """`gpu-HOST`: a limit of that name holds for this machine, whoever runs stages on it."""
    return f"gpu-{platform.node()}"


def present() -> bool:
    """Whether this process may use an NVIDIA GPU, as far as can be told without starting CUDA."""
    return os.environ.get("CUDA_VISIBLE_DEVICES", "all") not in ("", "-1") and any(Path("/dev").glob("nvidia[0-9]*"))
