"""Runs on an NVIDIA GPU: CUDA graphs, their memory formats and the largest batch that fits.

A run is the replay of a CUDA graph and the clock is that of CUDA events, so neither Python nor the
host's load weighs in. Each network runs in the memory format that is faster for it.
"""

import contextlib
import functools
import gc
import json
import math
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from levit_search.latency.torch_networks import (
    DTYPES,
    Forward,
    forward_of,
    fresh_network,
    images,
)
from levit_search.latency.worker import Runner

FormatName = Literal["contiguous", "channels_last"]

FORMATS: dict[FormatName, torch.memory_format] = {
    "contiguous": torch.contiguous_format,
    "channels_last": torch.channels_last,
}

LARGEST_BATCH = 4096
# A network may take as much of the memory that is free at first as this many of them can take at
# once: the reference and a candidate in both layouts. It does not depend on who runs beside it, so
# the reference has the same batch size in all jobs. A tenth is left to CUDA's own libraries.
_NETWORKS_AT_ONCE = 3
_USABLE_MEMORY = 0.9
# Drawing more images on the host would take seconds a round; a larger batch repeats them.
_DRAWN_IMAGES = 64
_WARM_UP_RUNS = 3
_TRIAL_MS = 30.0


class CudaRunner(Runner):
    """A network on the GPU."""

    def __init__(self, captured: "Captured", choice: "Choice", peak_bytes: int) -> None:
        self.batch_size = choice.batch_size
        self.note = choice.memory_format.replace("_", " ")
        self._captured = captured
        self._peak_bytes = peak_bytes

    def run(self) -> Tensor:
        """Start one run; its output, which the next run overwrites, is read once it is done."""
        self._captured.replay()
        return self._captured.output

    def timed(self, repeats: int) -> dict[str, float]:
        """Milliseconds a run as everywhere, and by the GPU's own clock: ``device``.

        ``single`` is one run alone, from its launch until the host knows that it is done.
        """
        cpu, wall = time.thread_time_ns(), time.perf_counter_ns()
        device_ms = self._captured.replays_ms(repeats)
        end = time.perf_counter_ns()
        cpu = time.thread_time_ns() - cpu
        wall_ms = (end - wall) / repeats / 1e6
        single_ms = wall_ms
        if repeats > 1:
            self._captured.replays_ms(1)
            single_ms = (time.perf_counter_ns() - end) / 1e6
        return {
            "device": device_ms,
            "cpu": cpu / repeats / 1e6,
            "wall": wall_ms,
            "single": single_ms,
        }

    def peak_memory_bytes(self) -> int:
        """The most that weights, images and activations take of the GPU's memory in one run."""
        return self._peak_bytes


class Captured:
    """Runs of one network on the same images, as a CUDA graph.

    Captured as https://docs.pytorch.org/docs/stable/notes/cuda.html#cuda-graphs asks: after
    warm-up on a side stream, here the one that is captured on, since libraries keep their handles
    and workspaces by stream.
    """

    def __init__(self, forward: Forward, images: Tensor, stream: torch.cuda.Stream) -> None:
        self._images = images  # replays read this memory
        stream.wait_stream(torch.cuda.current_stream())
        with torch.inference_mode(), torch.cuda.stream(stream):
            for _ in range(_WARM_UP_RUNS):
                forward(images)
        torch.cuda.current_stream().wait_stream(stream)
        # cuDNN has chosen its algorithms; what it tried does not count as the network's memory.
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        self._graph = torch.cuda.CUDAGraph()
        with torch.inference_mode(), torch.cuda.graph(self._graph, stream=stream):
            self.output = forward(images)
        self.peak_allocated_bytes = torch.cuda.max_memory_allocated()
        self._start = torch.cuda.Event(enable_timing=True)
        self._end = torch.cuda.Event(enable_timing=True)
        self._forward = forward  # replays read its weights

    def replay(self) -> None:
        self._graph.replay()

    def replays_ms(self, repeats: int) -> float:
        """Milliseconds a replay between two events around ``repeats`` of them, waited for.

        The first launch, some microseconds, is in it.
        """
        self._start.record()
        for _ in range(repeats):
            self._graph.replay()
        self._end.record()
        self._end.synchronize()
        between_ms: float = self._start.elapsed_time(self._end)
        return between_ms / repeats


@dataclass(frozen=True)
class Choice:
    """How a network runs on the GPU, settled once for all rounds of this process."""

    batch_size: int
    memory_format: FormatName


@functools.cache
def gpu() -> "Gpu":
    """The first GPU that this process sees."""
    return Gpu()


