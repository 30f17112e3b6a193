"""Time networks in turn on the device that is measured.

This file needs Python, numpy and a runtime (onnxruntime or openvino) and nothing of this package.
It reads jobs from standard input, one JSON object a line, and writes one JSON line for each: first
``ready`` with the device, then the answer to every job, or ``error``. It decides nothing: how often
to measure and what the samples mean is for the one who asks. The end of its input ends it at once,
so a worker never outlives whoever started it.

Networks are run in turn (A B B A A B B A ...), since a neighbour that slows one down slows the
others, and as often in either order, since whoever runs second finds the caches full. Every
``round`` builds its inference sessions anew, since much of what one session reads is its own luck
with memory.
"""

from __future__ import annotations

import contextlib
import gc
import json
import math
import os
import platform
import queue
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, Literal, TypedDict

if TYPE_CHECKING:
    import numpy as np

    Runtimes = Mapping[str, Callable[["WorkerJob", "JobNetwork"], "Runner"]]

PROTOCOL = 3
"""Raised when figures of an older protocol must not stand beside newer ones."""

BATCH = "batch"
"""What graphs for any number of images name it; a job's ``batch_size`` is put in its place."""

# A timing shorter than this repeats the run, so that the clock and the loop do not weigh in.
SHORTEST_TIMING_S = 0.002
WARM_UP_S = 0.02
# How often a network is run after the others to see which of its first runs are slower than by
# _AS_FAST; no more than _MOST_UNTIMED of them are left out.
_COLD_STARTS = 5
_MOST_UNTIMED = 8
_AS_FAST = 1.03
_WAITING_EVERY_S = 5.0


class JobNetwork(TypedDict, total=False):
    """A network of a job: an ONNX file, or for torch what it is built from."""

    path: str
    """Of the file, where it can be read; else ``file``, the name under which it was sent."""
    file: str
    architecture: dict[str, object]
    """A description, with ``layout``; or ``timm``, the fields of a network of timm."""
    layout: Literal["tokens", "maps"]
    timm: dict[str, object]


class WorkerJob(TypedDict, total=False):
    """What a worker is asked to ``do``, as one line of JSON.

    A ``round`` times the networks in turn for ``seconds``, with the host to itself (if ``warm``,
    those below 2 ms after untimed runs in each turn); ``logits`` are those of the first network;
    ``peak`` is the memory of a process of its own that runs it once (``own_peak``: of this one).
    A ``file`` announces its ``name`` and ``bytes``, which follow; ``forget`` removes it.
    """

    do: Literal["round", "logits", "peak", "own_peak", "file", "forget"]
    job: int
    """A number that the answer has too."""
    networks: list[JobNetwork]
    runtime: str
    device: str
    precision: str
    threads: int
    batch_size: int | Literal["largest"]
    seed: int
    """Of the inputs, and of weights that are drawn."""
    seconds: float
    warm: bool
    python: list[str]
    """The command that started a worker which may be emulated."""
    name: str
    bytes: int


class Device(TypedDict, total=False):
    """What latencies depend on on a device, and what is installed there; its worker may lie."""

    protocol: int
    machine: str
    cpu: str
    cores: int
    governor: str | None
    transparent_huge_pages: str | None
    malloc_huge_pages: bool
    system: str
    python: str
    runtimes: dict[str, str]
    """Versions by package."""
    emulated: bool
    locks: bool
    gpu: str  # this and what follows: of the first GPU that torch finds there
    compute_capability: str
    multiprocessors: int
    gpu_memory_bytes: int
    mig: bool
    driver: str | None
    cuda: str | None
    cudnn: int | None


class WorkerAnswer(TypedDict, total=False):
    """What a worker says, as one line of JSON: by its ``event`` it is first ``ready``, then
    ``waiting`` for the host, an ``error``, or the ``round``, ``peak`` or ``logits`` of a job."""

    event: str
    job: int | None
    protocol: int
    device: Device
    message: str
    cycles: list[list[dict[str, float]]]
    """[cycles][networks] milliseconds by clock, see :meth:`Runner.timed`."""
    batch_sizes: list[int]
    notes: list[str]
    prepare_s: float
    timing_s: float
    bytes: int
    logits: list[float]


