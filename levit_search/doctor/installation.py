"""Python, the packages that are installed in it, and whether they work.

What may take a process down with it is tried in one of its own, step by step: imports, and a tiny
network that trains and that each inference runtime runs.
"""

import functools
import importlib
import json
import os
import platform
import re
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Sequence
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

from levit_search import architecture
from levit_search.doctor import Finding, fail, ok, warn
from levit_search.escaping import quoted
from levit_search.latency.process_pipe import exit_name
from levit_search.latency.worker import RUNTIMES, UNKNOWN, WorkerJob, distribution, version
from levit_search.recipe import Recipe
from levit_search.version import __version__

_NAME = "levit-search"
_PIP = "python -m pip"
STEPS_S = 60.0
"""For torch and all that needs it; a busy machine takes a while."""

# Modules that are imported somewhere, by the distribution that brings them; torch and what needs it
# are tried by runtimes().
_SAME = ("numpy", "pandas", "pydantic", "rich", "typer", "filelock", "psutil", "sqlalchemy")
_MODULES = {
    **{name: name for name in (*_SAME, "optuna", "onnx", "ray")},
    "PyYAML": "yaml",
    "pillow": "PIL.Image",
    "scikit-learn": "sklearn.datasets",
    "matplotlib": "matplotlib.figure",
    "resvg-py": "resvg_py",
}

# What an extra is for.
_EXTRAS = {
    "intel": "OpenVINO as a probe's runtime",
    "dashboard": "the live page",
    "tensorboard": "run --tensorboard",
    "data": "data sets of Hugging Face and WebDataset",
    "postgres": "a PostgreSQL server as storage",
    "mysql": "a MySQL server as storage",
}

# What trains and times networks, in the order in which it is tried, and what fails without it.
_BREAKS = {
    "torch": "training, and probes of networks",
    "torchvision": "training, timm's networks and sets of pictures",
    "timm": "training, teachers and timm's networks",
    "network": "every trial that is trained",
    "augmentation": "training on sets that stay on disk, with RandAugment",
    "graph": "every probe, and export",
    "onnxruntime": "every probe with runtime onnxruntime, and the check of exports",
    "openvino": "probes with runtime openvino",
    "int8": "probes with precision int8, objectives in int8 and their export",
    "gpu": "training with device cuda and probes of target cuda",
}

# Where these fail there is no use in trying.
_NEEDS = {
    "torchvision": ("torch",),
    "timm": ("torch", "torchvision"),
    "network": ("torch", "timm"),
    "augmentation": ("torch", "torchvision", "timm"),
    "gpu": ("torch",),
    "graph": ("network",),
    "onnxruntime": ("graph",),
    "openvino": ("graph",),
    "int8": ("graph", "onnxruntime"),
}


def python() -> Finding:
    """Which Python this is."""
    found = f"{platform.python_version()} at {sys.executable}"
    if sys.maxsize < 2**32:
        return fail(f"{found}, 32 bits", "torch has no such build", "install a Python of 64 bits")
    return ok(f"{found} ({platform.platform(terse=True)})")


def package() -> Finding:
    """Where this package is, and whether pip knows of it."""
    where = Path(__file__).parents[1]
    found, mend = f"{__version__} in {where}", f"{_PIP} install -e {quoted(str(where.parent))}"
    try:
        known = metadata.version(_NAME)
    except metadata.PackageNotFoundError:
        return fail(f"{found}, not installed", "the bounds of packages are not known", mend)
    if known != __version__:
        breaks = "bounds of packages may be those of another release"
        return warn(f"{found}, installed as {known}", breaks, mend)
    return ok(found)


