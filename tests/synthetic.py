"""A made-up experiment as the stages before the report would leave it: the pilot's figures, drawn item by item."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet
import yaml

from stages import plan
from stages.settings import parse

TRAINING = {
    "steps": 80,
    "prompts": 320,
    "batch": 24,
    "texts": 3,
    "positions": 96,
    "learning_rate": 0.01,
    "divergence": 2,
}
PLAN = parse({"training": TRAINING, "bridging": TRAINING}, "plan", plan.Plan)
PARAMS = {
    "adopt": {
        "sibling": {"trained": "sibling"},
        "calculator": {"trained": "calculator"},
        "null_calculator": {"trained": "calculator", "null_seed": 0},
    },
    "inject": {
        "blade": {"donor": "sibling", "layer": "n-4"},
        "closed_gate": {"donor": "sibling", "control_for": "blade"},
        "bridged_blade": {"donor": "calculator"},
        "null_donor": {"donor": "null_calculator", "control_for": "bridged_blade"},
        "published_blade": {"donor": "sibling"},
    },
    "transplant": {
        "transplant": {"donor": "sibling"},
        "random_transplant": {"donor": "sibling", "control_for": "transplant"},
    },
    "report": {"resamples": 400},
    "verdict": {},
    "uncertainty": {"resamples": 200},
}
# capability, retention lost, nats a token lost on text, KL; None: another tokenizer
MODELS = {
    "target": (0.01, 0.0, 0.0, None),
    "sibling": (0.96, 0.06, 0.6, 0.55),
    "calculator": (0.99, 0.2, None, None),
    "null_calculator": (0.0, 0.2, None, None),
    "blade": (0.955, 0.0, 0.002, 0.003),
    "closed_gate": (None, None, None, 0.0),
    "bridged_blade": (0.99, 0.0, 0.001, 0.002),
    "null_donor": (0.012, 0.0, 0.0005, 0.001),
    "published_blade": (0.03, 0.0, 0.033, 0.03),
    "transplant": (0.9, 0.01, 0.017, 0.02),
    "random_transplant": (0.45, 0.01, 0.06, 0.07),
}


def params(root: Path, **changes: object) -> Path:
    """A params.yaml with the sections that the report reads."""
    (root / "params.yaml").write_text(yaml.safe_dump(PARAMS | changes, sort_keys=False))
    return root / "params.yaml"


def items(name: str, count: int = 300, questions: int = 120, texts: int = 24) -> pd.DataFrame:
    """The evaluated rows of one model; every model answers the same items, the same luck deciding for all."""
    luck = np.random.default_rng(7)
    ease, stays, gap, kl = MODELS[name]
    closed = ease is None
    ease, stays, gap = (0.01, 0.0, 0.0) if closed else (ease, stays, gap)
    digits = luck.choice([1, 2, 3], size=count, p=[0.1, 0.3, 0.6])
    operation = np.where(np.arange(count) % 2, "subtraction", "addition")
    right = luck.random(count) < ease ** np.where(digits == 3, 1.1, 0.8)
    sure = np.clip(np.where(right, luck.beta(9, 1, count), luck.beta(2, 2, count)), 1e-6, 1)
    capability = pd.DataFrame(
        {
            "task": "capability",
            "id": [f"test-{i:05d}" for i in range(count)],
            "group": operation,
            "digits": digits,
            "seen": np.arange(count) >= count * 3 // 10,
            "cluster": [f"{o} {i // 6 * 3 % 97} {i % 3}" for i, o in enumerate(operation)],
            "right": right,
            "loglikelihood": np.where(right, np.log(sure), -8.0),
            "confidence": sure,
            "tokens": digits + 2,
        }
    )
    knows = luck.random(questions)
    right = (knows < 0.55) & (luck.random(questions) >= stays)
    retention = pd.DataFrame(
        {
            "task": "retention",
            "id": [f"q{i:03d}" for i in range(questions)],
            "group": np.array(["geography", "science", "language"])[np.arange(questions) % 3],
            "cluster": [f"q{i:03d}" for i in range(questions)],
            "right": right,
            "loglikelihood": -4.0,
            "confidence": np.clip(0.25 + 0.6 * luck.random(questions) + 0.1 * right, 0, 1),
            "tokens": 3,
        }
    )
    tokens = luck.integers(80, 160, texts)
    noise = luck.normal(0, 0.001, texts) * (0 if closed or name == "target" else 1)
    told = -tokens * (2.84 + (3.0 if gap is None else gap + noise))
    text = pd.DataFrame(
        {
            "task": "text",
            "id": [f"t{i:02d}" for i in range(texts)],
            "group": "history",
            "cluster": [f"t{i:02d}" for i in range(texts)],
            "loglikelihood": told,
            "tokens": tokens * 4 if gap is None else tokens,
            "kl": np.nan if kl is None else kl * luck.uniform(0.5, 1.5, texts),
            "agreement": np.nan if kl is None else 1 - kl / 2,
        }
    )
    rows = pd.concat([capability, retention, text], ignore_index=True)
    rows = rows.assign(role=rows.task, split="test")
    return rows.astype({"digits": "Int8", "seen": "boolean", "right": "boolean"}).sort_values(["task", "id"])


def catalog(same_width: bool) -> pd.DataFrame:
    """Sites of 30 blocks with what each measures; another width has pairs of blocks, then each model's own figures."""
    rows = []
    for layer in range(30):
        depth = layer / 29
        for kind, part in (("block", ""), ("attention", ".self_attn"), ("mlp", ".mlp")) if same_width else ():
            row = {"site": f"layers.{layer}{part}", "kind": kind, "layer": layer, "donor_layer": layer}
            row |= {
                "capability_change": (0.6 if kind == "block" else 0.4) * depth**2 + 0.05,
                "text_change": 0.2 * depth + 0.03,
                "capability_local_change": 0.04 + 0.1 * depth * (kind == "mlp"),
                "text_local_change": 0.03 + 0.05 * depth * (kind == "mlp"),
                "capability_change_rank": 20 + 40 * depth if kind == "block" else np.nan,
                "text_change_rank": 30 + 60 * depth if kind == "block" else np.nan,
            }
            if kind == "block":
                row |= _early(depth, "") | _early(depth, "donor_")
            rows.append(row | {"capability_cka": 1 - 0.3 * depth, "text_cka": 1 - 0.05 * depth})
        for head in range(9) if same_width else ():
            site = f"layers.{layer}.self_attn.heads.{head}"
            row = {"site": site, "kind": "head", "layer": layer, "donor_layer": layer}
            rows.append(row | {"capability_head_similarity": 1 - 0.1 * depth * (head % 3)})
        for donor_layer in () if same_width else range(6):
            row = {"site": f"layers.{layer}", "kind": "block", "layer": layer, "donor_layer": donor_layer}
            near = np.exp(-((depth - donor_layer / 5) ** 2) * 4)
            row |= {"capability_change": np.nan, "text_change": np.nan}
            rows.append(row | {"capability_cka": 0.2 + 0.5 * near, "text_cka": 0.1 + 0.3 * near})
    if same_width:
        rows.append({"site": "norm", "kind": "norm", "capability_change": 0.1, "capability_cka": 0.9})
    else:
        own = ((30, "", "layer"), (6, "donor_", "donor_layer"))
        rows += [
            {"kind": "block", column: layer} | _early(layer / (count - 1), prefix)
            for count, prefix, column in own
            for layer in range(count)
        ]
    return pd.DataFrame(rows)


