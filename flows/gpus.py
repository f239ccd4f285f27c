"""Which stages share this machine's GPUs, as a tag that a Prefect concurrency limit counts."""

import os
import platform
from pathlib import Path


def tag() -> str:
    """`gpu-HOST`: a limit of that name holds for this machine, whoever runs stages on it."""
    return f"gpu-{platform.node()}"


def present() -> bool:
    """Whether this process may use an NVIDIA GPU, as far as can be told without starting CUDA."""
    return bool(devices())


def devices() -> list[str]:
    """The NVIDIA GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them."""
    there = [str(index) for index, _ in enumerate(Path("/dev").glob("nvidia[0-9]*"))]
    allowed = os.environ.get("CUDA_VISIBLE_DEVICES", ",".join(there))
    return [] if not there or allowed in ("", "-1") else allowed.split(",")


def dealt(jobs: int) -> list[str | None]:
    """A GPU for each of the jobs that run side by side, in turn where there are fewer of them; None without any."""
    there = devices()
    return [there[job % len(there)] if there else None for job in range(jobs)]
