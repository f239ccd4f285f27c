"""Ways to capture the same states, each in a process of its own, with the Python that has the library.

`python benchmarks/capture_peers.py NAME JOB.json` loads the model once, says `ready`, and then captures whenever a line
comes in; after each it prints seconds, bytes written and the peak of its resident memory as JSON. A job holds the
model's directory, the texts with their tokens and offsets, the batches, the sites and the folder to write to.
"""

import json
import os
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))
os.environ.setdefault("HF_HUB_OFFLINE", "1")
Run = Callable[[], None]


def _model(job: dict[str, Any]):
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(job["model"])
    return model.float().requires_grad_(False).eval()


def _batches(job: dict[str, Any]) -> list[Any]:
    """The batches as [texts, tokens], padded on the right."""
    import torch

    made = []
    for group in job["batches"]:
        ids = [job["texts"][i]["tokens"] for i in group]
        made.append(torch.tensor([[*each, *[0] * (max(map(len, ids)) - len(each))] for each in ids]))
    return made


def _save(states: dict[str, Any], job: dict[str, Any], number: int) -> None:
    """The states of one batch, bfloat16, in a file of torch's."""
    import torch

    Path(job["out"]).mkdir(parents=True, exist_ok=True)
    torch.save({site: state.bfloat16() for site, state in states.items()}, Path(job["out"]) / f"{number}.pt")


def bare(job: dict[str, Any]) -> Run:
    """The passes alone: no head, nothing kept."""
    import torch

    model, batches = _model(job).base_model, _batches(job)

    @torch.inference_mode()
    def run() -> None:
        for ids in batches:
            model(input_ids=ids, use_cache=False)

    return run


def graftline(job: dict[str, Any]) -> Run:
    """`stages.recording.capture`."""
    from stages.activations import Text
    from stages.recording import capture

    model = _model(job)
    texts = [Text(t["id"], "text", t["digest"], t["tokens"], t["offsets"]) for t in job["texts"]]
    return lambda: capture(model, texts, job["sites"], Path(job["out"]) / "a.h5", job["budget"])


def nnsight(job: dict[str, Any]) -> Run:
    """One trace a batch of the model without its head."""
    import nnsight as library
    import torch

    traced, batches = library.NNsight(_model(job).base_model), _batches(job)
    blocks = range(len(traced.layers))

    @torch.no_grad()
    def run() -> None:
        for number, ids in enumerate(batches):
            with traced.trace(input_ids=ids, use_cache=False):
                kept = library.save({})
                for i in blocks:
                    kept[f"layers.{i}.self_attn"] = traced.layers[i].self_attn.output[0]
                    kept[f"layers.{i}.mlp"] = traced.layers[i].mlp.output
                    output = traced.layers[i].output
                    kept[f"layers.{i}"] = output[0] if isinstance(output, tuple) else output
            _save({site: kept[site] for site in job["sites"]}, job, number)

    return run


def transformer_lens(job: dict[str, Any]) -> Run:
    """`run_with_cache` of a TransformerBridge, which has no way to leave out the head."""
    import torch
    import transformers
    from transformer_lens.model_bridge import TransformerBridge

    tokenizer = transformers.AutoTokenizer.from_pretrained(job["model"])
    bridge = TransformerBridge.boot_transformers(job["model"], hf_model=_model(job), tokenizer=tokenizer, device="cpu")
    batches, hooks = _batches(job), {}
    for site in job["sites"]:
        index, *part = site.split(".")[1:]
        hooks[".".join(["blocks", index, *({"self_attn": "attn"}.get(p, p) for p in part), "hook_out"])] = site

    @torch.inference_mode()
    def run() -> None:
        for number, ids in enumerate(batches):
            _, cache = bridge.run_with_cache(ids, names_filter=lambda name: name in hooks, return_type=None)
            _save({site: cache[hook] for hook, site in hooks.items()}, job, number)

    return run


def llm_ripper(job: dict[str, Any]) -> Run:
    """What `capture_model_activations` does after loading the model; its batches are of so many texts."""
    import h5py
    from llm_ripper.core.activation_capture import ActivationCapture
    from llm_ripper.utils.config import ConfigManager

    settings = ConfigManager()
    settings.config |= {"device": "cpu", "batch_size": max(map(len, job["batches"])), "trust_remote_code": False}
    peer = ActivationCapture(settings)
    model, tokenizer, config = peer.model_loader.load_model_and_tokenizer(job["model"])
    layers = [f"model.{site}" for site in job["sites"]]
    extractor = peer._create_feature_extractor(model.float(), layers)
    corpus, out = [{"text": text["text"]} for text in job["texts"]], Path(job["out"]) / "a.h5"

    def run() -> None:
        peer._setup_hdf5_storage(str(out), job["model"], config, layers, len(corpus))
        with h5py.File(out, "a") as file:
            peer._process_corpus(extractor, tokenizer, corpus, file, layers)

    return run


CONTESTANTS: dict[str, Callable[[dict[str, Any]], Run]] = {
    "bare forward": bare,
    "graftline": graftline,
    "nnsight": nnsight,
    "transformer-lens": transformer_lens,
    "llm-ripper": llm_ripper,
}


def main(name: str, path: str) -> None:
    """Answers lines of the standard input with captures."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what libraries print is no answer
    job = json.loads(Path(path).read_text())
    run, out = CONTESTANTS[name](job), Path(job["out"])
    print("ready", file=answers)
    for _ in sys.stdin:
        out.mkdir(parents=True, exist_ok=True)
        for old in out.iterdir():
            old.unlink()
        begin = time.perf_counter()
        run()
        seconds = time.perf_counter() - begin
        written = sum(file.stat().st_size for file in out.iterdir())
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        print(json.dumps({"seconds": seconds, "bytes": written, "peak": peak}), file=answers)


if __name__ == "__main__":
    main(*sys.argv[1:])
