"""A whole experiment so small that a stage costs its imports only: a repository with toy models and few prompts."""

import contextlib
import shutil
import subprocess
from copy import deepcopy
from pathlib import Path
from typing import Any

import tokenizers
import torch
import yaml
from dvc.repo import Repo
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from flows.dag import quiet

ROOT = Path(__file__).parent.parent
CODE = ("dvc.yaml", ".dvcignore", ".dvc/config", "stages", "data/tasks", "data/sources")
SENTENCES = [
    "What is the sum of two numbers? Answer the question, please.",
    "Question: Which city is the capital of the country? Answer: 12 plus 30 equals 42.",
    "Dear friend, the garden is green and we are all well here; the rain came on Thursday.",
    "Compute the difference between 75 and 8 = 67. The result of it is 67.",
] * 4
TRAINING = {
    "steps": 2, "prompts": 12, "batch": 4, "texts": 2, "positions": 16, "learning_rate": 0.05, "divergence": 1.0,
}  # fmt: skip
DONOR = {"steps": 30, "batch": 16, "pool": 200, "learning_rate": 0.01, "seed": 0}
PARAMS: dict[str, Any] = {
    "fetch": {"target": {"source": "path:toy/target"}},
    "specialize": {
        "sibling": {"recipe": "adapter", "rank": 4, "alpha": 8, **DONOR},
        "calculator": {"recipe": "scratch", "width": 16, "blocks": 2, "heads": 2, "mlp_width": 32, **DONOR},
        "moe": {
            "recipe": "experts", "capabilities": ["arithmetic", "letters"], "width": 16, "blocks": 2, "heads": 2,
            "mlp_width": 8, "experts": 4, "active": 2, "balance": 0.01, **DONOR,
        },
    },
    "further": {"dates_moe": {"recipe": "further", "start": "moe", "capability": "letters", **DONOR}},
    "adopt": {"sibling": {"trained": "sibling"}, "calculator": {"trained": "calculator"}},
    "specialists": {"moe": {"trained": "moe"}, "dates_moe": {"trained": "dates_moe"}},
    "route": {
        "letters_experts": {
            "target": "moe", "toward": "letters", "away": "arithmetic", "experts": 1, "strength": 2.0,
            "strengths": [20.0], "calibration": 8, "test": 8, "resamples": 50,
        },
    },
    "swap": {
        "moved_expert": {
            "target": "moe", "donor": "dates_moe", "test": 4,
            "choice": {"toward": "letters", "away": "arithmetic", "experts": 1, "calibration": 8},
        },
    },
    "prompts": {
        "train": 400, "calibration": 8, "test": 20, "unseen": 0.3, "seed": 0, "kept_texts": 4, "kept_questions": 4,
        "domains": ["letters"], "domain_items": {"train": 8, "calibration": 4, "test": 8, "unseen": 0.3},
    },
    "evidence": {
        "captured": ["target", "sibling", "calculator"], "aligned": ["sibling", "calculator"], "traced": ["sibling"],
        "specialists": ["sibling"], "singles": ["blade"],
    },
    "capture": {"prompts": 12, "texts": 3},
    "analyze": {"prompts": 3, "texts": 2},
    "align": {"target_layers": [2]},
    "select": {
        "steps": 3, "prompts": 4, "texts": 2, "piece": 8, "points": 2, "sizes": [0.5], "channels": 8,
        "check_prompts": 3, "check_texts": 3, "resamples": 100,
    },
    "trace": {"prompts": 6, "texts": 3, "text_tokens": 8, "resamples": 100},
    "plan": {"training": TRAINING, "bridging": TRAINING},
    "inject": {
        "blade": {
            "donor": "sibling", "layer": 2, "donor_layer": 2, "gate": "token", "alpha": 1.0, "training": TRAINING,
        },
        "bridged_blade": {
            "donor": "calculator", "layer": "n-1", "donor_layer": "n-1", "gate": "token", "bridge": "linear",
            "mix": "add", "training": TRAINING,
        },
        "closed_gate": {
            "control_for": ["blade", "bridged_blade"], "donor": "sibling", "layer": 2, "donor_layer": 2,
            "gate": "closed",
        },
    },
    "auto": {"chosen_blade": {"donor": "sibling", "strategy": "auto", "alpha": 0.9}},
    "blades": {
        "conditional_blade": {
            "donor": "sibling", "prompts": "capability", "layer": 2, "donor_layer": 2, "gate": "token",
            "condition": {"layer": 0, "opens": 0.4}, "training": TRAINING,
        },
    },
    "together": {
        "together": {
            "blades": ["trained/conditional_blade", "gates/bridged_blade"], "donors": ["sibling", "calculator"],
            "prompts": ["capability", "capability"], "gate": "stacked",
        },
    },
    "together_four": {},
    "transplant": {"transplant": {"donor": "sibling", "select": "frontier"}},
    "components": {"block": {"donor": "sibling", "select": "modules", "modules": ["layers.1"], "strength": 1.0}},
    "merge": {"merge": {"method": "ties", "density": 0.5, "donors": {"sibling": 1.0}}},
    "adapt": {"adapter": {"donors": {"sibling": 0.5}, "rank": 2}},
    "project": {
        "pruned_ffn": {"donor": "target", "keep": 0.5, "prompts": 4, "texts": 2, "judged": 1, "curve": [0.5]},
    },
    "embed": {"embeddings": {"donor": "calculator", "bridge": "ridge", "add": [" zebra"]}},
    "bank": {"parts": {"donor": "sibling", "sites": ["layers.1", "layers.*.self_attn.heads.0"]}},
    "withdraw": {"banked_block": {"bank": "parts", "sites": ["layers.1"]}},
    "mixture": {
        "mixture": {
            "donor": "calculator", "layer": 2, "donor_layer": "n-1", "gate": "token", "bridge": "mixture", "bridges": 2,
            "start": "fitted", "training": TRAINING,
        },
    },
    "implant": {
        "implant": {
            "donor": "calculator", "layer": 2, "donor_layer": "n-1", "part": "self_attn", "gate": "token",
            "bridge": "linear", "training": TRAINING,
        },
    },
    "fuse": {
        "fusion": {
            "layer": 2, "training": TRAINING,
            "members": [
                {"donor": "sibling", "part": "states", "donor_layer": 2, "mix": "delta"},
                {"donor": "calculator", "part": "mlp", "donor_layer": 0, "bridge": "linear"},
            ],
        },
    },
    "store": {
        "steering_vector": {
            "donor": "sibling", "source": "vector", "layer": 2, "donor_layer": 2, "prompts": 4, "calibration": 4,
            "alphas": [0.5],
        },
    },
    "debate": {
        "debate": {"views": [{}, {"noise": 0.2, "layer": 1}], "reconcile": "entropy", "prompts": 4, "texts": 2},
    },
    "evaluate": {"budget": 4096, "calibration": 6},
    "synergy": {
        "pair": {
            "together": "together", "singles": {"arithmetic": "blade", "letters": "conditional_blade"},
            "resamples": 100,
        },
    },
    "survey": {"budget": 4096, "items": 10, "retention_items": 6},
    "domains": {
        "budget": 4096, "items": 10, "retention_items": 6, "tasks": ["capability", "letters", "retention", "text"],
    },
    "shown": {"blade": {"donor": "sibling"}, "transplant": {"donor": "sibling"}},
    "counterfactual": {
        "pairs": {"moving": 4, "still": 2}, "reading": {"budget": 4096}, "effects": {"resamples": 100},
    },
    "signals": {"items": 2, "calibration": 2, "questions": 2, "samples": 2, "tokens": 2},
    "uncertainty": {"bins": 4, "resamples": 100, "splits": 5, "routing": {"epsilon": 0.2, "splits": 5}},
    "ensembles": {"blades": {"members": ["blade", "bridged_blade"], "resamples": 100}},
    "showcase": {"prompts": 1, "texts": 1, "answer_tokens": 3, "text_tokens": 8},
    "cost": {"tokens": 8, "repeats": 2},
    "cards": {"license": "apache-2.0"},
    "report": {"resamples": 100},
    "verdict": {},
}  # fmt: skip
"""The experiment: the default one's sections, a variant of each kind and one control."""


