"""What capturing costs beside the bare passes and beside other libraries, on the same texts and sites in one run.

    python benchmarks/capture.py --model data/models/target --peers PYTHON      every attention, MLP and block output
    python benchmarks/capture.py --shape llama-3-8b --device cuda               a random bfloat16 model on a GPU
    python benchmarks/capture.py --memory                                       peak memory at 200 and 20,000 texts

PYTHON is the interpreter of an environment with the other libraries: pip install nnsight transformer-lens llm-ripper.
"""

import argparse
import array
import hashlib
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from transformers import LlamaConfig, LlamaForCausalLM

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from stages.activations import Text  # noqa: E402
from stages.anatomy.encoding import batches, pad  # noqa: E402
from stages.recording import capture  # noqa: E402

BUDGET = 2048
PEERS = ("nnsight", "transformer-lens", "llm-ripper")
SHAPES = {
    "llama-3-8b": {
        "hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8,
        "intermediate_size": 14336, "vocab_size": 128256, "max_position_embeddings": 8192, "rope_theta": 500000.0,
    },
    "toy": {
        "hidden_size": 128, "num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 2,
        "intermediate_size": 256, "vocab_size": 1024, "max_position_embeddings": 1024,
    },
}  # fmt: skip


def random_model(shape: str, device: str, dtype: torch.dtype) -> LlamaForCausalLM:
    """A Llama of a known shape with random weights, made where it runs."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    torch.manual_seed(0)
    with torch.device(device):
        model = LlamaForCausalLM(LlamaConfig(**SHAPES[shape]))
    torch.set_default_dtype(before)
    return model.requires_grad_(False).eval()


def random_texts(count: int, tokens: int, vocabulary: int) -> list[Text]:
    """Texts of so many random tokens."""
    drawn = np.random.default_rng(0).integers(3, vocabulary, (count, tokens), dtype=np.int32)
    offsets = np.stack([np.arange(tokens), np.arange(1, tokens + 1)], axis=1).astype(np.int32)
    read = [(array.array("i", ids.tobytes()), hashlib.sha256(ids.tobytes()).hexdigest()) for ids in drawn]
    return [Text(f"t{i}", "text", digest, ids, offsets) for i, (ids, digest) in enumerate(read)]


def sums(model: Path, count: int) -> list[dict[str, Any]]:
    """`count` texts of about 16 tokens, as `model` reads them."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(model)
    draw = np.random.default_rng(0)
    made = []
    for i, (a, b) in enumerate(draw.integers(10, 1000, (count, 2)).tolist()):
        tail = " so the answer is easy to see"[: int(draw.integers(0, 30))]
        text = f"The sum of {a} and {b} is {a + b},{tail}"
        read = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        made.append({"id": f"t{i}", "text": text, "digest": hashlib.sha256(text.encode()).hexdigest(),
                     "tokens": read.input_ids, "offsets": read.offset_mapping})  # fmt: skip
    return made


class Contestant:
    """One way to capture, in a process of its own; `failed` is what went wrong, in one line."""

    def __init__(self, name: str, python: str, job: dict[str, Any], folder: Path) -> None:
        job |= {"out": str(folder / name)}
        (folder / f"{name}.json").write_text(json.dumps(job))
        self.name, self.log, self.answers, self.failed = name, folder / f"{name}.log", [], ""
        command = [python, str(ROOT / "benchmarks" / "capture_peers.py"), name, str(folder / f"{name}.json")]
        with self.log.open("w") as log:
            self.process = subprocess.Popen(command, stdin=-1, stdout=-1, stderr=log, text=True)
        self.answered(self.process.stdout.readline())

    def answered(self, line: str) -> bool:
        """Whether an answer came; else notes the last line that the process left."""
        if not line and not self.failed:
            said = [each for each in self.log.read_text().splitlines() if each.strip()]
            self.failed = said[-1].strip() if said else f"ended with {self.process.wait()}"
        return not self.failed

    def run(self) -> None:
        """One capture."""
        if self.failed:
            return
        try:
            print("go", file=self.process.stdin, flush=True)
            line = self.process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if self.answered(line):
            self.answers.append(json.loads(line))

    def close(self) -> None:
        """Ends the process."""
        self.process.stdin.close()
        self.process.wait()


