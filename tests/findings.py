"""What the stages after the evaluation would leave for the report: losses, minimal pairs, showcases, costs, trust."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

CATEGORIES = (("agreement", True), ("negation", True), ("number", True), ("operand", True), ("paraphrase", False))
PROMPT = "What is 123 plus 456?\nAnswer:"


def figure(value: float, n: int = 200, half: float = 0.03) -> dict[str, float]:
    return {"value": round(value, 4), "low": round(value - half, 4), "high": round(value + half, 4), "n": n}


def regressions(lost: int, say: str = "London") -> list[dict[str, Any]]:
    """Items of two tasks that a variant loses."""
    said = {"expected": " Paris", "target": " Paris", "variant": f" {say}"}
    retention = [
        {"task": "retention", "id": f"q{i:03d}", "prompt": "What is the capital of France?"} for i in range(lost)
    ]
    asked = [{"task": "capability", "id": f"test-{i:05d}", "prompt": PROMPT} for i in range(lost // 4)]
    return [row | said for row in (*retention, *asked)]


def counterfactual(strength: float) -> dict[str, Any]:
    """Effects by category, the graft's `strength` of the way from target to donor where it should move."""
    rows = []
    for at, (category, moves) in enumerate(CATEGORIES):
        target, donor = 0.2 + 0.1 * at, 4.0 - 0.5 * at if moves else 0.4
        graft = target + strength * (donor - target) if moves else target
        row = {"category": category, "moves": moves, "n": 240, "target": figure(target), "donor": figure(donor)}
        row |= {"graft": figure(graft), "difference": figure(graft - target), "consistency": figure(0.5 + strength / 2)}
        rows.append(row)
    overall = {"difference": figure(3 * strength), "consistency": figure(0.5 + strength / 2)}
    return {
        "categories": rows,
        "overall": overall,
        "specificity": {model: figure(0.9) for model in ("target", "donor", "graft", "difference")},
        "undefined": {},
    }


def showcase(parts: Iterable[str] = ("layers.26 injection",), prompt: str = PROMPT) -> dict[str, Any]:
    """A prompt of the capability, a question and a text; the gates open at digits."""
    parts = list(parts)

    def tokens(text: str, own: int = 0) -> list[dict[str, Any]]:
        cut = text.replace(" ", "| ").replace("\n", "|\n").split("|")
        gates = [[0.03 if not any(c.isdigit() for c in token) else 0.9 - 0.3 * p for p in range(len(parts))]
                 for token in cut]  # fmt: skip
        return [
            {"text": token, "gates": of, "answer": at >= len(cut) - own}
            for at, (token, of) in enumerate(zip(cut, gates, strict=True))
        ]

    answered = {"target": "57", "donor": "579", "graft": "579"}
    asked = {"kind": "capability", "prompt": prompt, "expected": "579", "tokens": tokens(f"{prompt} 579", 1)}
    asked |= {"answers": answered, "right": {"target": False, "donor": True, "graft": True}}
    question = "Question: Which planet is nearest to the sun?\nAnswer:"
    other = {"kind": "retention", "prompt": question, "expected": "Mercury", "tokens": tokens(f"{question} Mercury", 1)}
    other |= {"answers": {"target": "Mercury", "donor": "Mars", "graft": "Mercury"}}
    other |= {"right": {"target": True, "donor": False, "graft": True}}
    text = "The town was founded in 1832 beside a river that floods in spring, and grew with the railway."
    none = dict.fromkeys(answered)
    plain = {"kind": "text", "prompt": text, "expected": None, "tokens": tokens(text), "answers": none, "right": none}
    return {"parts": parts, "texts": [asked, other, plain]}


def cost(added: int) -> dict[str, Any]:
    share = added / 134_515_008
    return {
        "parameters": 134_515_008 + added,
        "added_parameters": added,
        "bytes": 538_060_032 + 4 * added,
        "flops_per_token": 269_030_016 * (1 + share),
        "target_flops_per_token": 269_030_016,
        "peak_bytes": 812_345_678,
        "ms_per_token": 41.2 * (1 + 0.9 * share),
        "target_ms_per_token": 41.2,
    }


def trust(sure: float) -> dict[str, Any]:
    """The further parts of one task's uncertainty, for a model whose scores tell right from wrong at `sure`."""
    names = ("max_probability", "entropy", "margin", "mean_loglikelihood", "gate")
    scores = {
        name: {"auroc": figure(sure - 0.04 * at), "aurc": figure(0.02 + 0.01 * at), "excess_aurc": figure(0.01 * at)}
        for at, name in enumerate(names)
    }
    ends = np.linspace(0.05, 0.95, 10)
    calibration = {
        method: {
            "ece": figure(gap),
            "adaptive_ece": figure(gap),
            "brier": figure(0.05 + gap),
            "nll": figure(0.2 + gap),
            "bins": [
                {"confidence": float(c), "accuracy": float(c - gap * (1 - c)), "low": 0, "high": 1, "n": 30}
                for c in ends
            ],
        }
        for method, gap in (("raw", 0.12), ("temperature", 0.05), ("isotonic", 0.02))
    }
    sets = {
        method: {
            "alpha": 0.1,
            "coverage": figure(0.91),
            "size": figure(1.4 + more),
            "by": [{"group": group, "coverage": figure(0.88 + 0.02 * at), "size": figure(1.3), "n": 40}
                   for at, group in enumerate(("geography", "science", "language"))],
        }
        for method, more in (("lac", 0.0), ("aps", 0.5))
    }  # fmt: skip
    return {"scores": scores, "calibration": calibration, "conformal": sets}


def routing(accuracy: float) -> dict[str, Any]:
    points = [
        {"threshold": t, "coverage": t, "accuracy": 0.4 + (accuracy - 0.4) * t, "regressed": 0.02 * t, "cost": 2.0 - t}
        for t in (round(float(x), 3) for x in np.linspace(0, 1, 21))
    ]
    chosen = {"threshold": 0.6, "risk": figure(0.012), "coverage": figure(0.6), "accuracy": figure(accuracy)}
    three = {"abstained": figure(0.1), "accuracy": figure(accuracy + 0.01), "graft": 0.6, "target": 0.3}
    return {"curve": points, "chosen": chosen, "three_way": three, "splits": {"count": 100, "held": figure(0.97)}}


def further(root: Path, variants: Iterable[str], say: str = "London", prompt: str = PROMPT) -> Path:
    """Writes under `root` what each of `variants` has; the last of them has nothing."""
    for at, name in enumerate(list(variants)[:-1]):
        rows = regressions(12 + 40 * at, say) if at else []
        _write(root / "regressions" / f"{name}.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
        _write(root / "counterfactual" / f"{name}.json", json.dumps(counterfactual(1 / (1 + at))))
        parts = ("layers.26 injection", "layers.20 injection")[: 1 + at % 2]
        _write(root / "showcase" / f"{name}.json", json.dumps(showcase(parts, prompt)))
        _write(root / "cost" / f"{name}.json", json.dumps(cost(200_000 + 10_000_000 * at)))
        path = root / "uncertainty" / f"{name}.json"
        told = json.loads(path.read_text()) if path.is_file() else {"capability": {}, "retention": {}}
        for task in {"capability", "retention"} & told.keys():
            told[task] |= trust(0.95 - 0.03 * at)
        _write(path, json.dumps(told | {"routing": routing(0.9 - 0.1 * at)}))
    return root


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