# How a piped worker is started: `python -c BOOTSTRAP`, then the length of this file and the file.
BOOTSTRAP = (
    "import sys; p = sys.stdin.buffer; s = p.read(int(p.readline())); "
    "exec(compile(s, 'worker.py', 'exec'), {'__name__': '__main__', 'SOURCE': s})"
)


class Runner:
    """One network ready to run, with inputs filled with random numbers."""

    clock = "thread"
    """Whose CPU time one run takes: that of the calling ``thread``, or of the whole ``process``."""
    batch_size = 1
    """Images in one run."""
    note = ""
    """What it chose by itself, for people."""

    def run(self) -> Any:
        """One run of the whole batch; returns its first output [B, ...]."""
        raise NotImplementedError

    def peak_memory_bytes(self) -> int:
        """The most memory that was used so far: of this process, or of the device it uses."""
        return peak_memory_bytes()

    def timed(self, repeats: int) -> dict[str, float]:
        """Milliseconds a run over ``repeats`` runs by each clock, and of the last run alone."""
        whole = self.clock == "process"
        clock_ns = time.process_time_ns if whole else time.thread_time_ns
        cpu, wall = clock_ns(), time.perf_counter_ns()
        for _ in range(repeats - 1):
            self.run()
        last = time.perf_counter_ns()
        self.run()
        end = time.perf_counter_ns()
        cpu = clock_ns() - cpu
        return {
            "cpu": cpu / repeats / 1e6,
            "wall": (end - wall) / repeats / 1e6,
            "single": (end - last) / 1e6,
        }


class OnnxRunner(Runner):
    """ONNX Runtime on the CPU."""

    def __init__(self, job: WorkerJob, network: JobNetwork) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        share_threads(onnxruntime, options, job["threads"])
        options.inter_op_num_threads = 1
        options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
        options.log_severity_level = 3
        # With all shapes known it builds what it builds of a graph for this batch alone.
        options.add_free_dimension_override_by_name(BATCH, job.get("batch_size", 1))
        providers = ["CPUExecutionProvider"]
        self._session = onnxruntime.InferenceSession(network["path"], options, providers=providers)
        shapes = {entry.name: entry.shape for entry in self._session.get_inputs()}
        for name, shape in shapes.items():
            if not all(isinstance(size, int) for size in shape):
                raise ValueError(f"input {name} is {shape}; only {BATCH!r} may stand for a number")
        self._feed = filled(shapes, job["seed"])
        self.batch_size = next(iter(shapes.values()))[0]

    def run(self) -> Any:
        return self._session.run(None, self._feed)[0]


_pool_threads: int | None = None


def share_threads(onnxruntime: Any, options: Any, threads: int) -> None:
    """Let a session compute with ``threads`` threads that do not get in other sessions' way.

    A session's idle threads spin for a while before they sleep, on cores that the session in turn
    needs. All sessions of this process therefore share one pool, which the first of them makes; a
    release of ONNX Runtime without one, or another number of threads, stops the spinning instead.
    """
    global _pool_threads  # the runtime itself has it once a process
    options.intra_op_num_threads = threads
    if threads == 1:  # the calling one
        return
    if _pool_threads is None and hasattr(onnxruntime, "set_global_thread_pool_sizes"):
        onnxruntime.set_global_thread_pool_sizes(threads, 1)
        _pool_threads = threads
    if _pool_threads == threads:
        options.use_per_session_threads = False
    else:
        options.add_session_config_entry("session.force_spinning_stop", "1")