def packages() -> list[Finding]:
    """Versions beside what this package asks for, and which extras are there."""
    from packaging.requirements import Requirement

    try:
        required = metadata.requires(_NAME) or []
    except metadata.PackageNotFoundError:  # which is a finding of its own
        required = []
    wrong: list[str] = []
    others: list[str] = []
    wanted_again: list[str] = []
    lacking: dict[str, list[str]] = {name: [] for name in _EXTRAS}
    count = 0
    for wanted in map(Requirement, required):
        named = re.search(r"extra == ['\"]([\w-]+)", str(wanted.marker or ""))
        extra = named[1] if named else None
        if extra == "dev" or (extra is None and wanted.marker and not wanted.marker.evaluate()):
            continue
        found = _installed(wanted.name)
        if found is not None:
            count += 1
            name, version = found
            if name != wanted.name:
                others.append(f"{name} {version} for {wanted.name}")
                wanted.name = name
            if version == UNKNOWN or wanted.specifier.contains(version, prereleases=True):
                continue
            wrong.append(f"{wanted.name} is {version}, not {wanted.specifier}")
        elif extra is not None:
            lacking.setdefault(extra, []).append(wanted.name)
            continue
        else:
            wrong.append(f"{wanted.name} is missing")
        wanted.marker = None
        wanted_again.append(f"'{wanted}'")
    finding = ok("; ".join([f"{count} as asked for", *others]))
    if wrong:
        mend = f"{_PIP} install {' '.join(wanted_again)}"
        finding = fail("; ".join(wrong), "whatever needs them", mend)
    away = [name for name, absent in lacking.items() if absent]
    extras = ", ".join(name for name, absent in lacking.items() if not absent) or "none"
    if away:
        told_of = ", ".join(f"{name} ({_EXTRAS.get(name, 'more')})" for name in away)
        extras += f"; not installed: {told_of}; pip install '{_NAME}[{','.join(away)}]'"
    return [finding, ok(extras, "extras")]


def _installed(name: str) -> tuple[str, str] | None:
    """A distribution and its version, or another's that brings the same module."""
    try:
        return name, metadata.version(name)
    except metadata.PackageNotFoundError:
        module = _MODULES.get(name, name.replace("-", "_"))
        return distribution(module.partition(".")[0])


def imports() -> Finding | list[Finding]:
    """Whether everything imports but torch and what needs it."""
    there = {name: found for name in _MODULES if (found := _installed(name)) is not None}
    steps = carried_out([_MODULES[name] for name in there], STEPS_S)
    broken = []
    for (name, (brought_by, installed)), step in zip(there.items(), steps.values(), strict=True):
        if not step.is_ok:
            mend = f"{_PIP} install --force-reinstall {brought_by}"
            text = f"{installed} does not import: {step.text}"
            broken.append(fail(text, "whatever needs it", mend, name))
    return broken or ok(f"all {len(there)} packages import")


def runtimes() -> list[Finding]:
    """Torch with what needs it, and each inference runtime."""
    has_openvino = distribution("openvino") is not None
    done = carried_out([name for name in _BREAKS if name != "openvino" or has_openvino], STEPS_S)
    findings = []
    for name, step in done.items():
        if step.is_ok:
            finding = ok(step.text, name)
        elif step.needs is not None:
            breaks, mend = f"{_BREAKS[name]} may fail", f"mend {step.needs} first"
            finding = warn(step.text, breaks, mend, name)
        else:
            found = f"{version(name) or ''} fails: {step.text}".lstrip()
            finding = fail(found, _BREAKS[name], how_to_mend(name), name)
        findings.append(replace(finding, group="machine") if name == "gpu" else finding)
    if not has_openvino:
        told = "not installed; pip install 'levit-search[intel]' for runtime openvino"
        findings.append(ok(told, "openvino"))
    return findings


