"""What the address of a site or layer says, read without a model."""

import difflib
import math
import re
from collections.abc import Iterable

from stages.errors import BadInput, nearest

_NUMBERED = {"heads": "head", "experts": "expert", "neurons": "neurons"}
_NAMED = {"self_attn": "attention", "mlp": "mlp", "router": "router"}


def layer_of(site: str) -> int | None:
    """The block that a site belongs to; None for `embed`, `norm` and `lm_head`."""
    match = re.match(r"layers\.(\d+)(\.|$)", site)
    return int(match[1]) if match else None


def kind_of(site: str) -> str:
    """`embed`, `block`, `attention`, `head`, `mlp`, `neurons`, `router`, `expert`, `norm` or `lm_head`."""
    if layer_of(site) is None:
        return site
    *outer, last = site.split(".")
    return _NUMBERED.get(outer[-1]) or _NAMED.get(last, "block")


def neurons_of(site: str) -> slice | None:
    """The neurons that `layers.I.mlp.neurons.FROM:TO` means, TO left out as in a slice; None for another site."""
    match = re.fullmatch(r"layers\.\d+\.mlp\.neurons\.(\d+):(\d+)", site)
    return slice(int(match[1]), int(match[2])) if match else None


def layer_index(spec: str | int | float, count: int) -> int:
    """The block that `spec` means in a model of `count` blocks, from 0.

    An integer is an index (negative from the end), `n-4` is count − 4, and a number with a point is a depth in [0, 1):
    0.875 means block 28 of 32 and 26 of 30. Raises BadInput for a layer that does not exist.
    """
    text = str(spec).replace(" ", "").lower()
    if re.fullmatch(r"-?\d+", text):
        index = int(text)
        index += count if index < 0 else 0
    elif match := re.fullmatch(r"n-(\d+)", text):
        index = count - int(match[1])
    elif re.fullmatch(r"\d*\.\d+", text):
        index = math.floor(round(float(text) * count, 9))
    else:
        index = -1
    if not 0 <= index < count:
        raise BadInput(
            f"Expected a layer from 0 to {count - 1}, n-1 to n-{count} or a depth such as 0.875, "
            f"got {spec!r}: a layer that does not exist in a model of {count} blocks."
        )
    return index


def matching(patterns: Iterable[str], sites: Iterable[str]) -> list[str]:
    """The sites that some pattern means, in the order of `sites`; `*` stands for one part between dots.

    Raises BadInput for a pattern that means none of them.
    """
    known, chosen = list(sites), set()
    for pattern in patterns:
        form = re.compile(re.escape(pattern).replace(r"\*", r"[^.]+"))
        meant = [site for site in known if form.fullmatch(site)]
        if not meant:
            raise BadInput(
                f"Expected a pattern of sites such as layers.*.mlp, got {pattern!r}, which means none of the model's "
                f"{len(known)} sites; {valid(pattern, known)}"
            )
        chosen.update(meant)
    return [site for site in known if site in chosen]


def valid(wrong: str, known: Iterable[str]) -> str:
    """A hint for a site or pattern that means none of `known`: the range of layers, or the nearest that means some."""
    sites = list(known)
    last = max((layer for site in sites if (layer := layer_of(site)) is not None), default=-1)
    index = layer_of(wrong)
    if index is not None and index > last:
        return f"layers go from 0 to {last}."
    forms = {re.sub(r"(?<=\.)\d[\d:]*(?=\.|$)", "*", site) for site in sites}
    near = "*" not in wrong and difflib.get_close_matches(wrong, sites, n=1)
    return nearest(wrong, sites if near else forms)