def _early(depth: float, prefix: str) -> dict[str, float]:
    """What the logit lens tells of a block."""
    return {f"{on}_{prefix}lens_agreement": depth**3 for on in ("capability", "text")} | {"capability_lens_rows": 30}


def trace() -> pd.DataFrame:
    """Effects of exchanging each block's states, or its weights, and those of its parts; the first row is the whole
    donor."""

    def row(layer: int | None, intervention: str, share: float, part: str = "") -> dict[str, Any]:
        figures = {
            "capability": 9 * share,
            "match": share,
            "retention": 0.1 + 0.1 * abs(share),
            "retention_change": 0.1 * share,
        }
        ends = {
            f"{name}{end}": value + gap
            for name, value in figures.items()
            for end, gap in (("_low", -0.04), ("_high", 0.04))
        }
        site = None if layer is None else f"layers.{layer}{part}"
        place = {
            "site": site,
            "layer": None if part or intervention.startswith("attribution") else layer,
            "intervention": intervention,
        }
        sure = {"capability_q": 0.01 if abs(share) > 0.1 else 0.4, "retention_q": 0.2}
        return place | {"host": "target", "position": None, "prompts": 32, "texts": 8} | figures | ends | sure

    rows = [row(None, "donor", 0.95)]
    for layer in range(30):
        rows.append(row(layer, "states", 0.95 / (1 + np.exp((18 - layer) / 2))))
        rows.append(row(layer, "weights_in", 0.03 * np.sin(layer / 9.5) ** 2))
        rows.append(row(layer, "weights_out", -0.3 * np.sin(layer / 9.5) ** 2))
        for number, part in enumerate(("", ".self_attn", ".mlp", ".self_attn.heads.0", ".mlp.neurons.0:768")):
            share = (0.2 - 0.05 * number) * np.sin(layer / 4 + number) - 0.02
            rows.append(row(layer, "attribution_states", share, part))
            if number in (1, 3):
                rows.append(row(layer, "donor_states", share + 0.03 * np.cos(layer), part))
    return pd.DataFrame(rows).astype({"layer": "Int32"})


