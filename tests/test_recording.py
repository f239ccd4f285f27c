"""A killed capture goes on; several processes and devices write what one does; errors come out as themselves."""

import errno
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import accelerate
import h5py
import numpy as np
import pytest
import torch
from transformers import PreTrainedModel

from stages.activations import Activations, Text, create, digest
from stages.anatomy.hooks import reading
from stages.anatomy.sites import sites_of
from stages.recorder import Recorder, Rows
from stages.recording import capture
from tests.families import MIXTURES, tiny

ROOT = Path(__file__).parent.parent
SITES = ["layers.1.self_attn.heads.2", "layers.1", "layers.3.mlp"]
BUDGET, BATCHES = 18, 6


def texts(count: int = 14) -> list[Text]:
    """Texts of 3 to 9 random tokens."""
    made = []
    for i in range(count):
        ids = np.random.default_rng(i).integers(3, 128, 3 + i * 5 % 7).tolist()
        made.append(Text(f"t{i}", "text", digest(f"text {i}"), ids, [(n, n + 1) for n in range(len(ids))]))
    return made


class Passes:
    """Counts the passes of a model over batches, and fails or kills the process at one of them."""

    def __init__(self, model: PreTrainedModel, stop_at: int = -1, kill: bool = False) -> None:
        self.count, self.stop_at, self.kill = 0, stop_at, kill
        model.base_model.register_forward_pre_hook(self.note, with_kwargs=True)

    def note(self, _module, _inputs, options) -> None:
        if options["input_ids"].shape != (1, 1):  # the pass that learns the widths
            self.count += 1
        if self.count == self.stop_at and self.kill:
            os.kill(os.getpid(), signal.SIGKILL)
        if self.count == self.stop_at:
            raise KeyboardInterrupt


def interrupted(out: Path, stop_at: int = 4, save_every: float = 0.0) -> None:
    """Leaves what a capture leaves that is stopped in pass `stop_at`."""
    model = tiny("llama")
    Passes(model, stop_at)
    with pytest.raises(KeyboardInterrupt):
        capture(model, texts(), SITES, out, BUDGET, save_every)


def whole(out: Path) -> bytes:
    """The file that a capture makes which nothing stops."""
    capture(tiny("llama"), texts(), SITES, out, BUDGET)
    return out.read_bytes()


def left_beside(out: Path) -> list[str]:
    return sorted(path.name for path in out.parent.iterdir() if path.name.startswith(f"{out.name}."))


def test_a_stopped_capture_goes_on_where_it_was_and_ends_with_the_same_bytes(tmp_path):
    out = tmp_path / "a.h5"
    interrupted(out, stop_at=4)
    assert not out.exists() and left_beside(out) == ["a.h5.partial", "a.h5.partial.0.json"]
    model = tiny("llama")
    passes = Passes(model)
    capture(model, texts(), SITES, out, BUDGET)
    assert passes.count == BATCHES - 3
    assert out.read_bytes() == whole(tmp_path / "whole.h5")
    assert left_beside(out) == []


def test_a_capture_stopped_twice_ends_with_the_same_bytes(tmp_path):
    out = tmp_path / "a.h5"
    interrupted(out, stop_at=3)
    interrupted(out, stop_at=2)
    model = tiny("llama")
    passes = Passes(model)
    capture(model, texts(), SITES, out, BUDGET)
    assert passes.count == BATCHES - 3
    assert out.read_bytes() == whole(tmp_path / "whole.h5")


def test_a_capture_stopped_before_it_saved_begins_anew(tmp_path):
    out = tmp_path / "a.h5"
    interrupted(out, save_every=3600)
    model = tiny("llama")
    passes = Passes(model)
    capture(model, texts(), SITES, out, BUDGET)
    assert passes.count == BATCHES
    assert out.read_bytes() == whole(tmp_path / "whole.h5")