def how_to_mend(name: str) -> str:
    """What to do where a step of :func:`runtimes` fails."""
    if name in ("torch", "torchvision", "network"):
        # A torchvision that was built for another torch does not import. The build of torch that is
        # installed came from where its version tells, as far as it does.
        _, plus, build = (version("torch") or "").partition("+")
        index = f" --index-url https://download.pytorch.org/whl/{build}" if plus else ""
        return f"{_PIP} install --force-reinstall torch torchvision{index}"
    known = {
        "gpu": "see nvidia-smi, and https://pytorch.org for a torch built for its driver",
        "augmentation": f"{_PIP} install --upgrade timm pillow",
        "graph": f"{_PIP} install --upgrade onnx",
        "int8": f"{_PIP} install --upgrade onnx onnxruntime",
    }
    brought_by, _ = distribution(name) or (name, "")
    return known.get(name, f"{_PIP} install --force-reinstall {brought_by}")


class Step(NamedTuple):
    """How one ended: ``text`` is what it told, or why it failed."""

    is_ok: bool
    text: str
    needs: str | None = None
    """The step without which it was not tried."""


def carried_out(names: Sequence[str], limit_s: float) -> dict[str, Step]:
    """Carry steps out one after another, in a process of their own.

    Args:
        names: of modules to import, or of the methods of :class:`_Work`.
        limit_s: for all of them together.

    Returns:
        How each ended, in this order, those that were not reached included.
    """
    # Not by -m, which would import what lies in the working directory first.
    command = [sys.executable, "-c", _PROGRAM, json.dumps(sys.path), *names]
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, timeout=limit_s
        )
        told = done.stdout
        end = f"the process ended with {exit_name(done.returncode)}"
        last = done.stderr.decode(errors="replace").strip().rpartition("\n")[2]
        end = f"{end}: {last[:200]}" if last else end
    except subprocess.TimeoutExpired as late:
        told, end = late.stdout or b"", f"not done after {limit_s:g} s"
    # What is not written to its end is none of them, nor is what libraries print at the start.
    ours = (b"[]", b"[true, ", b"[false, ")
    lines = [line for line in told.split(b"\n")[:-1] if line.startswith(ours)]
    found = {name: Step(*json.loads(line)) for name, line in zip(names, lines[1:], strict=False)}
    left = names[len(found) :]
    blamed = left[0] if lines and left else None
    for name in left:
        told_of = end if name == blamed else f"not reached ({end})"
        found[name] = Step(False, told_of, None if name == blamed else blamed)
    return found


_PROGRAM = """
import sys
sys.path = [place for place in sys.path if place]
import json
sys.path += [place for place in json.loads(sys.argv.pop(1)) if place and place not in sys.path]
from levit_search.doctor.installation import carry_out
carry_out(sys.argv[1:])
"""


def carry_out(names: Sequence[str]) -> None:
    """Carry steps out here, where :func:`carried_out` waits for them.

    A line of JSON goes to standard output at the beginning, and a :class:`Step` after each step:
    which one ended this process, or hangs, is known by the lines that are not there.
    """
    told = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what libraries print is no answer
    told.write("[]\n")
    failed: set[str] = set()
    with tempfile.TemporaryDirectory() as folder:
        work = _Work(Path(folder))
        for name in names:
            cause = next((each for each in _NEEDS.get(name, ()) if each in failed), None)
            try:
                if cause is not None:
                    step = Step(False, f"not tried without {cause}", cause)
                elif hasattr(work, name):
                    step = Step(True, getattr(work, name)())
                else:
                    module = importlib.import_module(name)
                    step = Step(True, str(getattr(module, "__version__", "imports")))
            except BaseException as error:
                traceback.print_exc()
                step = Step(False, " ".join(f"{type(error).__name__}: {error}".split())[:300])
            if not step.is_ok:
                failed.add(name)
            told.write(json.dumps(step) + "\n")