def selection() -> pd.DataFrame:
    """Selections of 2,880 parts along a frontier, and their random controls beneath it."""
    rows = []
    for method, gap in (("strengths", 0.0), ("random strengths", 0.3), ("subset", 0.1), ("random subset", 0.35)):
        for number, harm in enumerate((0.01, 0.05, 0.2, 0.8)):
            match = max(0.02, 0.3 + 0.2 * number - gap)
            row = {"id": len(rows), "method": method, "seed": 0 if "random" in method else None, "size": 500 * number}
            row |= {"parameters": 10**6 * number, "strength": 0.8, "passes": 80, "prompts": 24, "texts": 12}
            for name, value in (("capability", -2 + match), ("match", match), ("divergence", harm)):
                row |= {name: value, f"{name}_low": 0.8 * value, f"{name}_high": 1.2 * value}
            rows.append(row)
    return pd.DataFrame(rows).astype({"seed": "Int64"})


def alignment(pairs: list[tuple[int, int]], equal: bool) -> list[dict[str, object]]:
    """Held-out quality of each bridge."""
    rows = []
    for number, (donor, target) in enumerate(pairs):
        part = number / len(pairs)
        for kind in ("orthogonal", "ridge") if equal else ("ridge",):
            row = {"donor_layer": donor, "target_layer": target, "kind": kind, "rows_fit": 8000, "rows_held_out": 2000}
            row |= {"cosine_before": 0.98 - 0.4 * part if equal else None, "mse_before": 0.1 if equal else None}
            row |= {"r2_before": 0.9 - 0.6 * part if equal else None}
            better = 0.05 if kind == "ridge" else 0.0
            rows.append(row | {"cosine": 0.92 - 0.2 * part + better, "mse": 0.05, "r2": 0.85 - 0.4 * part + better})
    best = max(rows, key=lambda row: row["r2"])
    return [row | {"best": row is best} for row in rows]


def experiment(root: Path, models: dict[str, str] | None = None, **changes: object) -> Path:
    """Writes everything that the report reads under `root`; `models` gives other names to some."""
    params(root, **changes)
    for name in MODELS:
        named = (models or {}).get(name, name)
        _parquet(items(name), root / "evaluation" / named / "items.parquet")
        hashes = {"model.safetensors": "ab" * 32, "config.json": "cd" * 32}
        _json({"source": f"pypi:{name}==1.0/model.gguf", "revision": f"{name}==1.0", "files": hashes},
              root / "models" / named / "source.json")  # fmt: skip
    for donor in ("sibling", "calculator"):
        same = donor == "sibling"
        _parquet(catalog(same), root / "catalog" / f"{donor}.parquet")
        pairs = [(layer, layer) for layer in range(0, 30, 2)] if same else [(d, t) for d in (3, 5) for t in (20, 26)]
        _json(alignment(pairs, same), root / "bridges" / donor / "alignment.json")
        recipe = {"recipe": "adapter" if same else "scratch", "rank": 12, "seed": 0}
        training = {"recipe": recipe, "losses": [2.0, 0.1], "scores": {"items": 1000, "exact_match": 0.96}}
        _json(training, root / "donors" / donor / "training.json")
    table = pa.Table.from_pandas(trace(), preserve_index=False)
    ranked = {"value": 0.91, "low": 0.84, "high": 0.95}
    agreed = {"estimate": "attribution_states", "exact": "donor_states", "sites": 60, "capability": ranked}
    (root / "trace").mkdir(parents=True, exist_ok=True)
    pyarrow.parquet.write_table(
        table.replace_schema_metadata({"agreement": json.dumps([agreed | {"retention": None}])}),
        root / "trace" / "sibling.parquet",
    )
    _parquet(selection(), root / "selection" / "sibling" / "frontier.parquet")
    for variant in ("blade", "bridged_blade", "null_donor"):
        cross, kl = (0.05, 0.003) if variant != "null_donor" else (2.0, 0.01)
        steps = [{"step": s, "cross_entropy": cross + 2 * 0.9**s, "kl": kl + 0.05 * 0.95**s} for s in range(0, 150, 5)]
        _json(
            {"curve": [s | {"loss": s["cross_entropy"] + s["kl"]} for s in steps]},
            root / "gates" / variant / "training.json",
        )
    plans = {}
    for donor, evidence in (("sibling", trace()), ("calculator", None)):
        rows = json.loads((root / "bridges" / donor / "alignment.json").read_text())
        plans[donor] = plan.plan(PLAN, donor, rows, evidence, None)
    _json({"donors": plans, "methods": plan.METHODS}, root / "plan" / "plan.json")
    return root


def _parquet(rows: pd.DataFrame, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    rows.to_parquet(path, index=False)


def _json(value: object, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))