def test_a_killed_process_s_capture_goes_on(tmp_path):
    out = tmp_path / "a.h5"
    script = (
        "import sys; from pathlib import Path; import torch; torch.set_num_threads(1)\n"
        "from stages.recording import capture; from tests.families import tiny; import tests.test_recording as t\n"
        "model = tiny('llama'); t.Passes(model, 5, kill=True)\n"
        "capture(model, t.texts(), t.SITES, Path(sys.argv[1]), t.BUDGET, 0.0)\n"
    )
    killed = subprocess.run([sys.executable, "-c", script, out], cwd=ROOT)
    assert killed.returncode == -signal.SIGKILL and not out.exists()
    model = tiny("llama")
    passes = Passes(model)
    capture(model, texts(), SITES, out, BUDGET)
    assert passes.count == BATCHES - 4
    assert out.read_bytes() == whole(tmp_path / "whole.h5")


@pytest.mark.parametrize("change", ["model", "texts", "sites", "batches", "file cut", "record cut"])
def test_what_another_capture_left_is_not_gone_on_with(tmp_path, change):
    out = tmp_path / "a.h5"
    interrupted(out)
    model, read, sites, budget = tiny("llama", seed=change == "model"), texts(), SITES, BUDGET
    if change == "texts":
        read[0] = Text("other", "text", digest("other"), [5, 6, 7], [(0, 1), (1, 2), (2, 3)])
    if change == "sites":
        sites = SITES[:2]
    if change == "batches":
        budget = BUDGET + 10
    if change == "file cut":
        os.truncate(f"{out}.partial", 4000)
    if change == "record cut":
        os.truncate(f"{out}.partial.0.json", 20)
    capture(model, read, sites, out, budget)
    fresh = tmp_path / "fresh.h5"
    capture(model, read, sites, fresh, budget)
    assert out.read_bytes() == fresh.read_bytes()
    with reading(model, sites) as states:
        model.base_model(input_ids=torch.tensor([read[0].tokens]), use_cache=False)
    for site in sites:
        near = states[site][0].to(torch.bfloat16).float()
        torch.testing.assert_close(Activations(out).site(site)[:3], near, rtol=2**-7, atol=1e-3)


def test_an_error_of_the_writer_is_raised_as_itself(tmp_path, monkeypatch):
    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    before = set(threading.enumerate())
    with monkeypatch.context() as patch, pytest.raises(OSError, match="No space left"):
        patch.setattr(os, "pwrite", full)
        capture(tiny("llama"), texts(), SITES, tmp_path / "a.h5", BUDGET)
    assert not (tmp_path / "a.h5").exists()
    assert set(threading.enumerate()) <= before


def test_few_states_wait_for_a_slow_writer(tmp_path, monkeypatch):
    """So memory is bounded whatever the disk does."""
    gate, pwrite, taken = threading.Event(), os.pwrite, []
    monkeypatch.setattr(os, "pwrite", lambda *some: gate.wait() and pwrite(*some))
    arrays = create(tmp_path / "a.h5", texts(1), {"norm": 4})

    def take() -> None:
        with Recorder(arrays) as recorder:
            recorder.expect(Rows.of([0], np.array([0, 3])))
            for i in range(20):
                recorder.take("norm", torch.full((1, 3, 4), float(i)))
                taken.append(i)

    thread = threading.Thread(target=take)
    thread.start()
    deadline = time.monotonic() + 60
    while len(taken) < 5 and time.monotonic() < deadline:
        time.sleep(0.01)
    thread.join(0.3)
    assert thread.is_alive() and len(taken) == 5  # four wait, one is being written
    gate.set()
    thread.join()
    assert torch.equal(Activations(tmp_path / "a.h5").site("norm"), torch.full((3, 4), 19.0))


def test_the_language_model_head_does_not_run(tmp_path):
    model = tiny("llama")
    calls = []
    model.get_output_embeddings().register_forward_hook(lambda *_: calls.append(1))
    capture(model, texts(), SITES, tmp_path / "a.h5", BUDGET)
    assert not calls


@pytest.mark.parametrize("family", MIXTURES)
def test_every_site_of_a_mixture_is_captured(tmp_path, family):
    """Heads, router and experts too, each as a pass over one text gives it."""
    model, read = tiny(family), texts(4)
    sites = [site for site in sites_of(model) if site != "lm_head"]
    capture(model, read, sites, tmp_path / "a.h5", BUDGET)
    file = Activations(tmp_path / "a.h5")
    assert file.sites == sites
    widths = [file.width(f"layers.0.{part}") for part in ("self_attn.heads.1", "mlp.router", "mlp.experts.2")]
    assert widths == [8, 4, 32]
    with reading(model, sites) as states:
        model.base_model(input_ids=file.tokens[None, : file.starts[1]].long(), use_cache=False)
    for site in sites:
        near = states[site][0].to(torch.bfloat16).float()
        torch.testing.assert_close(file.site(site)[: file.starts[1]], near, rtol=2**-7, atol=1e-3)