class _Work:
    """Steps that are more than an import, and what one leaves for the next."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._model: Any = None
        self._logits: Any = None

    def network(self) -> str:
        """One step of training of a tiny network, and its logits."""
        import torch

        from levit_search.model import build

        torch.manual_seed(0)
        self._model = build(architecture.parse(_TINY))
        images = torch.randn(2, 1, 16, 16)
        loss = self._model.train()(images).square().mean()
        loss.backward()
        if not torch.isfinite(loss):
            raise ValueError(f"its loss is {loss.item()}")
        with torch.no_grad():
            self._logits = self._model.eval()(images[:1]).numpy()
        return f"trains and evaluates a network ({torch.get_num_threads()} threads)"

    def augmentation(self) -> str:
        """RandAugment on some pictures, as sets on disk have it."""
        import numpy as np
        from PIL import Image

        from levit_search.batches.on_disk import seeded, training_view

        view = training_view(Recipe(rand_augment="rand-m9-mstd0.5-inc1"), 16, True, [128] * 3)
        pixels = np.random.default_rng(0).integers(0, 256, (32, 24, 24, 3), dtype=np.uint8)
        with seeded(0):
            for each in pixels:
                view(Image.fromarray(each))
        return "pictures are augmented"

    def gpu(self) -> str:
        """A product of matrices on the GPU, if there is one."""
        import torch

        if not torch.cuda.is_available():
            built = "without CUDA" if torch.version.cuda is None else f"CUDA {torch.version.cuda}"
            return f"none (torch {torch.__version__}, {built})"
        ones = torch.ones(64, 64, device="cuda")
        if (ones @ ones).sum().item() != 64**3:
            raise ValueError("it does not multiply")
        memory = torch.cuda.get_device_properties(0).total_memory / 1e9
        return f"{torch.cuda.get_device_name(0)}, {memory:.0f} GB, CUDA {torch.version.cuda}"

    def graph(self) -> str:
        """The network as ONNX."""
        from levit_search.model.onnx_graph import export_onnx

        export_onnx(self._model, self._folder / "tiny.onnx", 1)
        return "a network is written as ONNX"

    def _run(self, runtime: str) -> str:
        """The graph by an inference runtime, as a probe has it."""
        import numpy as np

        logits = self._answer(runtime, "tiny.onnx")
        if logits.shape != self._logits.shape or not np.isfinite(logits).all():
            raise ValueError(f"its logits are {logits!r}")
        return f"{version(runtime)} runs a network"

    def _answer(self, runtime: str, file: str) -> Any:
        """The logits of a graph."""
        import numpy as np

        job: WorkerJob = {"threads": 1, "batch_size": 1, "seed": 0}
        return np.asarray(RUNTIMES[runtime](job, {"path": str(self._folder / file)}).run())

    def int8(self) -> str:
        """The graph quantized, and whether int8 overflows on this machine."""
        import numpy as np

        from levit_search.latency.targets import Int8Config
        from levit_search.model.quantization import SATURATION_LOGIT, quantize, saturating_graph

        images = np.random.default_rng(0).standard_normal((8, 1, 16, 16), np.float32)
        names = self._folder / "tiny.onnx", self._folder / "int8.onnx"
        quantize(*names, images, Int8Config(), "u8-reduced")
        logits = self._answer("onnxruntime", "int8.onnx")
        if logits.shape != self._logits.shape or not np.isfinite(logits).all():
            raise ValueError(f"its logits are {logits!r}")
        saturating_graph(self._folder / "saturates.onnx")
        is_whole = self._answer("onnxruntime", "saturates.onnx").min() >= 0.99 * SATURATION_LOGIT
        formats = "u8 does not overflow here" if is_whole else "u8 overflows here, u8-reduced not"
        nncf = "with nncf for OpenVINO" if distribution("nncf") is not None else "without nncf"
        return f"a network is quantized; {formats}; {nncf}"

    onnxruntime = functools.partialmethod(_run, "onnxruntime")
    openvino = functools.partialmethod(_run, "openvino")


_TINY = {
    "image_size": 16,
    "in_channels": 1,
    "num_classes": 10,
    "stem": {"kind": "conv", "layers": 2},
    "stages": [{"depth": 1, "embed_dim": 16, "num_heads": 2, "key_dim": 8}],
    "distillation": False,
}
