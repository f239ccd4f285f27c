"""Exact activation patches by TransformerLens or nnsight, in their own interpreter; run by `trace.py` beside it.

Reads a JSON task (model directory, clean and corrupted token ids, answers, layers, repeats) and prints one JSON line
for each way of patching: seconds of the best repeat, and effects [3 * layers][pairs] on the answer's log-probability,
in the order block, attention, MLP.
"""

import json
import sys
import time
import warnings
from collections.abc import Callable
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

warnings.filterwarnings("ignore")


def best(run: Callable[[], Any], repeats: int) -> tuple[float, float, Any]:
    """Seconds of the fastest of some runs, by the clock and of the processor, and what the last gave."""
    clock, processor, given = [], [], None
    for _ in range(repeats):
        starts = time.perf_counter(), time.process_time()
        given = run()
        clock.append(time.perf_counter() - starts[0])
        processor.append(time.process_time() - starts[1])
    return min(clock), min(processor), given


def transformer_lens(task: dict) -> dict[str, Callable[[], torch.Tensor]]:
    from transformer_lens import patching
    from transformer_lens.model_bridge import TransformerBridge

    patching.tqdm = lambda rows: rows
    tokenizer = AutoTokenizer.from_pretrained(task["model"])
    loaded = AutoModelForCausalLM.from_pretrained(task["model"], dtype=torch.float32, attn_implementation="eager")
    model = TransformerBridge.boot_transformers(task["model"], hf_model=loaded, tokenizer=tokenizer, device="cpu")
    model.eval()
    clean, corrupted, answers = (torch.tensor(task[name]) for name in ("clean", "corrupted", "answers"))
    names = [f"blocks.{i}.{kind}" for kind in ("hook_resid_post", "hook_attn_out", "hook_mlp_out")
             for i in range(task["layers"])]  # fmt: skip

    def metric(logits: torch.Tensor) -> torch.Tensor:
        return logits[:, -1].log_softmax(-1).gather(-1, answers[:, None])[:, 0]

    def put(corrupted_state: torch.Tensor, _index: list[int], clean_state: torch.Tensor) -> torch.Tensor:
        return clean_state

    def loop() -> torch.Tensor:
        _, cache = model.run_with_cache(clean, names_filter=lambda name: name in names)
        unpatched = metric(model(corrupted))
        effects = []
        for kind in ("resid_post", "attn_out", "mlp_out"):
            found = patching.generic_activation_patch(
                model, corrupted, cache, metric, put, kind, index_axis_names=("layer",), reduce="none"
            )
            effects.append(found.values.reshape(task["layers"], -1) - unpatched)
        return torch.cat(effects)

    return {"generic_activation_patch": loop}


def nnsight(task: dict) -> dict[str, Callable[[], torch.Tensor]]:
    from nnsight.modeling.transformers import TransformersModel

    tokenizer = AutoTokenizer.from_pretrained(task["model"])
    loaded = AutoModelForCausalLM.from_pretrained(task["model"], dtype=torch.float32)
    model = TransformersModel(loaded.eval(), tokenizer=tokenizer, task="text-generation")
    clean, corrupted, answers = (torch.tensor(task[name]) for name in ("clean", "corrupted", "answers"))
    parts = [(kind, i) for kind in ("block", "attention", "mlp") for i in range(task["layers"])]

    def logprobs(logits: torch.Tensor) -> torch.Tensor:
        return logits[:, -1].log_softmax(-1).gather(-1, answers[:, None])[:, 0]

    def read() -> tuple[dict, torch.Tensor]:
        kept = {}
        with model.trace({"input_ids": clean}):
            for i in range(task["layers"]):
                kept["attention", i] = model.model.layers[i].self_attn.output[0].save()
                kept["mlp", i] = model.model.layers[i].mlp.output.save()
                kept["block", i] = model.model.layers[i].output.save()
        with model.trace({"input_ids": corrupted}):
            unpatched = model.lm_head.output.save()
        return kept, logprobs(unpatched)

    def put(kind: str, i: int, state: torch.Tensor) -> None:
        layer = model.model.layers[i]
        place = {"attention": lambda: layer.self_attn.output[0], "mlp": lambda: layer.mlp.output}
        place.get(kind, lambda: layer.output)()[:] = state

    def loop() -> torch.Tensor:
        kept, unpatched = read()
        effects = []
        for kind, i in parts:
            with model.trace({"input_ids": corrupted}):
                put(kind, i, kept[kind, i])
                logits = model.lm_head.output.save()
            effects.append(logprobs(logits) - unpatched)
        return torch.stack(effects)

    def together(size: int) -> torch.Tensor:
        kept, unpatched = read()
        effects = []
        for first in range(0, len(parts), size):
            saved = []
            with model.trace() as tracer:
                for kind, i in parts[first : first + size]:
                    with tracer.invoke({"input_ids": corrupted}):
                        put(kind, i, kept[kind, i])
                        saved.append(model.lm_head.output.save())
            effects += [logprobs(logits) - unpatched for logits in saved]
        return torch.stack(effects)

    return {"a trace a patch": loop, "6 invokes a trace": lambda: together(6)}


def main() -> None:
    peer, path = sys.argv[1:]
    with open(path) as file:
        task = json.load(file)
    torch.set_num_threads(task["threads"])
    with torch.no_grad():
        for name, patch in {"transformer_lens": transformer_lens, "nnsight": nnsight}[peer](task).items():
            clock, processor, effects = best(patch, task["repeats"])
            told = {"way": name, "clock": clock, "processor": processor, "effects": effects.tolist()}
            print(json.dumps(told), flush=True)


if __name__ == "__main__":
    main()
