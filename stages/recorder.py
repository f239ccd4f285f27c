"""States on their way to their file: without pads, in bfloat16, written by a thread of its own."""

import os
import queue
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Self

import numpy as np
import torch

_WAITING = 4
"""States that may wait for the writer; with the ones in work they bound the memory."""


@dataclass(frozen=True)
class Rows:
    """The real tokens of one padded batch, in the order of the file."""

    taken: torch.Tensor
    """[rows], the place of each in the batch's flattened [batch · tokens]"""
    runs: list[tuple[int, int, int]]
    """Rows that lie together in the file: the first's place there, its place in `taken`, their number"""

    @classmethod
    def of(cls, group: Sequence[int], starts: np.ndarray) -> Self:
        """Those of a batch that reads the texts `group`, padded on the right, whose rows begin at `starts`."""
        lengths = starts[1:] - starts[:-1]
        width, row = int(lengths[group].max()), {text: n for n, text in enumerate(group)}
        texts, runs, packed = sorted(group), [], 0
        for text in texts:
            start, length = int(starts[text]), int(lengths[text])
            if runs and runs[-1][0] + runs[-1][2] == start:
                runs[-1] = (*runs[-1][:2], runs[-1][2] + length)
            else:
                runs.append((start, packed, length))
            packed += length
        taken = np.concatenate([row[text] * width + np.arange(lengths[text]) for text in texts])
        return cls(torch.from_numpy(taken), runs)


class Recorder:
    """Writes what the sites of a model show to the rows of their arrays, while the model goes on.

    On a GPU the states are copied to pinned memory on a stream of their own, so the model does not wait for them.
    Use it as a context manager; what went wrong in the thread is raised as itself, by the call that follows.
    """

    def __init__(self, arrays: dict[str, np.memmap]) -> None:
        self._arrays = arrays
        self._file = os.open(next(iter(arrays.values())).filename, os.O_WRONLY)  # type: ignore[arg-type]
        self._queue: queue.Queue[Callable[[], None] | None] = queue.Queue(_WAITING)
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._error: BaseException | None = None
        self._streams: dict[torch.device, torch.cuda.Stream] = {}

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None):
        self._queue.put(None)
        self._thread.join()
        os.close(self._file)
        if kind is None and self._error is not None:
            raise self._error

    def expect(self, rows: Rows) -> None:
        """The batch that runs next."""
        self._rows, self._taken = rows, {rows.taken.device: rows.taken}

    def take(self, site: str, state: torch.Tensor) -> None:
        """Records a state [batch, tokens, width], on whatever device, of the batch that runs."""
        if self._error is not None:
            raise self._error
        if state.device not in self._taken:
            self._taken[state.device] = self._rows.taken.to(state.device, non_blocking=True)
        packed = state.flatten(0, 1).to(torch.bfloat16).index_select(0, self._taken[state.device])
        host, ready = self._on_host(packed)
        source = memoryview(host.view(torch.uint8).numpy()).cast("B")
        array, runs = self._arrays[site], self._rows.runs
        row = array.strides[0]

        def write() -> None:
            if ready is not None:
                ready.synchronize()
            for start, place, count in runs:
                self._write(source[place * row : (place + count) * row], array.offset + start * row)

        self._queue.put(write)

    def settle(self) -> None:
        """Waits until all that was taken is on the disk, safe from a kill and from a power cut."""
        self._queue.join()
        if self._error is not None:
            raise self._error
        os.fdatasync(self._file)

    def _on_host(self, packed: torch.Tensor) -> tuple[torch.Tensor, torch.cuda.Event | None]:
        """`packed` in the memory of the host, and what tells that it has arrived."""
        if packed.device.type != "cuda":
            return packed.cpu(), None
        if packed.device not in self._streams:
            self._streams[packed.device] = torch.cuda.Stream(packed.device)
        stream = self._streams[packed.device]
        host = torch.empty(packed.shape, dtype=packed.dtype, pin_memory=True)
        stream.wait_stream(torch.cuda.current_stream(packed.device))
        with torch.cuda.stream(stream):
            host.copy_(packed, non_blocking=True)
            packed.record_stream(stream)
            return host, stream.record_event()

    def _write(self, source: memoryview, offset: int) -> None:
        while source:
            written = os.pwrite(self._file, source, offset)
            source, offset = source[written:], offset + written

    def _work(self) -> None:
        while (job := self._queue.get()) is not None:
            try:
                if self._error is None:
                    job()
            except BaseException as error:
                self._error = error
            finally:
                self._queue.task_done()
