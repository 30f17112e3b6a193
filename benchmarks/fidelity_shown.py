"""The figures of :mod:`fidelity` as a table to read and as a picture."""

import io
from collections.abc import Mapping
from typing import Any

import numpy as np
from fidelity import Curves, epochs_of, front, plural, predictors_of


def as_markdown(document: Mapping[str, Any]) -> str:
    """The tables, with what they say in words."""
    longest, noise = document["longest"], document["noise"]
    lines = [f"# What short schedules say about {plural(longest)}", "", *_made_of(document), ""]
    lines += [
        f"## Agreement with the accuracy after {plural(longest)}, same seed",
        "",
        "| ranking by | networks | Kendall's tau | 95 % | Spearman's rho | 95 % |",
        "|---|---:|---:|---|---:|---|",
    ]
    lines += [
        f"| {name} | {row['networks']} | {row['tau']:.3f} | {_range(row, 'tau')} "
        f"| {row['rho']:.3f} | {_range(row, 'rho')} |"
        for name, row in document["agreement"].items()
    ]
    lines += ["", "Intervals are bootstrapped over networks.", ""]
    lines += [_compared(row) for row in document["differences"]]
    if noise:
        lines += ["", *_noise_table(noise, longest)]
    lines += [
        "",
        "## What a front is worth",
        "",
        "The front by (ranking, FLOPs); its members are then trained in full and compared with the "
        "front of the truth.",
        "",
        *_FRONT_HEAD,
        *(_front_row(name, row) for name, row in document["fronts"].items()),
        "",
        *(
            _front_in_words(name, row)
            for name, row in document["fronts"].items()
            if epochs_of(name)
        ),
    ]
    if document["fronts_across_seeds"]:
        lines += [
            "",
            "Front by one seed, truth of another; means over the ordered pairs of seeds, of which "
            "a schedule of its own has fewer. The last row is what noise alone costs.",
            "",
            *_FRONT_HEAD,
            *(_front_row(name, row) for name, row in document["fronts_across_seeds"].items()),
        ]
    return "\n".join(lines) + "\n"


_FRONT_HEAD = (
    "| ranking by | networks | on the front | on the true one | recall | hypervolume "
    "| regret, points | worst | epochs spent |",
    "|---|---:|---:|---:|---:|---:|---:|---:|---:|",
)


def _made_of(document: Mapping[str, Any]) -> list[str]:
    accuracy = document["accuracy"]
    text = [
        f"{document['networks']} networks; top-1 on val after {plural(document['longest'])}: "
        f"{accuracy['lowest']:.2f} to {accuracy['highest']:.2f} %, "
        f"median {accuracy['median']:.2f}, standard deviation {accuracy['sd']:.2f}."
    ]
    told = document.get("settings")
    if told:
        made, here, teacher = told["settings"], told["sessions"][-1], told["teacher"]
        factors = ", ".join(f"{k} {list(v)}" for k, v in made["factors"].items())
        fixed = ", ".join(f"{k} {v}" for k, v in made["fixed"].items())
        limit = f"; the space's limit of {made['flops_limit'] / 1e6:g} MFLOPs aside"
        text += [
            "",
            f"Every combination of {factors}; {fixed}; a head for every 16 channels, at most six; "
            f"all are networks of {made['space']}{limit if made['flops_limit'] else ''}. "
            f"{made['data']['name']}, {made['data']['train_images']} images for training at "
            f"{made['data']['image_size']} px, hard distillation from a {teacher['name']} of "
            f"{teacher['params'] / 1e6:.2f} M params that reaches "
            f"{teacher['val_top1_percent']:.2f} % on val. "
            f"{here['cpu']}, torch {here['packages']['torch']}, revision {here['revision']}. "
            "One multiply-add is one FLOP.",
        ]
    return text


def _range(row: Mapping[str, float], name: str) -> str:
    return f"{row[f'{name}_low']:.3f} to {row[f'{name}_high']:.3f}"


def _compared(row: Mapping[str, Any]) -> str:
    low, high = row["tau_low"], row["tau_high"]
    verdict = "ranks better than" if low > 0 else "ranks worse than" if high < 0 else None
    by = f"by {row['tau']:+.3f} of tau ({low:+.3f} to {high:+.3f})"
    if verdict is None:
        return f"- {row['of']} and {row['to']} cannot be told apart: {by}."
    return f"- {row['of']} {verdict} {row['to']}, {by}."