class Gpu:
    """Makes runners, and remembers what was settled of each network.

    Make it before anything else takes memory of the GPU.
    """

    def __init__(self) -> None:
        if not torch.cuda.is_available():
            raise RuntimeError(f"this PyTorch ({torch.__version__}) finds no NVIDIA GPU")
        # Shapes are fixed: cuDNN may try its algorithms. Never off for a while, since what it takes
        # untried it would keep for the same shape.
        torch.backends.cudnn.benchmark = True
        self._stream = torch.cuda.Stream()
        with torch.cuda.stream(self._stream):  # cuBLAS takes its workspace, once for this stream
            square = torch.ones(8, 8, device="cuda")
            square @ square
        torch.cuda.synchronize()
        self._choices: dict[str, Choice] = {}
        free, self._total_bytes = torch.cuda.mem_get_info()
        self._share_bytes = _USABLE_MEMORY * free / _NETWORKS_AT_ONCE

    def runner(self, job: dict[str, Any], network: dict[str, Any], compiled: bool) -> CudaRunner:
        """The network captured in the best way, which is looked for the first time."""
        _free_memory()
        before = torch.cuda.memory_allocated()
        key = json.dumps([network, compiled, job["precision"], job["batch_size"]], sort_keys=True)
        model, image_shape = fresh_network(network, job["seed"])
        with _memory_errors(job["batch_size"]):
            model = model.to("cuda", DTYPES[job["precision"]])
        candidate = _Candidate(model, image_shape, job["seed"], compiled)
        if key not in self._choices:
            self._choices[key] = self._settled(candidate, job["batch_size"])
        choice = self._choices[key]
        captured = self._captured(candidate, choice)
        return CudaRunner(captured, choice, captured.peak_allocated_bytes - before)

    def _settled(self, candidate: "_Candidate", batch_size: int | Literal["largest"]) -> Choice:
        if batch_size != "largest":
            return self._faster_format(candidate, batch_size)
        with self._share_of_memory():
            largest = self._largest_batch(candidate)
            while largest > 1:
                with contextlib.suppress(MemoryError):
                    return self._faster_format(candidate, largest)
                largest //= 2  # compiled or captured it takes more than it did
            return self._faster_format(candidate, 1)

    def _largest_batch(self, candidate: "_Candidate") -> int:
        """The largest power of two that runs within the memory that may be taken, at most 4096.

        Eagerly: compiling for every size would take minutes.
        """
        self._run_once(candidate, 1)
        largest = 1
        while largest < LARGEST_BATCH:
            try:
                self._run_once(candidate, 2 * largest)
            except (MemoryError, RuntimeError):  # or a kernel cannot index so many elements
                break
            largest *= 2
        return largest

    def _run_once(self, candidate: "_Candidate", batch_size: int) -> None:
        _free_memory()
        self._stream.wait_stream(torch.cuda.current_stream())
        with _memory_errors(batch_size), torch.inference_mode(), torch.cuda.stream(self._stream):
            shape, dtype = candidate.image_shape, next(candidate.model.parameters()).dtype
            candidate.model(torch.randn(batch_size, *shape, device="cuda", dtype=dtype))
            torch.cuda.synchronize()

    def _faster_format(self, candidate: "_Candidate", batch_size: int) -> Choice:
        """The choice of this batch size whose replays are faster.

        Raises:
            MemoryError: it fits in neither format.
        """
        found: dict[Choice, float] = {}
        failure = None
        for name in FORMATS:
            choice = Choice(batch_size, name)
            try:
                found[choice] = _trial_ms(self._captured(candidate, choice))
            except MemoryError as error:
                failure = str(error)
        if not found:
            raise MemoryError(failure)
        return min(found, key=found.__getitem__)

    def _captured(self, candidate: "_Candidate", choice: Choice) -> Captured:
        _free_memory()
        with _memory_errors(choice.batch_size):
            memory_format = FORMATS[choice.memory_format]
            model = candidate.model.to(memory_format=memory_format)
            dtype = next(model.parameters()).dtype
            shape = [choice.batch_size, *candidate.image_shape]
            batch = images(shape, candidate.seed, _DRAWN_IMAGES).to("cuda", dtype)
            repeated = batch.repeat(math.ceil(choice.batch_size / len(batch)), 1, 1, 1)
            batch = repeated[: choice.batch_size].contiguous(memory_format=memory_format)
            del repeated
            return Captured(forward_of(model, candidate.compiled), batch, self._stream)

    @contextlib.contextmanager
    def _share_of_memory(self) -> Iterator[None]:
        """Let PyTorch take no more than one network's share beside what it has now."""
        _free_memory()
        most = torch.cuda.memory_reserved() + self._share_bytes
        torch.cuda.set_per_process_memory_fraction(min(1.0, most / self._total_bytes))
        try:
            yield
        finally:
            torch.cuda.set_per_process_memory_fraction(1.0)


@dataclass(frozen=True)
class _Candidate:
    """A network on the GPU, not yet captured."""

    model: nn.Module
    image_shape: list[int]
    seed: int
    compiled: bool


def _trial_ms(captured: Captured) -> float:
    """Milliseconds a replay, well enough to tell the faster format."""
    once = captured.replays_ms(1)
    repeats = max(1, math.ceil(_TRIAL_MS / max(once, 1e-3)))
    captured.replays_ms(repeats)  # an idle GPU clocks low at first
    return min(captured.replays_ms(repeats) for _ in range(3))


def _free_memory() -> None:
    """Give back what earlier runners and failed attempts have left, also in reference cycles."""
    gc.collect()
    torch.cuda.empty_cache()


@contextlib.contextmanager
def _memory_errors(batch_size: int | Literal["largest"]) -> Iterator[None]:
    """One line for the many ways in which CUDA and its libraries say that memory is short."""
    try:
        yield
    except RuntimeError as error:
        cause: BaseException | None = error
        while cause is not None:  # ending a capture may fail on top of it
            if isinstance(cause, torch.OutOfMemoryError) or _SHORT_OF_MEMORY.search(str(cause)):
                break
            cause = cause.__context__
        else:
            raise
    else:
        return
    raise MemoryError(f"CUDA ran out of memory at batch {batch_size}")


_SHORT_OF_MEMORY = re.compile(r"out of memory|_STATUS_ALLOC_FAILED")
