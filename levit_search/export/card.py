"""The model card of an export: every figure with its spread, and where it comes from."""

import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from levit_search.architecture import Architecture, sizes_of
from levit_search.data import DataConfig
from levit_search.escaping import printable, quoted
from levit_search.export.formats import Preprocessing
from levit_search.export.int8 import InInt8, Quantization
from levit_search.export.retraining import Retrained, Retraining
from levit_search.export.timm_checkpoint import TimmCheckpoint
from levit_search.export.verification import (
    INT8_GRAPH,
    KnownLatency,
    Remeasurement,
    latencies,
)
from levit_search.image_size import image_shape
from levit_search.pareto import PAIRED
from levit_search.pretrained import donor_of
from levit_search.significance import (
    Accuracy,
    Verdict,
    accuracy_text,
    interval_text,
    wilson_percent,
)
from levit_search.study import Record, Study, StudyConfig
from levit_search.study.folder import environment
from levit_search.table import figure

_KINDS = {"levit": "LeViT", "graft": "graft (ResNet stages, then ViT layers)"}
_CLASSES_SHOWN = 20
_WHAT = {
    "model.py": "the network as one readable torch module; needs torch alone",
    "model.safetensors": "its weights, for `model.py` and levit-search",
    "timm/": "the same as a checkpoint of timm",
    "model.onnx": "for inference: batch norms folded, any batch size, class names and "
    "preprocessing in its metadata",
    INT8_GRAPH: "the same in int8, as QDQ: `python predict.py --model model.int8.onnx`",
    "model.openvino.xml": "the same for OpenVINO, with `model.openvino.bin`",
    "model.pt2": "the same as a program of `torch.export`, batch norms folded",
    "predict.py": "classifies image files with onnxruntime, numpy and Pillow alone",
    "preprocess.json": "how an image becomes the network's input",
    "architecture.yaml": "its description, for levit-search",
    "architecture.svg": "its block diagram",
}


@dataclass(frozen=True)
class Facts:
    """What is known of an exported network."""

    study: Study
    record: Record
    choice: str
    """How it was picked."""
    preprocessing: Preprocessing
    accuracies: Mapping[str, tuple[float, int]]
    """By split, of the weights that are exported: top-1 in percent, and of how many images."""
    verdict: Verdict
    """What the accuracies of the search are worth."""
    notice: str | None
    """What is to be known before anything else: that these weights are no better than guessing."""
    retrained: Retrained | None
    retraining: Retraining | None
    """How it was asked for."""
    parity: Mapping[str, float]
    """How far each file's logits are from the trained network's, at most."""
    again: Sequence[Remeasurement]
    timm: TimmCheckpoint | str
    """What timm was given, or why it has no such network."""
    config: StudyConfig
    """That the weights were trained with."""
    int8: InInt8 | None
    """The network in int8."""
    quantization: Quantization
    """How that was asked for."""
    files: Sequence[str]

    @property
    def network(self) -> Architecture:
        assert self.record.architecture is not None
        return self.record.architecture


