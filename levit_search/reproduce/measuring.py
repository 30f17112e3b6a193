"""Measures the columns of the paper's tables: counts, speeds and accuracies, row by row.

Shapes of Table 6's components: B images, T tokens, C channels, H heads, K key and V value channels
a head.
"""

import itertools
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from levit_search import baseline, cost
from levit_search.architecture import Architecture, Graft, Levit, parse, published
from levit_search.baseline import Baseline, load_network
from levit_search.configuration import write_yaml
from levit_search.errors import InputError, TrialError
from levit_search.latency import LatencyConfig, Probe
from levit_search.latency.cache import fingerprint
from levit_search.latency.targets import TORCH_RUNTIMES
from levit_search.model import build, fold, write_graph
from levit_search.model.blocks import Attention, AttentionCore, Block
from levit_search.progress import StepProgress
from levit_search.reproduce import PaperRow, PaperTable, ReproductionStore, Run, rendering
from levit_search.reproduce.training import Setting, train_rows
from levit_search.study import StudyConfig

_SPEED_SETTINGS = {"runtime", "precision", "threads", "batch_size", "seconds", "rounds", "layout"}


@dataclass(frozen=True)
class Request:
    """What to reproduce, and how.

    ``training`` is used by the accuracy columns: its data, train and teacher sections and its seed,
    which is the first of ``seeds``.
    ``again`` repeats what is finished with the same settings; unfinished work is always gone on
    with, and timings are always repeated.
    """

    table: PaperTable
    columns: tuple[str, ...]
    latency: LatencyConfig
    training: StudyConfig
    width_scale: float
    environment: Mapping[str, Any]
    again: bool
    seeds: int = 1
    lrs: tuple[float, ...] = ()
    """Learning rates of which each row takes its own; that of the recipe where there are none."""
    jobs: int = 1
    """Trainings at once."""

    @property
    def setting(self) -> Setting:
        """What the trainings of rows have in common."""
        return Setting(self.table, self.training, self.width_scale)


Measure = Callable[[PaperRow], Mapping[str, Any]]
"""The figures of one row."""


def reproduce(request: Request, store: ReproductionStore, progress: StepProgress) -> None:
    """Measure what is asked for, into ``store`` and its folder.

    All files are written after each row. An interrupted run goes on with the same settings. A row
    that fails says why under ``failed``, and the others follow.

    Args:
        request: what to measure.
        store: goes on from what it holds.
        progress: shows each group of columns, and its rows as steps.

    Raises:
        InputError: missing data, settings that the table does not have, a folder that cannot be
            written or is being filled by another command.
        TrialError: the teacher could not be trained, or the target of timings cannot be reached.
    """
    table = request.table
    if table.name == "blocks" and request.latency.layout != "tokens":
        raise InputError("--layout: blocks are timed over tokens, as Table 6 is")
    if table.name == "blocks" and request.latency.runtime in TORCH_RUNTIMES:
        raise InputError("--target: blocks are timed on CPUs, by onnxruntime or openvino")

    for columns in request.columns:
        keep = columns == "accuracy" and not request.again
        run = store.begin(columns, _settings(request, columns), request.environment, keep)
        save = partial(_save, table, store, columns)
        if columns == "accuracy":  # a finished run may lack further seeds
            first = request.training.search.seed
            seeds = range(first, first + request.seeds)
            machine = str(request.environment.get("cpu", ""))
            train_rows(request.setting, run, seeds, request.jobs, machine, save, progress)
            store.finish(run)
        elif run.finished is None or columns == "static":
            progress.begin(columns, len(table.built))
            with _measuring(request, run) as measure:
                for row in table.built:
                    progress.step(row.name)
                    if row.name in run.rows and columns != "static":
                        continue
                    try:
                        figures = measure(row)
                    except TrialError as error:
                        figures = {"failed": str(error)}
                    run.rows[row.name] = figures
                    if columns != "static":
                        save()
            store.finish(run)
        save()


def _settings(request: Request, columns: str) -> Mapping[str, Any]:
    """What the figures of a group depend on; of speeds, the device and the runtime's version."""
    if columns == "static":
        return {}
    if columns == "speed":
        config = request.latency
        with Probe(config) as probe:
            device = probe.connect()
        return {
            "target": config.target.label,
            **config.model_dump(mode="json", include=_SPEED_SETTINGS | {"interval_percent"}),
            **fingerprint(device, config.runtime),
        }
    training = request.training.model_dump(mode="json", include={"data", "train"})
    teaching = request.setting.teaching
    return {
        "data": training["data"],
        "width_scale": request.width_scale,
        "train": training["train"],
        "teacher": teaching.model_dump(mode="json") if teaching is not None else None,
        "seed": request.training.search.seed,
        "lrs": list(request.lrs or [request.training.train.lr]),
    }


