"""Time networks with PyTorch, on the CPU or on an NVIDIA GPU, where this package is installed.

``python -m levit_search.latency.torch_worker`` speaks the protocol of :mod:`worker` with the
runtimes ``torch`` (eager) and ``torch-compiled`` (torch.compile with inductor). It builds networks
itself, with weights drawn from the job's seed: ours by their description, their batch norms folded;
timm's as timm builds them, batch norms included. ``fp16`` and ``bf16`` convert weights and images
as a whole, as a deployed network would be (the paper used autocast, which casts weights in every
run); ``fp32`` means IEEE fp32, without TF32.

On a GPU a run is the replay of a CUDA graph and the clock is that of CUDA events, so neither Python
nor the host's load weighs in. Each network runs in the memory format that is faster for it.
"""

import contextlib
import functools
import gc
import json
import math
import os
import re
import shutil
import subprocess
import time
import types
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from levit_search import architecture
from levit_search.baseline import Baseline
from levit_search.errors import UnknownNameError
from levit_search.image_size import canonical_size, image_shape
from levit_search.latency import worker
from levit_search.latency.worker import Device, JobNetwork, Runner, WorkerJob
from levit_search.model import build, fold

Forward = Callable[[Tensor], Tensor]

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}

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


def torch_runner(job: WorkerJob, network: JobNetwork, compiled: bool = False) -> Runner:
    """A network ready to run, ``compiled`` by torch.compile or eagerly.

    Raises:
        LevitSearchError: there is no such network.
        RuntimeError: there is no GPU or no compiler here, or the network does not run.
        MemoryError: it does not fit the GPU.
    """
    batch_size = job["batch_size"]
    if batch_size != "largest" and batch_size < 1:
        raise ValueError(f"batch_size: {batch_size}, expected at least 1")
    torch.set_num_threads(job["threads"])
    # Neither TF32 nor bf16 inside of products of fp32.
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = False
    if job["device"] == "cuda":
        return gpu().runner(job, network, compiled)
    if batch_size == "largest":
        raise ValueError("batch_size: largest is for GPUs; name a number")
    return CpuRunner(job, network, compiled)


RUNTIMES: "worker.Runtimes" = {
    "torch": torch_runner,
    "torch-compiled": functools.partial(torch_runner, compiled=True),
}


class CpuRunner(Runner):
    """A network on the CPU, in the memory format that it was built in."""

    def __init__(self, job: WorkerJob, network: JobNetwork, compiled: bool) -> None:
        if compiled and not cpp_compiler():
            raise RuntimeError("torch-compiled needs a C++ compiler here: $CXX, g++ or clang++")
        assert job["batch_size"] != "largest"
        self.batch_size = job["batch_size"]
        dtype = DTYPES[job["precision"]]
        model, image_shape = fresh_network(network, job["seed"])
        self._forward = forward_of(model.to(dtype), compiled)
        self._images = images([self.batch_size, *image_shape], job["seed"]).to(dtype)
        self.run()  # compiles

    def run(self) -> Tensor:
        with torch.inference_mode():
            return self._forward(self._images)


@dataclass(frozen=True)
class Choice:
    """How a network runs on the GPU, settled once for all rounds of this process."""

    batch_size: int
    memory_format: FormatName


