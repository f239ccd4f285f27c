"""The generated kinds of pairs, by name."""

from collections.abc import Sequence

from stages.capabilities.names import Name
from stages.contrasts.agreement import AGREEMENT
from stages.contrasts.entity import ENTITY
from stages.contrasts.negation import NEGATION
from stages.contrasts.number import NUMBER
from stages.contrasts.operand import operand
from stages.contrasts.pair import Category


def categories(capabilities: Sequence[Name]) -> list[Category]:
    """Those of language, and the operands of each capability."""
    return [AGREEMENT, NEGATION, NUMBER, ENTITY, *(operand(name) for name in capabilities)]
