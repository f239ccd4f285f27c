"""What the capabilities are called, and the tasks that they are judged as."""

from typing import Literal

Further = Literal["units", "dates", "letters"]
"""Units are near to arithmetic, dates less so, letters far from it."""
Name = Literal["arithmetic", Further]


def task_of(name: Name) -> str:
    """The task in data/tasks; what is transferred by default is called the capability."""
    return "capability" if name == "arithmetic" else name
