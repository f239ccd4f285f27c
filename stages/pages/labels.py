"""Names beside points of a chart, so that they lie neither on one another nor on a point."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Label:
    """Where a name stands."""

    left: bool
    """Left of its point instead of right."""
    down: float
    """Pixels below its point."""


def place(points: Sequence[tuple[float, float, str]], width: float, height: float) -> list[Label]:
    """A place for each name, from points (x, y, name) in pixels from the upper left of a chart of this size.

    Greedy, from the top: the nearest free place on the right, else on the left, a few lines up or down. Where none is
    free the name stands right of its point.
    """
    line, letter, gap = 14.0, 6.6, 9.0
    taken = [(x - 5, y - 5, x + 5, y + 5) for x, y, _ in points]
    placed: dict[int, Label] = {}
    for index in sorted(range(len(points)), key=lambda i: (points[i][1], points[i][0])):
        x, y, name = points[index]
        placed[index] = Label(False, 0.0)
        for down in (0, 1, -1, 2, -2, 3, -3, 4, -4):
            top = y + (down - 0.5) * line
            sides = ((x + gap, False), (x - gap - letter * len(name), True))
            boxes = [((at, top, at + letter * len(name), top + line), left) for at, left in sides]
            free = [(box, left) for box, left in boxes if _free(box, taken, width, height)]
            if free:
                taken.append(free[0][0])
                placed[index] = Label(free[0][1], down * line)
                break
    return [placed[index] for index in range(len(points))]


Box = tuple[float, float, float, float]


def _free(box: Box, taken: Sequence[Box], width: float, height: float) -> bool:
    inside = box[0] >= 0 and box[1] >= 0 and box[2] <= width and box[3] <= height
    return inside and not any(box[0] < t[2] and t[0] < box[2] and box[1] < t[3] and t[1] < box[3] for t in taken)