class OpenVinoRunner(Runner):
    """OpenVINO on the CPU; it computes in a thread of its own."""

    clock = "process"

    def __init__(self, job: WorkerJob, network: JobNetwork) -> None:
        # It would tell its makers of its use, from a process forked off a timed one.
        sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]
        import openvino

        # It takes bfloat16 by itself where the CPU has it.
        settings = {
            "INFERENCE_PRECISION_HINT": "f32",
            "INFERENCE_NUM_THREADS": job["threads"],
            "NUM_STREAMS": "1",
            "PERFORMANCE_HINT": "LATENCY",
        }
        core = openvino.Core()
        graph = core.read_model(network["path"])
        open_shapes = {
            entry: list(entry.get_partial_shape())
            for entry in graph.inputs
            if entry.get_partial_shape().is_dynamic
        }
        if open_shapes:
            batch_size = job.get("batch_size", 1)
            graph.reshape({entry: [batch_size, *s[1:]] for entry, s in open_shapes.items()})
        model = core.compile_model(graph, "CPU", settings)
        self._request = model.create_infer_request()
        shapes = {entry.get_any_name(): list(entry.shape) for entry in model.inputs}
        self.batch_size = next(iter(shapes.values()))[0]
        for name, value in filled(shapes, job["seed"]).items():
            self._request.set_tensor(name, openvino.Tensor(value))

    def run(self) -> Any:
        self._request.infer()
        return self._request.get_output_tensor(0).data


RUNTIMES: Runtimes = {"onnxruntime": OnnxRunner, "openvino": OpenVinoRunner}


def filled(shapes: dict[str, list[int]], seed: int) -> dict[str, np.ndarray[Any, Any]]:
    """Inputs of the given shapes, standard normal; the same everywhere for the same seed."""
    import numpy as np

    chance = np.random.default_rng(seed)
    return {name: chance.standard_normal(shape, dtype=np.float32) for name, shape in shapes.items()}


def main(runtimes: Runtimes = RUNTIMES, described: Callable[[], Device] | None = None) -> None:
    """Answer jobs until the input ends.

    ``runtimes`` make runners by name; ``described`` tells of the device, by default :func:`device`.
    """
    # A pool of numpy's or OpenMP's threads would only disturb the runtime's own.
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        os.environ.setdefault(name, "1")
    jobs: queue.Queue[WorkerJob] = queue.Queue()
    folder = tempfile.mkdtemp(prefix="levit-search-worker-")
    threading.Thread(target=_read_jobs, args=(jobs, folder), daemon=True).start()
    write({"event": "ready", "protocol": PROTOCOL, "device": (described or device)()})
    worker = _Worker(runtimes, folder)
    while True:
        job = jobs.get()
        try:
            write({**worker.answer(job), "job": job.get("job")})
        except Exception as error:  # whatever went wrong on the device belongs to the one who asked
            text = str(error).strip().partition("\n")[0] or "no further reason"
            write({"event": "error", "message": f"{type(error).__name__}: {text}"})


def _read_jobs(jobs: queue.Queue[WorkerJob], folder: str) -> None:
    pipe, code = sys.stdin.buffer, 0
    try:
        while line := pipe.readline():
            job = json.loads(line)
            if job["do"] == "file":  # its content follows
                with open(_received(folder, job["name"]), "wb") as file:
                    left = job["bytes"]
                    while left and (part := pipe.read(min(left, 1 << 20))):
                        file.write(part)
                        left -= len(part)
            elif job["do"] == "forget":
                os.unlink(_received(folder, job["name"]))
            else:
                jobs.put(job)
    except (OSError, ValueError, KeyError) as error:  # a full disk, or no job of ours
        print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
        code = 1
    shutil.rmtree(folder, ignore_errors=True)
    os._exit(code)


def _received(folder: str, name: str) -> str:
    """Where a file that was sent is kept; its name leads nowhere else."""
    # Runtimes take no path but in UTF-8.
    plain = os.path.basename(name).encode("utf-8", "backslashreplace").decode("utf-8")
    return os.path.join(folder, plain)


