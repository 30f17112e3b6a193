"""Time networks with PyTorch, on the CPU or on an NVIDIA GPU, where this package is installed.

``python -m levit_search.latency.torch_worker`` speaks the protocol of :mod:`worker` with the
runtimes ``torch`` (eager) and ``torch-compiled`` (torch.compile with inductor). It builds networks
itself, with weights drawn from the job's seed: ours by their description, their batch norms folded;
timm's as timm builds them, batch norms included. ``fp16`` and ``bf16`` convert weights and images
as a whole, as a deployed network would be (the paper used autocast, which casts weights in every
run); ``fp32`` means IEEE fp32, without TF32.
"""

import os
import subprocess
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from levit_search.latency import worker
from levit_search.latency.cuda_runs import gpu
from levit_search.latency.torch_networks import (
    DTYPES,
    cpp_compiler,
    forward_of,
    fresh_network,
    images,
)
from levit_search.latency.worker import Runner


class TorchRuntime:
    """Makes runners: what the worker knows as a runtime."""

    def __init__(self, compiled: bool) -> None:
        self._compiled = compiled

    def __call__(self, job: dict[str, Any], network: dict[str, Any]) -> Runner:
        """A network ready to run.

        Args:
            job: has ``threads``, ``seed``, ``device``, ``precision`` and ``batch_size``.
            network: ``architecture`` (a description) and ``layout``, or ``timm``: the fields of a
                :class:`Baseline`.

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
            return gpu().runner(job, network, self._compiled)
        if batch_size == "largest":
            raise ValueError("batch_size: largest is for GPUs; name a number")
        return CpuRunner(job, network, self._compiled)


RUNTIMES: dict[str, Callable[[dict[str, Any], dict[str, Any]], Runner]] = {
    "torch": TorchRuntime(compiled=False),
    "torch-compiled": TorchRuntime(compiled=True),
}


class CpuRunner(Runner):
    """A network on the CPU, in the memory format that it was built in."""

    def __init__(self, job: dict[str, Any], network: dict[str, Any], compiled: bool) -> None:
        if compiled and not cpp_compiler():
            raise RuntimeError("torch-compiled needs a C++ compiler here: $CXX, g++ or clang++")
        self.batch_size = job["batch_size"]
        dtype = DTYPES[job["precision"]]
        model, image_shape = fresh_network(network, job["seed"])
        self._forward = forward_of(model.to(dtype), compiled)
        self._images = images([self.batch_size, *image_shape], job["seed"]).to(dtype)
        self.run()  # compiles

    def run(self) -> Tensor:
        with torch.inference_mode():
            return self._forward(self._images)


def main() -> None:
    """Answer jobs until the input ends."""
    # Inductor reads these when it is imported. Its processes that compile ahead would stay beside
    # the measurement, and hold our output open after our end.
    os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")
    if compiler := cpp_compiler():
        os.environ["CXX"] = compiler
    worker.main(RUNTIMES, described_device())


def described_device() -> dict[str, Any]:
    """What the worker tells of the device beside the usual."""
    runtimes = {**worker.device()["runtimes"], "timm": worker.version("timm")}
    described: dict[str, Any] = {"runtimes": runtimes}
    if not torch.cuda.is_available():
        return described
    properties = torch.cuda.get_device_properties(0)
    return {
        **described,
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