def _measuring(request: Request, run: Run) -> AbstractContextManager[Measure]:
    """What measures the rows of a run."""
    if run.columns == "static":
        if "stems" in request.table.extra:
            run.extra["stems"] = stem_rows(request.table)
        return nullcontext(static_row)
    if request.table.name == "blocks":
        return _component_speed(request.latency)
    return _speed(run, request.table, request.latency)


def _save(table: PaperTable, store: ReproductionStore, columns: str) -> None:
    """Write all files of the folder; the curves only where ``columns`` are what changes them."""
    store.save()
    accuracy = store.latest("accuracy")
    if columns == "accuracy" and accuracy and (curves := rendering.draw_curves(accuracy, table)):
        store.write("curves.svg", curves)
    elif columns == "accuracy":
        (store.folder / "curves.svg").unlink(missing_ok=True)  # those of settings before
    store.write("table.csv", rendering.as_csv(table, store))
    store.write("table.md", rendering.as_markdown(table, store))
    settings = {
        run.columns: {"finished": run.finished, "settings": run.settings, **run.environment}
        for run in store.shown()
    }
    store.write("study.yaml", write_yaml({"reproduces": table.name, **settings}))


# Static columns: parameters and FLOPs.


def static_row(row: PaperRow) -> Mapping[str, Any]:
    """What a row's network costs, with the deviation from each published figure.

    ``*_deviation_percent`` compare FLOPs. ``params_agree`` is ``rounded`` where our parameters
    round to the published figure, ``truncated`` where only cutting their digits off gives it, and
    ``no`` elsewhere.
    """
    assert row.network is not None
    network = load_network(row.network)
    figures: dict[str, float] = {}
    other: dict[str, object] = {}
    if isinstance(network, Baseline):
        found = baseline.count(network)
        figures |= found.total._asdict()
        figures["norm_flops_left_out"] = sum(found.left_out.values())
        other["unsupported"] = found.unsupported
    else:
        conv, transformer = cost.parts(network)
        figures |= cost.cost(network)._asdict()
        figures |= {"conv_flops": conv.flops, "transformer_flops": transformer.flops}
    if isinstance(network, Graft):
        # fvcore, with which the paper's convolution column agrees, adds two FLOPs for each element
        # that a batch norm gives out; every convolution of a donor has one.
        donor = [part for part in cost.layers(network) if part.name.startswith("donor.")]
        batch_norm = 2 * sum(part.activations for part in donor)
        figures["conv_flops_with_norm"] = figures["conv_flops"] + batch_norm
    if (published_params := row.paper.get("params_m")) is not None:
        other["params_agree"] = agreement(figures["params"] / 1e6, published_params)
    deviations = {}
    for ours, theirs in (
        ("flops", "mflops"),
        ("conv_flops", "conv_mflops"),
        ("conv_flops_with_norm", "conv_mflops"),
        ("transformer_flops", "transformer_mflops"),
    ):
        if row.paper.get(theirs) and ours in figures:
            deviation = 100 * (figures[ours] / 1e6 / row.paper[theirs] - 1)
            deviations[f"{ours}_deviation_percent"] = round(deviation, 2) + 0.0  # no -0.0
    return {**figures, **other, **deviations}


def agreement(value: float, published_value: float) -> str:
    """How ``value`` agrees with a figure that was published with its decimals."""
    decimals = len(str(published_value).partition(".")[2])
    if round(value, decimals) == published_value:
        return "rounded"
    return "truncated" if int(value * 10**decimals) / 10**decimals == published_value else "no"


def stem_rows(table: PaperTable) -> list[Mapping[str, Any]]:
    """The paper's comparison of stems, each under LeViT-256.

    The published count of ten ResNet-18 convolutions leaves shortcuts out; ``flops`` is the whole
    stem as built, ``main_path_flops`` leaves shortcuts and the projection to the trunk out.
    """
    base = published("LeViT-256").model_dump(mode="json")
    rows: list[Mapping[str, Any]] = []
    for described in table.extra["stems"]:
        network = parse({**base, "stem": described["stem"]})
        layers = [row for row in cost.layers(network) if row.name.startswith("stem.")]
        aside = ("downsample", "projection")
        main = sum(row.flops for row in layers if not row.name.endswith(aside))
        flops = sum(row.flops for row in layers)
        here: dict[str, float] = {"flops": flops, "main_path_flops": main}
        paper = {"mflops": described["mflops"]} if "mflops" in described else {}
        if paper:
            here["deviation_percent"] = round(100 * (main / 1e6 / paper["mflops"] - 1), 2)
        rows.append({"name": described["name"], "paper": paper, "here": here})
    return rows


