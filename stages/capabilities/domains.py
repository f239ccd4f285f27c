"""The capabilities by name."""

from stages.capabilities import arithmetic, dates, letters, units
from stages.capabilities.names import Name
from stages.capabilities.questions import Domain

DOMAINS: dict[Name, Domain] = {
    "arithmetic": arithmetic.DOMAIN,
    "units": units.DOMAIN,
    "dates": dates.DOMAIN,
    "letters": letters.DOMAIN,
}
