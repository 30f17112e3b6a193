"""Static columns: parameters and FLOPs of each row, beside the published ones."""

from typing import Any

from levit_search import baseline, cost
from levit_search.architecture import Architecture, Graft, parse, published
from levit_search.baseline import Baseline
from levit_search.reproduce.paper import Row, Table
from levit_search.reproduce.results import Figures


def static_row(row: Row) -> Figures:
    """What a row's network costs, with the deviation from each published figure.

    ``*_deviation_percent`` compare FLOPs. ``params_agree`` is ``rounded`` where our parameters
    round to the published figure, ``truncated`` where only cutting their digits off gives it, and
    ``no`` elsewhere.
    """
    assert row.network is not None
    network = baseline.load_network(row.network)
    figures = _baseline(network) if isinstance(network, Baseline) else _ours(network)
    published_params = row.paper.get("params_m")
    if published_params is not None:
        figures["params_agree"] = agreement(figures["params"] / 1e6, published_params)
    for ours, theirs in (
        ("flops", "mflops"),
        ("conv_flops", "conv_mflops"),
        ("conv_flops_with_norm", "conv_mflops"),
        ("transformer_flops", "transformer_mflops"),
    ):
        if row.paper.get(theirs) and ours in figures:
            deviation = 100 * (figures[ours] / 1e6 / row.paper[theirs] - 1)
            figures[f"{ours}_deviation_percent"] = round(deviation, 2) + 0.0  # no -0.0
    return figures


def agreement(value: float, published_value: float) -> str:
    """How ``value`` agrees with a figure that was published with its decimals."""
    decimals = len(str(published_value).partition(".")[2])
    if round(value, decimals) == published_value:
        return "rounded"
    return "truncated" if int(value * 10**decimals) / 10**decimals == published_value else "no"


def _ours(network: Architecture) -> Figures:
    conv, transformer = cost.parts(network)
    figures = {
        **cost.cost(network)._asdict(),
        "conv_flops": conv.flops,
        "transformer_flops": transformer.flops,
    }
    if isinstance(network, Graft):
        # fvcore, with which the paper's convolution column agrees, adds two FLOPs for each element
        # that a batch norm gives out; every convolution of a donor has one.
        donor = [row for row in cost.layers(network) if row.name.startswith("donor.")]
        figures["conv_flops_with_norm"] = conv.flops + 2 * sum(row.activations for row in donor)
    return figures


def _baseline(network: Baseline) -> Figures:
    found = baseline.count(network)
    return {
        **found.total._asdict(),
        "norm_flops_left_out": sum(found.left_out.values()),
        "unsupported": found.unsupported,
    }


def stem_rows(table: Table) -> list[dict[str, Any]]:
    """The paper's comparison of stems, each under LeViT-256.

    The published count of ten ResNet-18 convolutions leaves shortcuts out; ``flops`` is the whole
    stem as built, ``main_path_flops`` leaves shortcuts and the projection to the trunk out.
    """
    base = published("LeViT-256").model_dump(mode="json")
    rows = []
    for described in table.extra["stems"]:
        network = parse({**base, "stem": described["stem"]})
        layers = [row for row in cost.layers(network) if row.name.startswith("stem.")]
        aside = ("downsample", "projection")
        main = sum(row.flops for row in layers if not row.name.endswith(aside))
        flops = sum(row.flops for row in layers)
        here: Figures = {"flops": flops, "main_path_flops": main}
        paper = {"mflops": described["mflops"]} if "mflops" in described else {}
        if paper:
            here["deviation_percent"] = round(100 * (main / 1e6 / paper["mflops"] - 1), 2)
        rows.append({"name": described["name"], "paper": paper, "here": here})
    return rows
