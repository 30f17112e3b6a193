"""A chosen network as a folder: its architecture, its weights and a model card."""

import operator
import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from levit_search import table
from levit_search.architecture import Architecture, parse
from levit_search.configuration import read_yaml
from levit_search.errors import InputError, LevitSearchError
from levit_search.files import write_atomically
from levit_search.pareto import OBJECTIVES, figure_and_target, is_maximised, knee, minimised
from levit_search.study import Record, Study, find_record

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


def pick(study: Study, choice: str) -> Record:
    """One record of a study.

    Args:
        study: with at least one complete trial.
        choice: ``knee``, ``accurate``, ``fastest``, ``trial=N``, or a bound such as
            ``latency_ms<=5`` or ``flops<=300M``, which picks the most accurate network within it.

    Raises:
        InputError: the choice is none of these, or nothing satisfies it.
    """
    if choice.startswith("trial="):
        record = find_record(study, choice.removeprefix("trial=").strip())
        if record.state != "complete":
            raise InputError(f"{study.folder}: trial {record.trial} is {record.state}")
        return record
    objectives = study.config.objectives
    front = table.front(study.records(), objectives)
    if not front:
        raise InputError(f"{study.folder}: no finished trial to pick from yet")
    match choice:
        case "knee":
            return front[knee(minimised([record.values for record in front], objectives))]
        case "accurate":
            _needs(study, "top1_percent", choice)
            return max(front, key=lambda record: record.values["top1_percent"])
        case "fastest":
            _needs(study, "latency_ms", choice)
            return min(front, key=lambda record: record.values["latency_ms"])
    return _within_bound(study, front, choice)


def _needs(study: Study, name: str, choice: str) -> None:
    if name not in study.config.objectives:
        raise InputError(f"--pick {choice}: {name} is no objective of {study.folder}")


def _within_bound(study: Study, front: list[Record], choice: str) -> Record:
    from levit_search.configuration import parse_amount

    found = re.fullmatch(r"\s*([\w@-]+)\s*(<=|>=)\s*(\S+)\s*", choice)
    bound = _number(parse_amount(found[3])) if found else None
    if found is None or bound is None or figure_and_target(found[1])[0] not in OBJECTIVES:
        raise InputError(
            f"--pick {choice}: expected knee, accurate, fastest, trial=N or a bound such as "
            f"'latency_ms<=5' on one of {', '.join(OBJECTIVES)}"
        )
    name = found[1]
    if name not in front[0].values:
        raise InputError(f"--pick {choice}: {name} was not measured in {study.folder}")
    keeps = operator.le if found[2] == "<=" else operator.ge
    within = [record for record in front if keeps(record.values[name], bound)]
    if not within:
        nearest = min(front, key=lambda record: abs(record.values[name] - bound))
        raise InputError(
            f"--pick {choice}: nothing on the front keeps it; the nearest is trial "
            f"{nearest.trial} with {name} {nearest.values[name]:g}"
        )
    best = study.config.objectives[0]
    sign = -1 if is_maximised(best) else 1
    return min(within, key=lambda record: sign * record.values[best])


def _number(value: object) -> float | None:
    try:
        return float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return None


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


def weights_of(study: Study, record: Record) -> Path:
    """The file with the trained weights of a record's network.

    Raises:
        InputError: there is none.
    """
    if record.architecture is None:
        raise InputError(f"{study.folder}: trial {record.trial} proposed no valid network")
    path = study.checkpoints / f"{record.architecture.id}.safetensors"
    if not path.is_file():
        raise InputError(f"{path}: the trained weights of trial {record.trial} are not there")
    return path


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