def test_two_processes_write_what_one_does(tmp_path):
    script = tmp_path / "two.py"
    script.write_text(
        "import sys; from pathlib import Path; import torch; torch.set_num_threads(1)\n"
        f"sys.path[:0] = [{str(ROOT)!r}]\n"
        "from stages.anatomy.devices import join; from stages.recording import capture\n"
        "from tests.families import tiny; import tests.test_recording as t\n"
        "assert join()[1] == 2\n"
        "model = tiny('llama'); passes = t.Passes(model)\n"
        "capture(model, t.texts(), t.SITES, Path(sys.argv[1]), t.BUDGET)\n"
        "assert passes.count == t.BATCHES // 2\n"
    )
    launched = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", script]
    done = subprocess.run([*launched, tmp_path / "two.h5"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "two.h5").read_bytes() == whole(tmp_path / "one.h5")
    assert left_beside(tmp_path / "two.h5") == []


@pytest.mark.parametrize("first", ["cpu", "disk"])
def test_a_model_of_which_accelerate_keeps_parts_on_disk_is_captured_the_same(tmp_path, first):
    """What accelerate's `device_map` does to modules, embedding included, without a second device."""
    model, inner = tiny("llama"), "model.layers"
    places = {"model.embed_tokens": first, "model.norm": "cpu", "model.rotary_emb": "cpu", "lm_head": "cpu"}
    places |= {f"{inner}.0": "cpu", f"{inner}.1": "disk", f"{inner}.2": "disk", f"{inner}.3": "cpu"}
    spread = accelerate.dispatch_model(model, places, main_device="cpu", offload_dir=tmp_path / "offloaded")
    capture(spread, texts(), SITES, tmp_path / "a.h5", BUDGET)
    assert (tmp_path / "a.h5").read_bytes() == whole(tmp_path / "whole.h5")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_writes_the_states_that_it_computes(tmp_path):
    model, read = tiny("llama").bfloat16().cuda(), texts()
    capture(model, read, SITES, tmp_path / "a.h5", BUDGET)
    file = Activations(tmp_path / "a.h5")
    with reading(model, SITES) as states:
        model.base_model(input_ids=torch.tensor([read[0].tokens], device="cuda"), use_cache=False)
    for site in SITES:
        torch.testing.assert_close(file.site(site)[:3], states[site][0].float().cpu(), rtol=2**-6, atol=1e-2)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_a_model_on_two_gpus_writes_what_it_writes_on_one(tmp_path):
    one = tiny("llama").cuda(0)
    capture(one, texts(), SITES, tmp_path / "one.h5", BUDGET)
    places = {"model.embed_tokens": 0, "model.rotary_emb": 0, "model.norm": 1, "lm_head": 1}
    places |= {f"model.layers.{i}": i // 2 for i in range(4)}
    capture(accelerate.dispatch_model(tiny("llama"), places), texts(), SITES, tmp_path / "two.h5", BUDGET)
    assert (tmp_path / "two.h5").read_bytes() == (tmp_path / "one.h5").read_bytes()


def test_the_file_is_plain_hdf5_with_ids_and_offsets_beside_the_states(tmp_path):
    whole(tmp_path / "a.h5")
    with h5py.File(tmp_path / "a.h5") as file:
        found = {}
        file.visititems(lambda name, each: found.update({name: each[:]}) if isinstance(each, h5py.Dataset) else None)
    assert found["ids"][:3].tolist() == [b"t0", b"t1", b"t2"]
    assert found["tokens"][:3].tolist() == texts()[0].tokens
    rows = sum(len(text.tokens) for text in texts())
    assert {name: len(found[name]) for name in ("tokens", "offsets")} == {"tokens": rows, "offsets": rows}
    assert [found[f"sites/{name}"].shape for name in SITES] == [(rows, 8), (rows, 32), (rows, 32)]