class CudaRunner(Runner):
    """Runs of one network on the same images on the GPU, as a CUDA graph.

    Captured as https://docs.pytorch.org/docs/stable/notes/cuda.html#cuda-graphs asks: after
    warm-up on a side stream, here the one that is captured on, since libraries keep their handles
    and workspaces by stream.
    """

    def __init__(
        self, forward: Forward, images: Tensor, stream: torch.cuda.Stream, choice: Choice
    ) -> None:
        self.batch_size = choice.batch_size
        self.note = choice.memory_format.replace("_", " ")
        self.bytes_before = 0
        """What PyTorch held on the GPU before the network was there."""
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
            self._output = forward(images)
        self._peak_bytes = torch.cuda.max_memory_allocated()
        self._start = torch.cuda.Event(enable_timing=True)
        self._end = torch.cuda.Event(enable_timing=True)
        self._forward = forward  # replays read its weights

    def run(self) -> Tensor:
        """Start one run; its output, which the next run overwrites, is read once it is done."""
        self._graph.replay()
        return self._output

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

    def timed(self, repeats: int) -> dict[str, float]:
        """Milliseconds a run as everywhere, and by the GPU's own clock: ``device``.

        ``single`` is one run alone, from its launch until the host knows that it is done.
        """
        cpu, wall = time.thread_time_ns(), time.perf_counter_ns()
        device_ms = self.replays_ms(repeats)
        end = time.perf_counter_ns()
        cpu = time.thread_time_ns() - cpu
        wall_ms = (end - wall) / repeats / 1e6
        single_ms = wall_ms
        if repeats > 1:
            self.replays_ms(1)
            single_ms = (time.perf_counter_ns() - end) / 1e6
        cpu_ms = cpu / repeats / 1e6
        return {"device": device_ms, "cpu": cpu_ms, "wall": wall_ms, "single": single_ms}

    def peak_memory_bytes(self) -> int:
        """The most that weights, images and activations take of the GPU's memory in one run."""
        return self._peak_bytes - self.bytes_before


class Gpu:
    """Makes runners on the first GPU that this process sees, and remembers what was settled of each
    network; made before anything else takes memory of the GPU."""

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

    def runner(self, job: WorkerJob, network: JobNetwork, compiled: bool) -> CudaRunner:
        """The network captured in the best way, which is looked for the first time."""
        _free_memory()
        before = torch.cuda.memory_allocated()
        batch_size = job["batch_size"]
        key = json.dumps([network, compiled, job["precision"], batch_size], sort_keys=True)
        model, image_shape = fresh_network(network, job["seed"])
        with _memory_errors(batch_size):
            model = model.to("cuda", DTYPES[job["precision"]])
        candidate = _Candidate(model, image_shape, job["seed"], compiled)
        if key not in self._choices:
            if batch_size == "largest":
                self._choices[key] = self._largest(candidate)
            else:
                self._choices[key] = self._faster_format(candidate, batch_size)
        runner = self._captured(candidate, self._choices[key])
        runner.bytes_before = before
        return runner

    def _largest(self, candidate: "_Candidate") -> Choice:
        """The largest power of two that runs within one network's share of memory, at most 4096.

        It is looked for eagerly: compiling for every size would take minutes.
        """
        _free_memory()
        most = torch.cuda.memory_reserved() + self._share_bytes
        torch.cuda.set_per_process_memory_fraction(min(1.0, most / self._total_bytes))
        try:
            self._run_once(candidate, 1)
            largest = 1
            while largest < LARGEST_BATCH:
                try:
                    self._run_once(candidate, 2 * largest)
                except (MemoryError, RuntimeError):  # or a kernel cannot index so many elements
                    break
                largest *= 2
            while largest > 1:
                with contextlib.suppress(MemoryError):
                    return self._faster_format(candidate, largest)
                largest //= 2  # compiled or captured it takes more than it did
            return self._faster_format(candidate, 1)
        finally:
            torch.cuda.set_per_process_memory_fraction(1.0)

    def _run_once(self, candidate: "_Candidate", batch_size: int) -> None:
        _free_memory()
        self._stream.wait_stream(torch.cuda.current_stream())
        with _memory_errors(batch_size), torch.inference_mode(), torch.cuda.stream(self._stream):
            shape, dtype = candidate.image_shape, next(candidate.model.parameters()).dtype
            candidate.model(torch.randn(batch_size, *shape, device="cuda", dtype=dtype))
            torch.cuda.synchronize()

    def _faster_format(self, candidate: "_Candidate", batch_size: int) -> Choice:
        """The choice of this batch size whose replays are faster."""
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

    def _captured(self, candidate: "_Candidate", choice: Choice) -> CudaRunner:
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
            forward = forward_of(model, candidate.compiled)
            return CudaRunner(forward, batch, self._stream, choice)


gpu = functools.cache(Gpu)