class _Worker:
    """What is kept between jobs."""

    def __init__(self, runtimes: Runtimes, folder: str) -> None:
        self._runtimes = runtimes
        self._folder = folder
        self._plans: dict[str, tuple[list[int], list[int]]] = {}

    def answer(self, job: WorkerJob) -> WorkerAnswer:
        """The answer to one job."""
        for network in job["networks"]:
            if "file" in network:
                network["path"] = _received(self._folder, network.pop("file"))
        if job["do"] == "round":
            with host_to_itself():
                return self._round(job)
        if job["do"] == "peak":
            with host_to_itself():
                return _peak_in_new_process(job)
        runner = self._runtimes[job["runtime"]](job, job["networks"][0])
        first = runner.run()
        if job["do"] == "own_peak":
            return {"event": "peak", "bytes": runner.peak_memory_bytes()}
        return {"event": "logits", "logits": [float(logit) for logit in first[0].ravel()]}

    def _round(self, job: WorkerJob) -> WorkerAnswer:
        begun = time.perf_counter()
        runners = [self._runtimes[job["runtime"]](job, network) for network in job["networks"]]
        prepared = time.perf_counter()
        warm = [_warm_up(runner) for runner in runners]
        start = time.perf_counter()
        repeats, untimed = self._plan(job, runners, warm)
        choosing_s = time.perf_counter() - start
        cycles = _time_in_turn(runners, repeats, untimed, prepared + choosing_s + job["seconds"])
        end = time.perf_counter()
        answer: WorkerAnswer = {
            "event": "round",
            "cycles": cycles,
            "batch_sizes": [runner.batch_size for runner in runners],
            "notes": [runner.note for runner in runners],
            "prepare_s": prepared - begun + choosing_s,
            "timing_s": end - prepared - choosing_s,
        }
        del runners
        gc.collect()  # the next round's sessions shall not find these ones' memory in use
        return answer

    def _plan(
        self, job: WorkerJob, runners: list[Runner], repeats: list[int]
    ) -> tuple[list[int], list[int]]:
        """How many runs of each network make a timing, and how many before it do not count; once
        for all rounds of the same networks, so that these are alike."""
        names = json.dumps([job.get("warm"), job["networks"]], sort_keys=True)
        if names not in self._plans:
            untimed = _untimed(runners, repeats) if job.get("warm") else [0] * len(runners)
            self._plans[names] = repeats, untimed
        return self._plans[names]


def _warm_up(runner: Runner) -> int:
    """Run for a while; returns how many runs make one timing long enough to trust."""
    runner.run()  # the first one allocates
    runs, start = 0, time.perf_counter()
    while runs < 1 or time.perf_counter() - start < WARM_UP_S:
        runner.timed(1)
        runs += 1
    each = (time.perf_counter() - start) / runs
    return max(1, math.ceil(SHORTEST_TIMING_S / each))


