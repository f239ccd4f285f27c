"""What the evidence recommends for each donor, and the forks that led there with their figures."""

from pathlib import Path
from typing import Any

import pandas as pd
import pydantic

from stages.command import run
from stages.errors import BadInput
from stages.settings import Settings, read
from stages.storage import read_json, write_json


class Plan(Settings):
    """The thresholds of the forks."""

    aligned_cosine: float = pydantic.Field(ge=-1, le=1)
    """Held-out cosine of a bridge from which two hidden spaces count as aligned."""
    share_of_gain: float = pydantic.Field(gt=0, le=1)
    """Share of the donor's gain that an injected layer has to bring over."""


def fork(question: str, figure: str, threshold: str, answer: str) -> dict[str, str]:
    """One step of the path."""
    return {"question": question, "figure": figure, "threshold": threshold, "answer": answer}


def layer_for(trace: pd.DataFrame, share: float) -> dict[str, float]:
    """The least harmful layer at which the donor's states bring `share` of its gain in answer log-likelihood.

    Raises BadInput when the donor has no gain to bring.
    """
    whole = float(trace[trace.intervention == "donor"].capability.iloc[0])
    if whole <= 0:
        raise BadInput(f"Expected a donor that answers better than the target, got {whole:.3f} nats; choose another.")
    states = trace[trace.intervention == "states"].assign(share=lambda t: t.capability / whole)
    enough = states[states.share >= share]
    best = (enough if len(enough) else states.nlargest(1, "share")).nsmallest(1, "retention").iloc[0]
    return {"layer": int(best.layer), "share": float(best.share), "kl": float(best.retention)}


def plan(settings: Plan, donor: str, bridges: list[dict[str, Any]], trace: pd.DataFrame | None) -> dict[str, Any]:
    """The path through the forks for one donor, and the variant that it recommends."""
    path = []
    same = bridges[0]["cosine_before"] is not None
    path.append(fork(f"{donor}: one hidden space with the target?", "equal width and blocks" if same else "other width",
                     "equal", "yes" if same else "no"))  # fmt: skip
    best = max(bridges, key=lambda row: (row["cosine"], -row["donor_layer"]))
    near = best["cosine"] >= settings.aligned_cosine
    path.append(
        fork(
            f"{donor}: do its states map onto the target's, on held-out rows?",
            f"cosine {best['cosine']:.3f}, R² {best['r2']:.3f} ({best['kind']}, {best['donor_layer']} → "
            f"{best['target_layer']})",
            f"cosine ≥ {settings.aligned_cosine}",
            "yes" if near else "no: train the bridge on the capability",
        )
    )
    recommended: dict[str, Any] = {"recipe": "inject", "bridge": "identity" if same else "linear"}
    recommended |= {"gate": "token", "mix": "delta" if same else "add"}
    if trace is None:
        recommended |= {"layer": best["target_layer"], "donor_layer": best["donor_layer"]}
        path.append(
            fork(f"{donor}: which layer?", "not traced: its states do not fit the target", "—", "the aligned pair")
        )
    else:
        found = layer_for(trace, settings.share_of_gain)
        recommended |= {"layer": found["layer"], "donor_layer": found["layer"]}
        path.append(
            fork(
                f"{donor}: which layer brings the gain with the least harm?",
                f"layer {found['layer']}: {found['share']:.1%} of the gain, KL {found['kl']:.3f} without a gate",
                f"≥ {settings.share_of_gain:.0%} of the gain",
                f"layer {found['layer']}, under a gate",
            )
        )
    return {"path": path, "recommendation": {donor: recommended}}


def main(bridges: Path, trace: Path, out: Path, params: Path = Path("params.yaml")) -> None:
    """Plan for every donor that was aligned."""
    settings = read(params, "plan", Plan)
    whole: dict[str, Any] = {"path": [], "recommendation": {}}
    for donor in sorted(path.name for path in bridges.iterdir() if path.is_dir()):
        traced = trace / f"{donor}.parquet"
        evidence = pd.read_parquet(traced) if traced.is_file() else None
        made = plan(settings, donor, read_json(bridges / donor / "alignment.json"), evidence)
        whole["path"] += made["path"]
        whole["recommendation"] |= made["recommendation"]
    write_json(out, whole)


if __name__ == "__main__":
    run(main)