# Speed columns: each row timed in pairs against the first one.


@contextmanager
def _speed(run: Run, table: PaperTable, config: LatencyConfig) -> Iterator[Measure]:
    """Timings of rows; the configuration's own reference is not used.

    ``speed_ratio`` is images a second relative to the table's first row, the mean of the rounds,
    with its 95 % interval. ``latency_ms`` of a run of ``batch_size`` images and ``throughput_ips``
    are that ratio times the first row's own figure, so that a machine whose speed changes meanwhile
    does not change the order; the other times are raw.
    """
    first = table.built[0]
    assert first.network is not None
    reference = load_network(first.network)
    with Probe(config, fresh=True) as probe:

        def measure(row: PaperRow) -> Mapping[str, Any]:
            assert row.network is not None
            found = probe.measure(load_network(row.network), reference)
            low, high = found.ratio_ci95
            first_ms = run.rows.get(first.name, {}).get("reference_ms", found.reference_ms)
            scale = first_ms / found.reference_ms
            return {
                "latency_ms": found.latency_ms * scale,
                "throughput_ips": found.throughput_ips / scale,
                "batch_size": found.batch_size,
                "speed_ratio": 1 / found.ratio_to_reference,
                "speed_ratio_ci95": [1 / high, 1 / low],
                "cpu_ms": found.cpu_ms,
                "wall_ms": found.wall_ms,
                "reference_ms": found.reference_ms,
                "pairs": found.pairs,
                "timing_seconds": round(found.seconds, 2),
            }

        yield measure
    run.extra["comparisons"] = comparisons(run, table)


def comparisons(run: Run, table: PaperTable) -> list[Mapping[str, Any]]:
    """Each LeViT beside what the paper holds it against, and beside the next larger LeViT.

    ``times_faster`` is here and in the paper, on its GPU where this ran on one, else on Intel.
    """
    levits = [row.name for row in table.rows if row.name.startswith("LeViT-")]
    known = {name for name, row in run.rows.items() if "speed_ratio" in row}
    pairs = [*itertools.pairwise(levits), *table.extra.get("faster_than", {}).items()]
    column = "gpu_ips" if "gpu" in run.settings else "intel_ips"
    paper_ips = {row.name: row.paper[column] for row in table.rows if column in row.paper}
    return [
        {
            "faster": faster,
            "slower": slower,
            "times_faster": run.rows[faster]["speed_ratio"] / run.rows[slower]["speed_ratio"],
            "paper_times_faster": paper_ips[faster] / paper_ips[slower],
        }
        for faster, slower in pairs
        if {faster, slower} <= known
    ]


# Table 6: the components of one layer of DeiT-Tiny and of LeViT-256's first stage, timed. Each
# component of one network is timed in turn with its counterpart of the other.

Component = tuple[nn.Module, dict[str, Tensor]]


@contextmanager
def _component_speed(config: LatencyConfig) -> Iterator[Measure]:
    """Timings of components, in microseconds a run; the configuration's reference is not used.

    ``levit_to_deit`` is the mean of the rounds with its interval. The layer norm has no
    counterpart in LeViT; it is timed against the whole layer of DeiT-Tiny, which ``total`` is.
    """
    assert isinstance(config.batch_size, int)
    parts = {
        "deit": components(deit_layer(), 197, config.batch_size),
        "levit": components(levit_layer(), 196, config.batch_size),
    }
    with tempfile.TemporaryDirectory() as folder, Probe(config) as probe:

        def graph(of: str, name: str) -> Path:
            path = Path(folder) / f"{of}-{list(parts[of]).index(name)}.onnx"
            if not path.exists():
                write_graph(*parts[of][name], "out", path)
            return path

        def measure(row: PaperRow) -> Mapping[str, Any]:
            deit = graph("deit", row.name)
            if row.name not in parts["levit"]:
                (found,) = probe.time_graphs([deit], graph("deit", "total"))
                return {"deit_us": 1000 * found.latency_ms, "pairs": found.pairs}
            (found,) = probe.time_graphs([graph("levit", row.name)], deit)
            return {
                "deit_us": 1000 * found.reference_ms,
                "levit_us": 1000 * found.ratio_to_reference * found.reference_ms,
                "levit_to_deit": found.ratio_to_reference,
                "levit_to_deit_ci95": list(found.ratio_ci95),
                "pairs": found.pairs,
            }

        yield measure