def _untimed(runners: list[Runner], repeats: list[int]) -> list[int]:
    """How many runs it takes until each network is as fast as it stays, after others have run.

    A network that is timed over several runs finds the caches full of the others' data: its first
    runs may take some times as long as the later ones. None for a network timed over one run: by
    how much its first is slower is too near to noise, and sessions would choose differently.
    """
    found = []
    for index, runner in enumerate(runners):
        runs_ms = []
        for _ in range(_COLD_STARTS if repeats[index] > 1 else 0):
            for other in runners[:index] + runners[index + 1 :]:
                other.run()
            timings = [runner.timed(1) for _ in range(2 * _MOST_UNTIMED)]
            runs_ms.append([each.get("device", each["wall"]) for each in timings])
        usual = [sorted(times)[len(times) // 2] for times in zip(*runs_ms)]
        settled = sorted(usual[_MOST_UNTIMED:])[_MOST_UNTIMED // 2] if usual else 0.0
        slow = [run for run, ms in enumerate(usual[:_MOST_UNTIMED]) if ms > _AS_FAST * settled]
        found.append(slow[-1] + 1 if slow else 0)
    return found


def _time_in_turn(
    runners: list[Runner], repeats: list[int], untimed: list[int], end: float
) -> list[list[dict[str, float]]]:
    """Timings [cycles][networks] in turn, every other cycle backwards, as many in either order.

    Of more than two networks another one begins each time, so that each follows itself as often.
    """
    cycles: list[list[dict[str, float]]] = []
    count = len(runners)
    gc.disable()
    try:
        while len(cycles) < 2 or len(cycles) % 2 or time.perf_counter() < end:
            first = len(cycles) // 2 % count if count > 2 else 0
            order = [(first + place) % count for place in range(count)]
            timings: list[dict[str, float]] = [{}] * count
            for index in order[::-1] if len(cycles) % 2 else order:
                timings[index] = _turn(runners[index], repeats[index], untimed[index])
            cycles.append(timings)
    finally:
        gc.enable()
    return cycles


def _turn(runner: Runner, repeats: int, untimed: int) -> dict[str, float]:
    """One timing, after runs that bring the network into the caches."""
    for _ in range(untimed):
        runner.run()
    return runner.timed(repeats)


def _peak_in_new_process(job: WorkerJob) -> WorkerAnswer:
    """Run the job's network once in a new worker; its peak is that of this network alone."""
    if "SOURCE" not in globals():  # a file of the package: started like ourselves
        start, head = [sys.executable, *sys.orig_argv[1:]], b""
    else:
        source: bytes = globals()["SOURCE"]
        # An emulated Python has to be started as we were; sys.executable is none of this machine's.
        python = job["python"] if is_emulated() and job.get("python") else [sys.executable]
        start = [*python, "-c", BOOTSTRAP]
        head = b"%d\n" % len(source) + source
    line = json.dumps({**job, "do": "own_peak"}).encode() + b"\n"
    # Huge pages are for steady timings; they would round its memory up.
    env = {name: value for name, value in os.environ.items() if name != "GLIBC_TUNABLES"}
    process = subprocess.Popen(start, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=env)
    assert process.stdin is not None and process.stdout is not None
    with contextlib.suppress(BrokenPipeError):  # its output tells of its end
        process.stdin.write(head + line)
        process.stdin.flush()
    answers = [process.stdout.readline(), process.stdout.readline()]
    with contextlib.suppress(BrokenPipeError):
        process.stdin.close()
    code = process.wait()
    if not answers[1]:
        killed = " (out of memory?)" if code == -9 else ""
        raise RuntimeError(f"a process with this network alone ended with {code}{killed}")
    answer: WorkerAnswer = json.loads(answers[1])
    return answer


def peak_memory_bytes() -> int:
    """The largest resident set of this process so far."""
    try:
        with open("/proc/self/status", encoding="ascii") as file:
            for line in file:
                if line.startswith("VmHWM:"):
                    return int(line.split()[1]) * 1024
    except OSError:
        pass  # not Linux
    import resource

    peak: int = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def lock_paths() -> tuple[str, str]:
    """The files that keep probes, and training of this package, from sharing a host's cores.

    Whoever wants the host for itself locks the gate, then the cores, exclusively; whoever can share
    it passes through the gate and then shares the cores, a batch at a time.
    """
    folder = os.environ.get("LEVIT_SEARCH_LOCKS")
    if not folder:
        folder = "/tmp" if os.path.isdir("/tmp") else tempfile.gettempdir()
    gate, cores = (os.path.join(folder, f"levit-search.{name}") for name in ("gate", "cores"))
    return gate, cores


def open_lock(path: str) -> int:
    """A lock file's descriptor; the file may belong to another user."""
    try:
        return os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        try:
            handle = os.open(path, os.O_RDONLY | os.O_CREAT | os.O_EXCL, 0o644)
        except FileExistsError:
            return os.open(path, os.O_RDONLY)
        os.fchmod(handle, 0o644)  # whatever the umask says: other users have to read it
        return handle


@contextlib.contextmanager
def host_to_itself() -> Iterator[None]:
    """Wait until no other probe runs on this host and training has paused; hold it meanwhile."""
    try:
        import fcntl
    except ImportError:  # Windows has no such locks; `device` says so
        yield
        return
    with contextlib.ExitStack() as stack:
        for path in lock_paths():
            handle = open_lock(path)
            stack.callback(os.close, handle)
            told = time.perf_counter()
            while True:
                try:
                    fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    time.sleep(0.01)
                if time.perf_counter() - told > _WAITING_EVERY_S:
                    told = time.perf_counter()
                    write({"event": "waiting"})
        yield


UNKNOWN = "?"
"""The version of what does not tell it."""
_RUNNING = ("onnxruntime", "openvino", "torch", "numpy")


def device() -> Device:
    """What this process finds of its device."""
    huge_pages = _first_line("/sys/kernel/mm/transparent_hugepage/enabled") or ""
    return {
        "protocol": PROTOCOL,
        "machine": machine(),
        "cpu": device_name(),
        "cores": cores(),
        "governor": _first_line("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"),
        "transparent_huge_pages": huge_pages.partition("[")[2].partition("]")[0] or None,
        "malloc_huge_pages": "hugetlb=1" in os.environ.get("GLIBC_TUNABLES", ""),
        "system": platform.platform(),
        "python": platform.python_version(),
        "runtimes": {name: told for name in _RUNNING if (told := version(name)) is not None},
        "emulated": is_emulated(),
        "locks": os.name == "posix",
    }


def machine() -> str:
    """The instruction set, under one name on all systems."""
    names = {"arm64": "aarch64", "amd64": "x86_64"}
    name = platform.machine().lower()
    return names.get(name, name)


def cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def version(module: str) -> str | None:
    """The version of what brings a module, with its name where that is another one, such as
    ``1.22.1 (onnxruntime-gpu)``; None where there is no such module."""
    found = distribution(module)
    if found is None:
        return None
    return found[1] if found[0] == module else f"{found[1]} ({found[0]})"


def distribution(module: str) -> tuple[str, str] | None:
    """Name and version of what brings a module; None where there is no such module.

    The module is what counts: ``onnxruntime`` is brought by ``onnxruntime-gpu`` and others, too,
    and by builds that tell nothing of themselves but in the module.
    """
    import importlib.util
    from importlib import metadata

    spec = importlib.util.find_spec(module)
    if spec is None or spec.origin is None:  # or a folder that an uninstalled one has left
        return None
    with contextlib.suppress(metadata.PackageNotFoundError):
        return module, metadata.version(module)
    if sys.version_info >= (3, 10):  # noqa: UP036 (devices may have an older one)
        for name in metadata.packages_distributions().get(module, ()):
            return name, metadata.version(name)
    return module, str(getattr(importlib.import_module(module), "__version__", UNKNOWN))


# ARM's own cores by the part numbers of their identification register (Arm Ltd., MIDR_EL1).
_ARM_PARTS = {
    "0xd03": "Cortex-A53",
    "0xd04": "Cortex-A35",
    "0xd05": "Cortex-A55",
    "0xd07": "Cortex-A57",
    "0xd08": "Cortex-A72",
    "0xd09": "Cortex-A73",
    "0xd0a": "Cortex-A75",
    "0xd0b": "Cortex-A76",
    "0xd0c": "Neoverse-N1",
    "0xd40": "Neoverse-V1",
    "0xd41": "Cortex-A78",
    "0xd44": "Cortex-X1",
    "0xd49": "Neoverse-N2",
    "0xd4f": "Neoverse-V2",
}


def device_name() -> str:
    """The CPU's model, by which latencies of two machines are told apart."""
    known = _cpuinfo()
    if "model name" in known:
        return known["model name"]
    board = _first_line("/sys/firmware/devicetree/base/model")
    part = known.get("cpu part", "")
    if known.get("cpu implementer") == "0x41" and part in _ARM_PARTS:
        part = _ARM_PARTS[part]
    elif part:
        part = f"{known.get('cpu implementer', '')} {part}".strip()
    names = [name.strip("\0 ") for name in (part, board) if name]
    return ", ".join(names) or platform.processor() or platform.machine()


def _cpuinfo() -> dict[str, str]:
    """The first entry of each kind in the kernel's account of the CPUs; empty off Linux."""
    found: dict[str, str] = {}
    try:
        with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as file:
            lines = file.readlines()
    except OSError:
        return found
    for line in lines:
        name, colon, value = line.partition(":")
        if colon:
            found.setdefault(name.strip().lower(), value.strip())
    return found


def is_emulated() -> bool:
    """Whether an emulator runs this process; its timings say nothing of the machine it plays."""
    with contextlib.suppress(OSError):
        if "qemu" in os.path.basename(os.readlink("/proc/thread-self/exe")):
            return True
    # x86 lists flags where ARM lists features.
    return machine() in ("aarch64", "armv7l") and "flags" in _cpuinfo()


def _first_line(path: str) -> str | None:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.readline().strip() or None
    except OSError:
        return None


def write(message: WorkerAnswer) -> None:
    """Send one answer."""
    sys.stdout.write(json.dumps(message) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
