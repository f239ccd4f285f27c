"""The capabilities by name."""

from typing import Literal

from stages.capabilities import arithmetic, dates, letters, units
from stages.capabilities.questions import Domain

Name = Literal["arithmetic", "units", "dates", "letters"]

DOMAINS: dict[Name, Domain] = {
    "arithmetic": arithmetic.DOMAIN,
    "units": units.DOMAIN,
    "dates": dates.DOMAIN,
    "letters": letters.DOMAIN,
}
"""Units are near to arithmetic, dates less so, letters far from it."""