def components(block: Block, tokens: int, batch_size: int) -> dict[str, Component]:
    """The parts of a layer under the table's names, each a module with inputs of its shapes.

    Q, K and V come from one linear layer in both networks, which is split for the table. The
    attention's activation goes with the projection. Residual additions are in ``total`` only.
    """
    attention, core = block.attention, block.attention.core
    heads, key_dim, value_dim = core.num_heads, core.key_dim, core.value_dim
    width = attention.projection.linear.out_features
    x_btc = torch.randn(batch_size, tokens, width)
    q_bhtk, k_bhtk = torch.randn(2, batch_size, heads, tokens, key_dim)
    v_bhtv = torch.randn(batch_size, heads, tokens, value_dim)
    scores = torch.randn(batch_size, heads, tokens, tokens)
    joined_btc = torch.randn(batch_size, tokens, heads * value_dim)
    keys, values = _split_qkv(attention)
    projection = nn.Sequential(attention.activation, attention.projection)
    mlp = nn.Sequential(block.mlp.expand, block.mlp.activation, block.mlp.contract)
    parts: dict[str, Component] = {
        "Q, K": (keys, {"x": x_btc}),
        "V": (values, {"x": x_btc}),
        "Q K^T": (_Scores(core.scale), {"q": q_bhtk, "k": k_bhtk}),
        "bias and softmax": (_Softmax(core), {"scores": scores}),
        "A V": (_Values(), {"shares": scores.softmax(dim=-1), "v": v_bhtv}),
        "projection": (projection, {"x": joined_btc}),
        "MLP": (mlp, {"x": x_btc}),
        "total": (block, {"x": x_btc}),
    }
    if not isinstance(attention.norm, nn.Identity):
        parts["layer norm"] = (nn.Sequential(attention.norm, block.mlp.norm), {"x": x_btc})
    return parts


@torch.no_grad()
def _split_qkv(attention: Attention) -> tuple[nn.Linear, nn.Linear]:
    """The linear layer of queries and keys, and that of values; ours lie head by head."""
    core, linear = attention.core, attention.qkv.linear
    weight_hoc = linear.weight.unflatten(0, (core.num_heads, -1))
    bias_ho = linear.bias.unflatten(0, (core.num_heads, -1))
    split = 2 * core.key_dim

    def part(of: slice) -> nn.Linear:
        weight = weight_hoc[:, of].flatten(0, 1)
        layer = nn.Linear(weight.shape[1], weight.shape[0])
        layer.weight.copy_(weight)
        layer.bias.copy_(bias_ho[:, of].flatten())
        return layer

    return part(slice(split)), part(slice(split, None))


class _Scores(nn.Module):
    def __init__(self, scale: float) -> None:
        super().__init__()
        self.scale = scale

    def forward(self, q_bhqk: Tensor, k_bhtk: Tensor) -> Tensor:
        return q_bhqk @ k_bhtk.transpose(2, 3) * self.scale


class _Softmax(nn.Module):
    """With the attention bias before it, where there is one."""

    def __init__(self, core: AttentionCore) -> None:
        super().__init__()
        self.bias_hqt = core.bias_hqt

    def forward(self, scores_bhqt: Tensor) -> Tensor:
        if self.bias_hqt is not None:
            scores_bhqt = scores_bhqt + self.bias_hqt
        return scores_bhqt.softmax(dim=-1)


class _Values(nn.Module):
    def forward(self, shares_bhqt: Tensor, v_bhtv: Tensor) -> Tensor:
        return (shares_bhqt @ v_bhtv).transpose(1, 2).flatten(2)


def deit_layer() -> Block:
    """A layer of DeiT-Tiny: C=192, H=3, K=V=64."""
    network = parse(
        {
            "family": "graft",
            "image_size": 224,
            "num_classes": 1,
            "donor": {"stages": 0},
            "trunk": {"depth": 1, "embed_dim": 192, "num_heads": 3},
            "distillation": False,
        }
    )
    return _only_block(network)


def levit_layer() -> Block:
    """A layer of LeViT-256's first stage, batch norm folded: C=256, H=4, K=32, V=64."""
    network = published("LeViT-256")
    assert isinstance(network, Levit)
    stage = network.stages[0]
    one = {**network.model_dump(mode="json"), "shrinks": []}
    one["stages"] = [{**stage.model_dump(mode="json"), "depth": 1}]
    return _only_block(parse(one))


def _only_block(network: Architecture) -> Block:
    (block,) = [module for module in fold(build(network)).modules() if isinstance(module, Block)]
    return block