def readable(model: Path, copy: Path) -> Path:
    """A copy of the model directory whose tokenizer libraries on transformers 4 read too: its class is new in 5."""
    shutil.copytree(model, copy)
    told = copy / "tokenizer_config.json"
    known = json.loads(told.read_text()) | {"tokenizer_class": "PreTrainedTokenizerFast"}
    told.write_text(json.dumps(known))
    return copy


def compare(options: argparse.Namespace) -> None:
    """The table: every contestant on the same texts and sites, one after the other, several rounds."""
    texts = sums(options.model, options.texts)
    lengths = [len(text["tokens"]) for text in texts]
    layers = transformers.AutoConfig.from_pretrained(options.model).num_hidden_layers
    sites = [f"layers.{i}{part}" for i in range(layers) for part in (".self_attn", ".mlp", "")]
    job: dict[str, Any] = {"texts": texts, "sites": sites, "budget": options.budget or BUDGET}
    job["batches"] = list(batches(lengths, job["budget"]))
    print(f"{options.model.name}, {len(texts)} texts of {np.mean(lengths):.1f} tokens, {len(sites)} sites, float32 on "
          f"{torch.get_num_threads()} threads, torch {torch.__version__}, transformers {transformers.__version__}, "
          f"load {os.getloadavg()[0]:.1f}")  # fmt: skip
    with tempfile.TemporaryDirectory(dir=options.out) as folder:
        job["model"] = str(readable(options.model, Path(folder) / "model"))
        own = {"bare forward": sys.executable, "graftline": sys.executable}
        named = own | dict.fromkeys(PEERS, options.peers or sys.executable)
        contestants = [Contestant(name, python, dict(job), Path(folder)) for name, python in named.items()]
        for _ in range(options.rounds):
            for contestant in contestants:
                contestant.run()
        for contestant in contestants:
            contestant.close()
    bare = min((answer["seconds"] for answer in contestants[0].answers), default=float("nan"))
    print(f"{'':18}{'seconds':>9}{'x bare':>8}{'MB written':>12}{'peak MB':>9}   all rounds")
    for each in contestants:
        if each.failed:
            absent = "No module named" in each.failed and each.name.replace("-", "_") in each.failed
            print(f"{each.name:18}{f'not installed; pip install {each.name}' if absent else each.failed}")
            continue
        best, last = min(answer["seconds"] for answer in each.answers), each.answers[-1]
        rounds = " ".join(f"{answer['seconds']:.2f}" for answer in each.answers)
        print(f"{each.name:18}{best:9.2f}{best / bare:8.2f}{last['bytes'] / 1e6:12.1f}{last['peak'] / 1e6:9.0f}   "
              f"{rounds}")  # fmt: skip
    print(f"load {os.getloadavg()[0]:.1f}")


def on_device(options: argparse.Namespace) -> None:
    """A random model of a known shape: capture against the larger of its passes and of writing as many bytes."""
    model = random_model(options.shape, options.device, torch.bfloat16)
    texts = random_texts(options.batch, options.tokens, model.config.vocab_size)
    budget = options.budget or options.batch * options.tokens
    plan, layers = list(batches([options.tokens] * options.batch, budget)), model.config.num_hidden_layers

    @torch.inference_mode()
    def bare() -> None:
        for group in plan:
            model.base_model(input_ids=pad([texts[i].tokens for i in group], options.device), use_cache=False)
        if options.device != "cpu":
            torch.cuda.synchronize()

    name = torch.cuda.get_device_name() if options.device != "cpu" else "CPU"
    print(f"{options.shape}, random bfloat16, {options.batch} x {options.tokens} tokens in {len(plan)} passes, {name}, "
          f"torch {torch.__version__}, transformers {transformers.__version__}")  # fmt: skip
    print("residual sites  forward s       MB  raw GB/s  write s  capture s  ratio")
    with tempfile.TemporaryDirectory(dir=options.out) as folder:
        out = Path(folder) / "a.h5"
        for count in map(int, options.sites.split(",")):
            sites = [f"layers.{(2 * i + 1) * layers // (2 * count)}" for i in range(count)]
            size = len(texts) * options.tokens * model.config.hidden_size * 2 * count
            ways: list[Callable[[], None]] = [
                bare,
                lambda size=size: write_raw(out, size),
                lambda sites=sites: capture(model, texts, sites, out, budget),
            ]
            best = [min(rounds) for rounds in zip(*(timed(ways, out) for _ in range(options.rounds)), strict=True)]
            forward, raw, took = best
            print(f"{count:14}{forward:11.3f}{size / 1e6:9.0f}{size / raw / 1e9:10.2f}{raw:9.3f}{took:11.3f}"
                  f"{took / max(forward, raw):7.2f}", flush=True)  # fmt: skip
    if options.device != "cpu":
        print(f"peak GPU memory {torch.cuda.max_memory_allocated() / 2**30:.1f} GiB, weights "
              f"{sum(p.numel() * p.element_size() for p in model.parameters()) / 2**30:.1f} GiB")  # fmt: skip
    print(f"peak memory of the process {peak() / 1e6:.0f} MB")


