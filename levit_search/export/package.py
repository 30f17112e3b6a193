"""A chosen network as a folder: its architecture, its weights and a model card."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from levit_search.architecture import Architecture, parse
from levit_search.configuration import read_yaml
from levit_search.errors import InputError, LevitSearchError
from levit_search.export.picking import weights_of
from levit_search.files import write_atomically
from levit_search.study import Record, Study

if TYPE_CHECKING:
    from torch import Tensor

_COMPARED_IMAGES = 64
_PARITY = 1e-5
_KINDS = {"levit": "LeViT", "graft": "graft (ResNet stages, then ViT layers)"}


@dataclass(frozen=True)
class Export:
    """What was written, and how far the written network's logits are from the trained one's."""

    dir: str
    files: list[str]
    parity_max_abs_diff: float
    latency_ms: float | None

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def export(study: Study, record: Record, out: Path, choice: str, force: bool = False) -> Export:
    """Write the network of ``record`` into ``out`` and check what was written.

    Raises:
        InputError: ``out`` is not empty and ``force`` is not set, or the trial's weights are gone.
        LevitSearchError: the written network's logits differ from the trained one's.
    """
    from safetensors.torch import load_file, save

    network = record.architecture
    assert network is not None
    if out.exists() and (not out.is_dir() or any(out.iterdir())) and not force:
        raise InputError(f"{out}: is not empty; choose another --out, or --force to write over it")
    trained = load_file(weights_of(study, record))
    try:
        out.mkdir(parents=True, exist_ok=True)
        write_atomically(out / "architecture.yaml", network.to_yaml())
        write_atomically(out / "model.safetensors", save(trained))
        difference = _difference(study, network, trained, out)
        write_atomically(out / "README.md", _card(study, record, choice, difference))
    except OSError as error:
        raise InputError(f"{out}: cannot be written ({error.strerror or error})") from None
    if not difference <= _PARITY:
        raise LevitSearchError(
            f"{out}: the exported network's logits differ from the trained one's by {difference:g}"
        )
    files = ["architecture.yaml", "model.safetensors", "README.md"]
    return Export(str(out), files, difference, record.values.get("latency_ms"))


def _difference(
    study: Study, network: Architecture, trained: dict[str, "Tensor"], out: Path
) -> float:
    """The largest difference in logits between the trained network and the one read back, on
    validation images."""
    import torch

    from levit_search.batches import open_batches
    from levit_search.model import build, load_weights

    ours, theirs = build(network), build(parse(read_yaml(out / "architecture.yaml")))
    load_weights(ours, trained)
    load_weights(theirs, out / "model.safetensors")
    batches = open_batches(study.config.data)
    images, _ = next(iter(batches.evaluation("val", _COMPARED_IMAGES, torch.device("cpu"))))
    with torch.inference_mode():
        return float((ours.eval()(images) - theirs.eval()(images)).abs().max())


def _card(study: Study, record: Record, choice: str, difference: float) -> str:
    """The model card."""
    network, config = record.architecture, study.config
    assert network is not None
    latency = record.evaluation.get("latency")
    training = record.evaluation.get("training")
    layout = (latency or {}).get("layout", config.latency.layout)
    lines = [
        f"# {network.id}",
        "",
        f"A {_KINDS[network.family]} found by levit-search: trial {record.trial} of the study "
        f"`{config.name}`, picked by `{choice}`.",
        "",
        "| figure | value |",
        "|---|---|",
    ]
    if training:
        epochs = len(training["curve"])
        lines.append(
            f"| top-1 on the validation split of {config.data.name} | "
            f"{record.values['top1_percent']:.2f} % after {epochs} epochs |"
        )
    if latency and latency.get("method") == "predicted":
        lines.append(
            f"| latency, predicted and not measured | {latency['latency_ms']:.4g} ms "
            f"(95 % interval {latency['low_ms']:.4g} to {latency['high_ms']:.4g}) |"
        )
    elif latency:
        low, high = latency["ratio_ci95"]
        lines.append(
            f"| latency, batch {latency['batch_size']}, {latency['threads']} thread(s), "
            f"{latency['precision']} | {latency['latency_ms']:.4g} ms |"
        )
        reference = config.latency.reference
        if not isinstance(reference, str):
            reference = f"`{parse(reference).summary()}`"
        lines.append(
            f"| ratio to {reference} fitted to {network.image_size} px | "
            f"{latency['ratio_to_reference']:.4f} (95 % interval {low:.4f} to {high:.4f}) |"
        )
        device = latency["device"].get("gpu") or latency["device"]["cpu"]
        lines.append(f"| measured on | {device}, {latency['runtime']} |")
    for name, found in record.evaluation.get("targets", {}).items():
        lines.append(
            f"| latency on {name} ({found['target']}, {found['runtime']}), batch "
            f"{found['batch_size']}, {found['threads']} thread(s), {found['precision']} | "
            f"{found['latency_ms']:.4g} ms |"
        )
    lines += [
        f"| FLOPs (one multiply-add is one) | {record.values['flops']:,.0f} |",
        f"| parameters | {record.values['params']:,.0f} |",
        f"| logits of these files against the trained network's | {difference:.1e} at most |",
        "",
        f"Input: {network.in_channels} x {network.image_size} x {network.image_size}; "
        f"{network.num_classes} classes; `{network.summary()}`.",
        "",
        "```python",
        "from pathlib import Path",
        "",
        "from levit_search import architecture",
        "from levit_search.model import build, load_weights",
        "",
        # In the layout whose latency stands above; the weights are the same in both.
        f'model = build(architecture.load("architecture.yaml"), layout="{layout}")',
        'load_weights(model, Path("model.safetensors"))',
        "model.eval()",
        "```",
        "",
    ]
    return "\n".join(lines)
