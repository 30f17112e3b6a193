"""What trains and times networks, with a tiny network that really runs."""

from levit_search.doctor.child import Step, carried_out
from levit_search.doctor.finding import Finding, Group, fail, ok, warn
from levit_search.doctor.installation import CHILD_S
from levit_search.latency.worker import distribution, version

_STEPS = (
    "torch",
    "torchvision",
    "timm",
    "network",
    "augmentation",
    "graph",
    "onnxruntime",
    "openvino",
    "gpu",
)

_BREAKS = {
    "torch": "training, and probes of networks",
    "torchvision": "training, timm's networks and sets of pictures",
    "timm": "training, teachers and timm's networks",
    "network": "every trial that is trained",
    "augmentation": "training on sets that stay on disk, with RandAugment",
    "graph": "every probe, and export",
    "onnxruntime": "every probe with runtime onnxruntime, and the check of exports",
    "openvino": "probes with runtime openvino",
    "gpu": "training with device cuda and probes of target cuda",
}


def runtimes() -> list[Finding]:
    """Torch with what needs it, and each inference runtime."""
    has_openvino = distribution("openvino") is not None
    steps = [name for name in _STEPS if name != "openvino" or has_openvino]
    done = carried_out(steps, CHILD_S)
    findings = [_finding(name, done[name]) for name in steps]
    if not has_openvino:
        told = "not installed; pip install 'levit-search[intel]' for runtime openvino"
        findings.append(ok("runtimes", "openvino", told))
    return findings


def _finding(name: str, step: Step) -> Finding:
    group: Group = "machine" if name == "gpu" else "runtimes"
    if step.is_ok:
        return ok(group, name, step.text)
    if step.needs is not None:
        return warn(group, name, step.text, f"{_BREAKS[name]} may fail", f"mend {step.needs} first")
    found = f"{version(name) or ''} fails: {step.text}".lstrip()
    return fail(group, name, found, _BREAKS[name], _mend(name))


def _mend(name: str) -> str:
    if name in ("torch", "torchvision", "network"):
        # A torchvision that was built for another torch does not import.
        return f"python -m pip install --force-reinstall torch torchvision{_index()}"
    if name == "gpu":
        return "see nvidia-smi, and https://pytorch.org for a torch built for its driver"
    if name == "augmentation":
        return "python -m pip install --upgrade timm pillow"
    if name == "graph":
        return "python -m pip install --upgrade onnx"
    brought_by, _ = distribution(name) or (name, "")
    return f"python -m pip install --force-reinstall {brought_by}"


def _index() -> str:
    """Where the build of torch that is installed came from, as far as its version tells."""
    _, plus, build = (version("torch") or "").partition("+")
    return f" --index-url https://download.pytorch.org/whl/{build}" if plus else ""