def model_card(facts: Facts) -> str:
    """``README.md`` of an export."""
    network = facts.network
    # What model hubs read.
    library = "timm" if not isinstance(facts.timm, str) else "onnx"
    parts = [
        f"---\nlibrary_name: {library}\npipeline_tag: image-classification\n"
        f"tags:\n- levit-search\n- {network.family}\n---",
        f"# {text(facts.study.config.name)} {network.id}",
        f"> **{text(facts.notice)}**" if facts.notice else "",
        f"A {_KINDS[network.family]} for {_data(facts.config.data)}, found by levit-search: "
        f"trial {facts.record.trial} of the study `{code(facts.study.config.name)}`, picked by "
        f"`{code(facts.choice)}`.",
        "![block diagram](architecture.svg)" if "architecture.svg" in facts.files else "",
        f"`{network.summary()}`; input {' x '.join(map(str, image_shape(network)))}, "
        f"{network.num_classes} classes.",
        "## Figures",
        _table(["figure", "value", "spread", "how and where"], _figures(facts)),
        "One multiply-add is one FLOP. Latencies are measured in pairs against a reference network "
        "and given as the ratio to it times its own milliseconds: compare the ratios.",
        *_in_int8(facts),
        *_compared(facts),
        "## Use",
        *_use(facts),
        "## Files",
        *_files(facts),
        "## Input",
        *_input(facts),
        "## Training",
        _training(facts),
        "## Made by",
        _made(facts),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def text(value: str) -> str:
    """Foreign text within Markdown: what means something there, or in HTML, means nothing."""
    plain = html.escape(printable(" ".join(value.split())), quote=False)
    return "".join(f"\\{each}" if each in "\\`*_[]|#" else each for each in plain)


def code(value: str) -> str:
    """Foreign text between backticks."""
    return printable(" ".join(value.split())).replace("`", "'").replace("|", "\\|")


def _data(config: DataConfig) -> str:
    """What a data set is called."""
    if config.name == "folder" and config.root is not None:
        return f"the images in {text(Path(config.root).name)}"
    return text(config.name)


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


Row = tuple[str, str, str, str]


def _figures(facts: Facts) -> list[Row]:
    rows, values = _accuracies(facts), facts.record.values
    known = latencies(facts.study.config, facts.record)
    for each in known:
        reference = each.config.reference
        if not isinstance(reference, str):
            reference = each.config.reference_for(**sizes_of(facts.network)).summary()
        rows.append(_latency(each, reference))
    rows += [_again(again) for again in facts.again]
    for each in known:
        if each.found.get("peak_memory_mb"):
            peak = f"{each.found['peak_memory_mb']:.4g} MB"
            rows.append((f"peak memory{_on(each)}", peak, "", "of the probe's process"))
    heads = {"flops": "FLOPs", "params": "parameters", "activations": "activations"}
    for name, head in heads.items():
        rows.append((head, f"{values[name]:,.0f}", "exact", "closed form"))
    return rows


def _accuracies(facts: Facts) -> list[Row]:
    data, retrained = _data(facts.config.data), facts.retrained
    rows: list[Row] = []
    for split, (percent, images) in facts.accuracies.items():
        spread = f"{interval_text(*wilson_percent(percent, images))} % (95 %, binomial)"
        how = f"{images:,} images of {data}; these weights"
        rows.append((f"top-1, {split}", f"{percent:.2f} %", spread, how))
    if retrained is None:
        return rows
    if len(retrained.seeds) > 1:
        how = f"seeds {', '.join(map(str, retrained.seeds))}"
        by_split = {"val": retrained.val_top1_percent, "test": retrained.test_top1_percent}
        for split, found in by_split.items():
            spread = f"sd {stdev(found):.2f}: {', '.join(f'{each:.2f}' for each in found)}"
            rows.append((f"top-1, {split}, over seeds", f"{mean(found):.2f} %", spread, how))
    if "top1_percent" in facts.record.values:
        is_judged = facts.verdict.figure == "top1_percent"
        searched = facts.verdict.by_trial.get(facts.record.trial) if is_judged else None
        spread = f"{searched.interval()} % (95 %, binomial)" if searched else ""
        value = f"{facts.record.values['top1_percent']:.2f} %"
        how = f"after {facts.study.config.candidate_recipe.epochs} epochs"
        rows.append(("top-1, val, in the search", value, spread, how))
    return rows


def _on(known: KnownLatency) -> str:
    return "" if known.target is None else f" on {text(known.target)}"


def _latency(known: KnownLatency, reference: str) -> Row:
    in_int8 = " in int8" if known.config.precision == "int8" else ""
    head, found = f"latency{in_int8}{_on(known)}", known.found
    if found.get("method") == "predicted":
        spread = f"{found['low_ms']:.4g} to {found['high_ms']:.4g} ms (95 %)"
        return (f"{head}, predicted", f"{found['latency_ms']:.4g} ms", spread, "not measured")
    value = f"{found['latency_ms']:.4g} ms ({found['ratio_to_reference']:.4f} x {code(reference)} "
    low, high = found["ratio_ci95"]
    spread = f"{low:.4f} to {high:.4f} x (95 %)"
    if known.repeats_percent is not None:
        spread += (
            f"; another measurement within ±{known.repeats_percent:.1f} % (95 %); "
            f"{known.search_ms:.4g} ms in the search"
        )
    return (head, f"{value}fitted to these images)", spread, _conditions(found))


def _conditions(found: Mapping[str, Any]) -> str:
    device = found["device"].get("gpu") or found["device"]["cpu"]
    emulated = ", emulated" if found["emulated"] else ""
    return (
        f"{text(device)}{emulated}, {found['runtime']}, {found['precision']}, batch "
        f"{found['batch_size']}, {found['threads']} thread(s), {found['pairs']} pairs"
    )


def _again(again: Remeasurement) -> Row:
    target = again.figure.partition("@")[2]
    head = f"latency of {text(again.timed)}" + (f" on {text(target)}" if target else "")
    if again.now is None:
        return (head, "not measured", "", text(again.reason or ""))
    low, high = again.now["ratio_ci95"]
    how = _conditions(again.now)
    how += f"; {text(again.compared())}"
    if again.difference_percent is not None:
        how += ", agrees" if again.agrees else ", DOES NOT AGREE"
    value = f"{again.now['latency_ms']:.4g} ms ({again.now['ratio_to_reference']:.4f} x)"
    return (head, value, f"{low:.4f} to {high:.4f} x (95 %)", how)


def _in_int8(facts: Facts) -> list[str]:
    """The int8 graph beside the float one."""
    found = facts.int8
    if found is None:
        return []
    quantized, tuned = found.quantized, found.finetuning
    rows = [
        (
            f"top-1, {split}",
            accuracy_text(found.float_top1_percent[split], images),
            accuracy_text(found.top1_percent[split], images),
            f"{0 - found.drop(split):+.2f} points",  # no -0.00
        )
        for split, images in found.images.items()
    ]
    for each in found.timed:
        head = f"latency on {text(each.target)}"
        if each.found is None:
            rows.append((head, "", "", text(each.compared())))
            continue
        own, of_float = each.found["latency_ms"], each.found["reference_ms"]
        told = f"**{each.compared()}**" if each.is_slower else each.compared()
        rows.append((head, f"{of_float:.4g} ms", f"{own:.4g} ms", told))
    in_pairs = " Latencies are measured in pairs of the two files."
    share = quantized.bytes / found.float_bytes
    rows.append(
        ("file", f"{found.float_bytes:,} bytes", f"{quantized.bytes:,} bytes", f"{share:.2f} x")
    )
    lines = [
        "## In int8",
        f"> **{found.too_large}.**" if found.too_large else "",
        _table(["figure", "model.onnx", INT8_GRAPH, "int8 beside float"], rows),
        f"Format `{quantized.format}` ({text(found.chosen)}), calibrated by "
        f"{quantized.calibration} on {quantized.images:,} image(s) of the training split. "
        f"Accuracies are of the same images, those in int8 as {found.runtime} computes them here; "
        f"intervals are binomial (95 %).{in_pairs if found.timed else ''}",
        f"Operators in int8: {_operators(quantized.quantized)}. In float on purpose: "
        f"{_operators(quantized.kept)}. In float since the format has no int8 for them: "
        f"{_operators(quantized.left)}.",
    ]
    if tuned is not None:
        weights = "are these" if tuned.is_taken else "are without it, which is better on val"
        by_labels = ", by labels without the study's teacher"
        taught = facts.config.teaching is not None and facts.network.distillation
        lines.append(
            f"Finetuned for {tuned.epochs} epoch(s) with the roundings of int8 at a learning rate "
            f"of {tuned.lr:.2g}{by_labels if taught else ''}: val "
            f"{tuned.top1_percent['val']:.2f} %, test {tuned.top1_percent['test']:.2f} %; without "
            f"it val {tuned.plain_top1_percent['val']:.2f} %, test "
            f"{tuned.plain_top1_percent['test']:.2f} %. The weights of `{INT8_GRAPH}` {weights}; "
            "those of all other files are as the network was trained."
        )
    return lines


def _operators(groups: Mapping[str, int]) -> str:
    """How many operators of each group, in words."""
    return ", ".join(f"{group} ({count})" for group, count in groups.items()) or "none"


def _compared(facts: Facts) -> list[str]:
    """The networks of timm that the study has figures of, beside this one's in the search."""
    known = [each for each in facts.study.baselines() if each.is_complete]
    if not known:
        return []
    own, verdict = facts.record.values, facts.verdict
    costs = [name for name in own if name.partition("@")[0] in PAIRED]
    accuracy = verdict.figure
    in_int8 = "" if accuracy == "top1_percent" else " in int8"
    heads = [
        "network",
        f"top-1{in_int8}, val",
        *(f"{name.replace('_ms', '')}, ratio" for name in costs),
    ]

    def row(name: str, values: Mapping[str, float], found: Accuracy | None) -> list[str]:
        cells = [name, figure(accuracy, values.get(accuracy))]
        if found is not None:
            cells[1] = f"{found.percent:.2f} % ({found.interval()})"
        for cost in costs:
            ratio = f"{values[cost] / own[cost]:.3f} x" if cost in values else ""
            cells.append(f"{figure(cost, values.get(cost))} ms, {ratio}" if ratio else "")
        return [*cells, f"{values['flops']:,.0f}", f"{values['params']:,.0f}"]

    rows = [row("this one", own, verdict.by_trial.get(facts.record.trial))]
    for each in known:
        rows.append(row(text(each.summary), each.values, verdict.by_baseline.get(each.config.id)))
    recipe = facts.study.config.train
    return [
        "## Compared with",
        _table([*heads, "FLOPs", "parameters"], rows),
        f"All figures are those of the search. Networks of timm were trained for {recipe.epochs} "
        "epochs on the same images by the study's recipe, without a teacher; intervals are "
        "binomial (95 %). A ratio is that of the latency to this network's: above 1 is slower. "
        "FLOPs of timm's networks are counted by fvcore.",
    ]


def _use(facts: Facts) -> list[str]:
    shape = ", ".join(map(str, image_shape(facts.network)))
    snippets = [
        "```sh\npip install onnxruntime pillow numpy\npython predict.py image.png\n```",
        "```python\nfrom model import load  # model.py; torch alone\n\n"
        'network = load("model.safetensors")\n'
        f"logits = network(images)  # [B, {shape}], see preprocess.json\n```",
    ]
    if not isinstance(facts.timm, str):
        snippets.append(
            "```python\nimport timm\n\n"
            'network = timm.create_model("local-dir:timm", pretrained=True)'
            f"  # {facts.timm.name}\n```"
        )
    return snippets


def _files(facts: Facts) -> list[str]:
    rows = []
    for name in filter(_WHAT.__contains__, facts.files):
        found = facts.parity.get(name.rstrip("/"))
        if name == INT8_GRAPH and facts.int8 is not None:
            found = facts.int8.logits_max_abs_diff
        difference = "" if found is None else f"{found:.1e}" if found else "none"
        rows.append((f"`{name}`", _WHAT[name], difference))
    lines = [_table(["file", "what it is", "largest difference in logits"], rows)]
    lines.append(
        "Each was read in a process of its own and compared with the trained network on real "
        "images of the validation split."
    )
    if isinstance(facts.timm, str):
        lines.append(f"There is no folder `timm`: {text(facts.timm)}.")
    return lines


def _input(facts: Facts) -> list[str]:
    names = facts.preprocessing["class_names"]
    shown = ", ".join(text(str(name)) for name in names[:_CLASSES_SHOWN])
    more = len(names) - _CLASSES_SHOWN
    rest = f" and {more} more (`preprocess.json`)" if more > 0 else ""
    rows = [
        (f"`{key}`", f"`{code(str(value))}`")
        for key, value in facts.preprocessing.items()
        if key != "class_names"
    ]
    return [_table(["", ""], rows), f"Classes: {shown}{rest}."]


def _training(facts: Facts) -> str:
    retrained = facts.retrained
    if retrained is not None:
        recipe, epochs, seed = facts.config.train, retrained.epochs, retrained.seed
        start = "/".join(Path(recipe.weights).parts[-2:])  # no more of where a file lies
        where = f"trained again for this export, from {text(start)} weights"
        if recipe.donor_weights is not None and donor_of(facts.network) is not None:
            where += f" (its ResNet from {text(Path(recipe.donor_weights).name)})"
    else:
        recipe, seed = facts.config.candidate_recipe, facts.config.search.seed
        epochs, where = recipe.epochs, "in the search"
    lines = [f"{epochs} epochs of the recipe `{recipe.recipe}` with seed {seed}, {where}."]
    found = (facts.record.evaluation or {}).get("training") or {}
    if retrained is None and "started_from" in found:
        lines.append(f"It started with {text(found['started_from'])}.")
    if recipe.ema_decay is not None:
        lines.append(f"The weights are averages over the training (decay {recipe.ema_decay:g}).")
    teaching = facts.config.teaching
    if teaching is not None and facts.network.distillation:
        lines.append(f"Distilled ({recipe.distillation}) from {text(teaching.name)}.")
    if retrained is not None and len(retrained.seeds) > 1:
        lines.append("Of several seeds these weights are the best on val.")
    lines.append(
        "The search saw val, so that its figure is likely a little too good; no choice was made by "
        "the test split."
    )
    return " ".join(lines)


def _made(facts: Facts) -> str:
    now = environment([])
    packages = ", ".join(f"{name} {version}" for name, version in now["packages"].items())
    revision = f" ({now['revision']})" if now["revision"] else ""
    options = facts.retraining.options() if facts.retraining is not None else []
    options += facts.quantization.options() if facts.int8 is not None else []
    named = [str(facts.study.folder), "--pick", facts.choice, *options]
    command = " ".join(["levit-search export", *map(quoted, named)])
    return (
        f"`{code(command)}` on {now['started']}, {text(now['cpu'])}, {text(now['system'])}, Python "
        f"{now['python']}: {packages}{revision}."
    )