def timed(ways: list[Callable[[], None]], out: Path) -> list[float]:
    """Seconds of each way, none of which finds an old file to replace."""
    took = []
    for way in ways:
        out.unlink(missing_ok=True)
        begin = time.perf_counter()
        way()
        took.append(time.perf_counter() - begin)
    return took


def write_raw(path: Path, size: int) -> None:
    """As many bytes, in pieces of 64 MB, from one buffer."""
    piece = memoryview(np.ones(64 * 2**20, np.uint8))
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    try:
        while size:
            size -= os.write(file, piece[:size])
    finally:
        os.close(file)


def peak() -> int:
    """The most resident memory that this process had, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def memory(options: argparse.Namespace) -> None:
    """Peak memory of a process that captures few texts and of one that captures a hundred times as many."""
    print("toy Llama (width 128, 4 blocks), texts of 16 tokens, every attention, MLP and block output")
    for count in (200, 20_000):
        command = [sys.executable, __file__, "--memory-of", str(count), "--budget", str(options.budget or BUDGET)]
        command += ["--out", str(options.out)] if options.out else []
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        print(f"{count:7,} texts: {done.stdout.strip()}")


def memory_of(options: argparse.Namespace) -> None:
    """One of the processes that `memory` compares."""
    model = random_model("toy", "cpu", torch.float32)
    texts = random_texts(options.memory_of, 16, model.config.vocab_size)
    sites = [f"layers.{i}{part}" for i in range(4) for part in (".self_attn", ".mlp", "")]
    before = peak()
    with tempfile.TemporaryDirectory(dir=options.out) as folder:
        capture(model, texts, sites, Path(folder) / "a.h5", options.budget)
        size = (Path(folder) / "a.h5").stat().st_size
    print(f"peak {peak() / 1e6:.0f} MB, of which {(peak() - before) / 1e6:.0f} MB came with the capture of "
          f"{size / 1e6:.0f} MB")  # fmt: skip


def main() -> None:
    """Reads the options and runs what they ask for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=ROOT / "data" / "models" / "target", help="a model directory")
    parser.add_argument("--texts", type=int, default=200)
    parser.add_argument("--budget", type=int, help=f"tokens a pass, {BUDGET} by default; with --shape all")
    parser.add_argument("--rounds", type=int, default=5, help="repetitions, of which the best counts")
    parser.add_argument("--peers", help="the Python of an environment with the other libraries")
    parser.add_argument("--out", type=Path, help="the folder to write to, a temporary one by default")
    parser.add_argument("--shape", choices=SHAPES, help="a random model instead of --model, without other libraries")
    parser.add_argument("--batch", type=int, default=32, help="texts, with --shape")
    parser.add_argument("--tokens", type=int, default=512, help="tokens a text, with --shape")
    parser.add_argument("--sites", default="1,4,32", help="numbers of residual sites, with --shape")
    parser.add_argument("--device", default="cuda", help="with --shape")
    parser.add_argument("--memory", action="store_true", help="peak memory at 200 and at 20,000 texts")
    parser.add_argument("--memory-of", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    chosen = {memory_of: options.memory_of, memory: options.memory, on_device: options.shape}
    next((task for task, asked in chosen.items() if asked), compare)(options)


if __name__ == "__main__":
    main()