def _noise_table(noise: Mapping[str, Any], longest: int) -> list[str]:
    pairs = ", ".join(f"{each:.3f}" for each in noise["tau_of_pairs"])
    lines = [
        f"## Seed noise, {noise['networks']} networks with {len(noise['seeds'])} seeds",
        "",
        f"| after epoch | {' | '.join(str(epoch) for epoch in range(1, longest + 1))} |",
        f"|---|{'---:|' * longest}",
        f"| standard deviation over seeds, points | "
        f"{' | '.join(f'{sd:.2f}' for sd in noise['sd'])} |",
        "",
        f"Between these networks it is {noise['sd_between_networks']:.2f} points after "
        f"{plural(longest)}. Two seeds of the longest schedule agree by a tau of "
        f"{noise['tau']:.3f} ({_range(noise, 'tau')}; pairs {pairs}). "
        "A rung shares its seed with its truth; a ranking for all seeds should be held against the "
        "last column.",
        "",
        "| ranking by | tau with the truth of the same seed | of another seed |",
        "|---|---:|---:|",
    ]
    lines += [
        f"| {name} | {row['same']:.3f} | {row['other']:.3f} |"
        for name, row in noise["other_seed"].items()
    ]
    return [*lines, f"| {plural(longest)} | 1 | {noise['tau']:.3f} |"]


def _front_row(name: str, row: Mapping[str, float]) -> str:
    return (
        f"| {name} | {row['networks']:.0f} | {row['members']:.3g} | {row['true_members']:.3g} "
        f"| {row['recall']:.0%} | {row['hypervolume_share']:.1%} | {row['regret_points']:.2f} "
        f"| {row['worst_regret_points']:.2f} | {row['epochs_share']:.0%} |"
    )


def _front_in_words(name: str, row: Mapping[str, float]) -> str:
    return (
        f"- {name}: finds {row['recall'] * row['true_members']:.0f} of the true front's "
        f"{row['true_members']:.0f} members, and is {row['regret_points']:.2f} points below it at "
        f"equal FLOPs on average ({row['worst_regret_points']:.2f} at worst), for "
        f"{row['epochs_share']:.0%} of the epochs of training everything in full."
    )


# Okabe and Ito's colours, which colour-blind people can tell apart, with a marker each.
_STYLES = (("#0072B2", "o"), ("#D55E00", "s"), ("#009E73", "^"), ("#CC79A7", "D"))


def draw(curves: Curves, document: Mapping[str, Any]) -> bytes:
    """Tau by epochs, and the fronts that each schedule finds, as an SVG file."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    with plt.rc_context({"svg.hashsalt": "levit-search", "svg.fonttype": "none"}):
        figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.5), layout="constrained")
        _draw_tau(left, document)
        _draw_fronts(right, curves)
        file = io.BytesIO()
        figure.savefig(file, format="svg", metadata={"Date": None})
        plt.close(figure)
    return file.getvalue()


def _draw_tau(axes: Any, document: Mapping[str, Any]) -> None:
    rows = document["tau_by_epoch"]
    epochs = range(1, len(rows) + 1)
    color, marker = _STYLES[0]
    axes.plot(epochs, [r["tau"] for r in rows], color=color, marker=marker, label="epoch of a run")
    lows, highs = [r["tau_low"] for r in rows], [r["tau_high"] for r in rows]
    axes.fill_between(epochs, lows, highs, color=color, alpha=0.15, linewidth=0)
    own = {epochs_of(n): row for n, row in document["agreement"].items() if n[0].isdigit()}
    if own:
        color, marker = _STYLES[1]
        taus = np.array([row["tau"] for row in own.values()])
        ends = np.array([[row["tau_low"], row["tau_high"]] for row in own.values()]).T
        away = np.abs(ends - taus)
        label = "schedule of that length"
        axes.errorbar(
            list(own), taus, away, color=color, marker=marker, linestyle="", capsize=3, label=label
        )
    for name, line in (("FLOPs", ":"), ("params", "-.")):
        value = document["agreement"][name]["tau"]
        axes.axhline(value, color="#999999", linestyle=line, label=f"{name} alone")
    if document["noise"]:
        value = document["noise"]["tau"]
        axes.axhline(value, color="black", linestyle="--", label="another seed in full")
    axes.set_xlabel("epochs")
    axes.set_ylabel(f"Kendall's tau with {plural(document['longest'])}")
    axes.set_ylim(top=1)
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)


def _draw_fronts(axes: Any, curves: Curves) -> None:
    longest = curves.longest
    truth, flops = curves.after(longest, longest, 0), curves.cost("flops")
    axes.scatter(
        [flops[n] / 1e6 for n in truth], list(truth.values()), s=12, color="#999999", label="all"
    )
    fronts = {plural(longest): truth}
    fronts |= {n: v for n, v in predictors_of(curves, 0).items() if n.startswith("epoch")}
    for (name, values), (color, marker) in zip(fronts.items(), _STYLES, strict=False):
        networks = sorted(values, key=lambda n: flops[n])
        worth, prices = (np.array([each[n] for n in networks]) for each in (values, flops))
        members = [n for n, keep in zip(networks, front(worth, prices), strict=True) if keep]
        points = [(flops[n] / 1e6, truth[n]) for n in members if n in truth]
        style = {"marker": marker, "markersize": 9 - 2.5 * list(fronts).index(name)}
        axes.plot(
            *zip(*points, strict=True), color=color, alpha=0.8, label=f"front by {name}", **style
        )
    axes.set_xscale("log")
    axes.set_xlabel("MFLOPs")
    axes.set_ylabel(f"top-1 on val after {plural(longest)}, %")
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