def experiment(root: Path) -> Path:
    """A git and DVC repository at `root` with this one's code and the toy's params and target; nothing has run."""
    listed = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", "--", *CODE]
    for name in subprocess.run(listed, cwd=ROOT, check=True, capture_output=True, text=True).stdout.split("\0"):
        if name and (ROOT / name).is_file():
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, root / name)
    for source, kept in (("questions", 16), ("text", 8)):
        path = root / "data" / "sources" / f"{source}.jsonl"
        path.write_text("".join(path.read_text().splitlines(keepends=True)[:kept]))
    target(root / "toy" / "target")
    subprocess.run(["git", "init", "--quiet"], cwd=root, check=True)
    configure(root)
    return root


def configure(root: Path, changes: dict[str, Any] | None = None) -> None:
    """Writes params.yaml; `changes` maps dotted keys to new values, None removes one."""
    params = deepcopy(PARAMS)
    for dotted, value in (changes or {}).items():
        *outer, last = dotted.split(".")
        section = params
        for key in outer:
            section = section[key]
        section.pop(last, None)
        if value is not None:
            section[last] = value
    (root / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))


def target(directory: Path) -> None:
    """A random Llama of 4 blocks, width 32, and a byte-level BPE tokenizer with single digits, as SmolLM2 has."""
    inner = tokenizers.Tokenizer(tokenizers.models.BPE())
    inner.pre_tokenizer = tokenizers.pre_tokenizers.Sequence(
        [
            tokenizers.pre_tokenizers.Digits(individual_digits=True),
            tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    inner.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<pad>", "<bos>", "<eos>"],
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    inner.train_from_iterator(SENTENCES, trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, pad_token="<pad>", bos_token="<bos>", eos_token="<eos>")
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=4, num_attention_heads=4, num_key_value_heads=2,
        intermediate_size=64, max_position_embeddings=2048, tie_word_embeddings=True, initializer_range=0.1,
        pad_token_id=0, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = LlamaForCausalLM(config)
    model.to(torch.bfloat16).save_pretrained(directory)
    tokenizer.save_pretrained(directory)


def commit(root: Path, *stages: str) -> None:
    """`dvc commit --force`: what lies there now counts as the stages' outputs."""
    with contextlib.chdir(root), quiet(), Repo(str(root)) as repo:
        for stage in stages:
            repo.commit(stage, force=True)