@dataclass(frozen=True)
class _Candidate:
    """A network on the GPU, not yet captured."""

    model: nn.Module
    image_shape: list[int]
    seed: int
    compiled: bool


def _trial_ms(runner: CudaRunner) -> float:
    """Milliseconds a replay, well enough to tell the faster format."""
    once = runner.replays_ms(1)
    repeats = max(1, math.ceil(_TRIAL_MS / max(once, 1e-3)))
    runner.replays_ms(repeats)  # an idle GPU clocks low at first
    return min(runner.replays_ms(repeats) for _ in range(3))


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


def fresh_network(network: JobNetwork, seed: int) -> tuple[nn.Module, list[int]]:
    """A network for inference with weights drawn from ``seed``, and its images' shape [C, H, W].

    Norm weights that begin at zero, as those that close residual blocks do, are ones instead: a GPU
    that multiplies by zero draws less power and so clocks higher than with trained weights.
    """
    torch.manual_seed(seed)
    if "timm" in network:
        import timm

        fields: Mapping[str, Any] = network["timm"]
        baseline = Baseline(**{**fields, "image_size": canonical_size(fields["image_size"])})
        if not timm.is_model(baseline.name):  # whoever asks may have a newer timm
            kind = f"network of timm {timm.__version__}"
            raise UnknownNameError(kind, baseline.name, timm.list_models())
        model = baseline.build_as_timm_does().eval()
        _wake_norms(model)
        return model, [*image_shape(baseline)]
    described = architecture.parse(network["architecture"])
    built = build(described, network["layout"])
    _wake_norms(built)
    return fold(built), [*image_shape(described)]


@torch.no_grad()
def _wake_norms(model: nn.Module) -> None:
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d) and not module.weight.any():
            nn.init.ones_(module.weight)


def images(shape: list[int], seed: int, most: int | None = None) -> Tensor:
    """Images [B, C, H, W] as every worker fills them, the first ``most`` of them."""
    drawn = shape[0] if most is None else min(shape[0], most)
    return torch.from_numpy(worker.filled({"images": [drawn, *shape[1:]]}, seed)["images"])


def forward_of(model: nn.Module, compiled: bool) -> Forward:
    """What runs the network, compiled as one graph or not at all.

    torch.compile keeps what it made by code object: networks of one class would look for theirs in
    one list in every run, and after eight of them it would stop compiling. So each has its own.
    """
    if not compiled:
        return model

    def forward(images: Tensor) -> Tensor:
        output: Tensor = model(images)
        return output

    own = types.FunctionType(
        forward.__code__.replace(), forward.__globals__, "forward", None, forward.__closure__
    )
    compiled_forward: Forward = torch.compile(own, fullgraph=True, dynamic=False)
    return compiled_forward


def cpp_compiler() -> str | None:
    names = [os.environ.get("CXX") or "g++", "g++", "clang++"]
    return next(filter(None, map(shutil.which, names)), None)


def main() -> None:
    """Answer jobs until the input ends."""
    # Inductor reads these when it is imported. Its processes that compile ahead would stay beside
    # the measurement, and hold our output open after our end.
    os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")
    if compiler := cpp_compiler():
        os.environ["CXX"] = compiler
    worker.main(RUNTIMES, described_device)


def described_device() -> Device:
    """What the worker tells of the device: the usual, and of the GPU."""
    device = worker.device()
    device["runtimes"]["timm"] = worker.version("timm") or worker.UNKNOWN
    if not torch.cuda.is_available():
        return device
    properties = torch.cuda.get_device_properties(0)
    return {
        **device,
        "gpu": properties.name,
        "compute_capability": f"{properties.major}.{properties.minor}",
        "multiprocessors": properties.multi_processor_count,
        "gpu_memory_bytes": properties.total_memory,
        "mig": " MIG " in properties.name,  # "NVIDIA H100 80GB HBM3 MIG 1g.10gb"
        "driver": _driver_version(),
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
    }


def _driver_version() -> str | None:
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        found = subprocess.run(query, capture_output=True, text=True, timeout=30, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return found.stdout.strip().partition("\n")[0] or None


if __name__ == "__main__":
    main()
