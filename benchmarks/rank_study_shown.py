"""What :mod:`rank_study` found, as figures and as a table to read."""

import csv
import io
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from fidelity import Values, agreement, difference, paired, tau

from levit_search.architecture import Levit, parse
from levit_search.space import stem_name

_RESAMPLES = 1000
_HALVES = 200

# Baselines that cost no supernet; the second one needs networks that were trained alone.
_STEM, _REGRESSION = "stem depth", "regression on six features"


def rows_of(file: Path) -> list[dict[str, str]]:
    """The rows of a table; none where it does not exist."""
    if not file.exists():
        return []
    with file.open(newline="") as text:
        return list(csv.DictReader(text))


def document_of(folder: Path) -> dict[str, Any]:
    """All figures, as JSON holds them."""
    alone, networks, costs = _alone(rows_of(folder / "alone.csv"))
    truth = {name: float(np.mean(list(seeds.values()))) for name, seeds in alone.items()}
    asked = _inherited(rows_of(folder / "inherited.csv"))
    schedules = {key[:2]: values for key, values in asked.items() if key[2] == 1024}
    rankings: dict[str, Values] = {
        f"supernet, {epochs} epochs, seed {seed}": values
        for (epochs, seed), values in sorted(schedules.items())
    }
    by_cost = {
        shown: {n: c[name] for n, c in costs.items()}
        for shown, name in (("params", "params"), ("FLOPs", "flops"))
    }
    rankings |= by_cost
    features = {name: _features(network, costs[name]) for name, network in networks.items()}
    baselines: dict[str, Values] = {
        "params": by_cost["params"],
        _STEM: {name: each[0] for name, each in features.items()},
        _REGRESSION: _left_out(features, truth),
    }
    rankings |= baselines
    looked_at = next((key[:2] for key in asked if key[2] != 1024), next(iter(schedules)))
    best = f"supernet, {looked_at[0]} epochs, seed {looked_at[1]}"
    calibrations = {key[2]: values for key, values in asked.items() if key[:2] == looked_at}
    return {
        "networks": len(truth),
        "accuracy": _spread(list(truth.values())),
        "agreement": {name: agreement(values, truth) for name, values in rankings.items()},
        "beyond": {
            name: {
                shown: difference(values, baseline, truth) for shown, baseline in baselines.items()
            }
            for name, values in rankings.items()
            if name.startswith("supernet")
        },
        "regression on half": _on_half(features, truth),
        "levels": {
            name: _level(values, truth)
            for name, values in rankings.items()
            if name.startswith("supernet")
        },
        "ceiling": _ceiling(alone),
        "within": {
            stem: {
                name: agreement(_only(members, rankings[name]), _only(members, truth))
                for name in (best, _REGRESSION)
            }
            for stem, members in _by_stem(networks).items()
        },
        "misranked": _misranked(rankings[best], truth, networks, costs),
        "best": best,
        "two supernets": _two(schedules),
        "calibration": {
            images: {**agreement(values, truth), **_level(values, truth)}
            for images, values in sorted(calibrations.items())
        },
        "cost": _read_json(folder / "cost.json"),
        "settings": _read_json(folder / "settings.json"),
    }


def _alone(
    rows: Sequence[Mapping[str, str]],
) -> tuple[dict[str, dict[int, float]], dict[str, Levit], dict[str, dict[str, float]]]:
    """Accuracies by seed, networks and costs of those trained with every seed."""
    found: dict[str, dict[int, float]] = {}
    networks: dict[str, Levit] = {}
    costs: dict[str, dict[str, float]] = {}
    for row in rows:
        name = row["network"]
        found.setdefault(name, {})[int(row["seed"])] = float(row["val_top1_percent"])
        network = parse(json.loads(row["architecture"]))
        assert isinstance(network, Levit)
        networks[name] = network
        costs[name] = {kind: float(row[kind]) for kind in ("params", "flops")}
    most = max(len(seeds) for seeds in found.values())
    whole = {name for name, seeds in found.items() if len(seeds) == most}
    return tuple({n: v for n, v in each.items() if n in whole} for each in (found, networks, costs))  # type: ignore[return-value]


def _inherited(rows: Sequence[Mapping[str, str]]) -> dict[tuple[int, int, int], dict[str, float]]:
    """By epochs, seed and calibration images, accuracies by network."""
    found: dict[tuple[int, int, int], dict[str, float]] = {}
    for row in rows:
        key = int(row["epochs"]), int(row["seed"]), int(row["calibration_images"])
        found.setdefault(key, {})[row["network"]] = float(row["inherited_top1_percent"])
    return found


def _features(network: Levit, costs: Mapping[str, float]) -> list[float]:
    """What is known of a network without training anything."""
    return [
        float(stem_name(network) == "conv3"),
        float(network.stages[0].embed_dim),
        float(sum(stage.depth for stage in network.stages)),
        float(len(network.stages)),
        float(np.log(costs["params"])),
        float(np.log(costs["flops"])),
    ]


def _fitted(known: Sequence[str], features: Mapping[str, Sequence[float]], truth: Values) -> Any:
    """Least squares of the accuracies of ``known`` networks: an offset and coefficients."""
    rows = np.array([[1.0, *features[name]] for name in known])
    return np.linalg.lstsq(rows, np.array([truth[name] for name in known]), rcond=None)[0]


def _left_out(features: Mapping[str, Sequence[float]], truth: Values) -> dict[str, float]:
    """Each network's accuracy by a linear regression on those of all others."""
    found = {}
    for name in truth:
        coefficients = _fitted([each for each in truth if each != name], features, truth)
        found[name] = float(np.array([1.0, *features[name]]) @ coefficients)
    return found


def _on_half(features: Mapping[str, Sequence[float]], truth: Values) -> float:
    """The mean tau of the regression among half of the networks, fitted on the other half."""
    chance, names, found = np.random.default_rng(0), sorted(truth), []
    for _ in range(_HALVES):
        order = [names[index] for index in chance.permutation(len(names))]
        known, asked = order[: len(names) // 2], order[len(names) // 2 :]
        coefficients = _fitted(known, features, truth)
        rows = np.array([[1.0, *features[name]] for name in asked])
        found.append(tau(rows @ coefficients, np.array([truth[name] for name in asked])))
    return float(np.mean(found))


def _only(names: Sequence[str], values: Values) -> dict[str, float]:
    return {name: values[name] for name in names if name in values}


def _spread(values: Sequence[float]) -> dict[str, float]:
    return {"lowest": min(values), "highest": max(values), "sd": float(np.std(values, ddof=1))}


def _level(values: Values, truth: Values) -> dict[str, float]:
    """How far inherited accuracies lie from those of the networks alone, in points."""
    a, b = paired(values, truth)
    return {"points": float((a - b).mean()), "points_sd": float((a - b).std(ddof=1))}


def _ceiling(alone: Mapping[str, Mapping[int, float]]) -> dict[str, float]:
    """What noise of the seeds leaves of a perfect ranking.

    ``tau_of_seeds`` is how two trainings agree. ``tau`` is what a ranking by the expected
    accuracies would reach against the means of so many seeds: simulated, with expected accuracies
    as spread as the means are beyond their noise.
    """
    points = np.array([[seeds[s] for s in sorted(seeds)] for seeds in alone.values()])
    count = points.shape[1]
    noise = float(np.sqrt(points.var(axis=1, ddof=1).mean()))
    means = points.mean(axis=1)
    spread = float(np.sqrt(max(0.0, means.var(ddof=1) - noise**2 / count)))
    shrunk = means.mean() + (means - means.mean()) * spread / means.std(ddof=1)
    chance = np.random.default_rng(0)
    drawn = [
        tau(shrunk, shrunk + chance.normal(0, noise / np.sqrt(count), len(shrunk)))
        for _ in range(_RESAMPLES)
    ]
    low, high = np.quantile(drawn, (0.025, 0.975))
    return {
        "noise_sd": noise,
        "tau_of_seeds": tau(points[:, 0], points[:, 1]),
        "tau": float(np.mean(drawn)),
        "tau_low": float(low),
        "tau_high": float(high),
    }


def _by_stem(networks: Mapping[str, Levit]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for name, network in networks.items():
        found.setdefault(stem_name(network), []).append(name)
    return dict(sorted(found.items()))


def _misranked(
    values: Values,
    truth: Values,
    networks: Mapping[str, Levit],
    costs: Mapping[str, Mapping[str, float]],
) -> dict[str, float]:
    """Spearman's rho of what a network is with the places that the supernet ranks it too high."""
    names = sorted(values.keys() & truth.keys())
    places = [np.argsort(np.argsort([each[n] for n in names])) for each in (values, truth)]
    too_high = {n: float(a - b) for n, a, b in zip(names, *places, strict=True)}

    def rho(of: Callable[[Levit], float]) -> float:
        found: float = agreement({n: of(networks[n]) for n in names}, too_high)["rho"]
        return found

    def mean(name: str) -> float:
        return rho(lambda network: float(np.mean([getattr(s, name) for s in network.stages])))

    return {
        "mean width": mean("embed_dim"),
        "first width": rho(lambda network: network.stages[0].embed_dim),
        "blocks": rho(lambda network: sum(stage.depth for stage in network.stages)),
        "stages": rho(lambda network: len(network.stages)),
        "stem of 3 layers": rho(lambda network: float(stem_name(network) == "conv3")),
        "mean heads": mean("num_heads"),
        "mean key dimension": mean("key_dim"),
        "params": rho(lambda network: costs[network.id]["params"]),
        "FLOPs": rho(lambda network: costs[network.id]["flops"]),
    }


def _two(schedules: Mapping[tuple[int, int], Values]) -> dict[str, float] | None:
    """How two supernets of one schedule agree; None where there are none."""
    by_epochs: dict[int, list[Values]] = {}
    for (epochs, _), values in schedules.items():
        by_epochs.setdefault(epochs, []).append(values)
    for epochs, several in by_epochs.items():
        if len(several) > 1:
            return {"epochs": epochs, **agreement(several[0], several[1])}
    return None


def _read_json(file: Path) -> dict[str, Any] | None:
    found: dict[str, Any] | None = json.loads(file.read_text()) if file.exists() else None
    return found


def draw(folder: Path, document: Mapping[str, Any]) -> bytes:
    """Inherited beside own accuracies of every network, as an SVG file."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    alone, networks, _ = _alone(rows_of(folder / "alone.csv"))
    asked = _inherited(rows_of(folder / "inherited.csv"))
    schedules = sorted(key for key in asked if key[2] == 1024 and key[1] == 0)
    with plt.rc_context({"svg.hashsalt": "levit-search", "svg.fonttype": "none"}):
        size = (4 * len(schedules), 4)
        figure, places = plt.subplots(1, len(schedules), figsize=size, layout="constrained")
        for axes, key in zip(np.atleast_1d(places), schedules, strict=True):
            for (stem, names), color in zip(
                _by_stem(networks).items(), ("#1b6ca8", "#d1495b", "#66a182"), strict=False
            ):
                own = [sorted(alone[name].values()) for name in names]
                inherited = [asked[key][name] for name in names]
                axes.scatter(inherited, [np.mean(each) for each in own], color=color, label=stem)
                for x, each in zip(inherited, own, strict=True):
                    axes.plot([x, x], [each[0], each[-1]], color=color, linewidth=1)
            row = document["agreement"][f"supernet, {key[0]} epochs, seed {key[1]}"]
            axes.set_title(f"{key[0]} epochs: tau {row['tau']:.2f}")
            axes.set_xlabel("inherited, % of val")
            axes.grid(alpha=0.3)
        np.atleast_1d(places)[0].set_ylabel("trained alone (both seeds), % of val")
        np.atleast_1d(places)[0].legend(frameon=False)
        file = io.BytesIO()
        figure.savefig(file, format="svg", metadata={"Date": None})
        plt.close(figure)
    return file.getvalue()


def as_markdown(document: Mapping[str, Any]) -> str:
    """The tables, with what they say in words."""
    told = document["settings"]
    made, here = told["settings"], told["sessions"][-1]
    accuracy, ceiling = document["accuracy"], document["ceiling"]
    lines = [
        "# How a supernet ranks networks",
        "",
        f"{document['networks']} networks of {made['space']} within its limit of "
        f"{made['flops_limit'] / 1e6:g} MFLOPs, each trained alone with two seeds for "
        f"{made['train']['epochs']} epochs on {made['data']['train_images']} images of "
        f"{made['data']['name']}: {accuracy['lowest']:.2f} to {accuracy['highest']:.2f} % of val, "
        f"standard deviation {accuracy['sd']:.2f}. {here['cpu']}, torch "
        f"{here['packages']['torch']}, revision {here['revision']}.",
        "",
        "## Agreement with the mean of two trainings alone",
        "",
        "| ranking by | Kendall's tau | 95 % | Spearman's rho | 95 % | points above |",
        "|---|---:|---|---:|---|---:|",
    ]
    for name, row in document["agreement"].items():
        level = document["levels"].get(name)
        points = f"{level['points']:+.2f} ({level['points_sd']:.2f})" if level else ""
        lines.append(f"| {name} | {_ranking(row)} | {_range(row, 'rho')} | {points} |")
    lines += [
        "",
        "![inherited beside own accuracies](ranks.svg)",
        "",
        "Intervals are bootstrapped over networks. Points above: the mean difference of inherited "
        "and own accuracy, and its standard deviation over networks. Stem depth: two or three "
        "layers, and nothing else. The regression is linear in stem depth, the first "
        "stage's width, blocks, stages, log params and log FLOPs, and each network is predicted by "
        f"one that was fitted on the {document['networks'] - 1} others' trainings alone; fitted on "
        f"half of them, its mean tau among the other half is {document['regression on half']:.3f} "
        f"({_HALVES} splits). The features were chosen knowing the answers, which favours it.",
        "",
        f"Two trainings of a network differ by a standard deviation of {ceiling['noise_sd']:.2f} "
        f"points, and two seeds rank the networks with a tau of {ceiling['tau_of_seeds']:.3f}. "
        f"A ranking by the accuracies to be expected would reach {ceiling['tau']:.3f} "
        f"({ceiling['tau_low']:.3f} to {ceiling['tau_high']:.3f}) against the mean of two.",
        "",
    ]
    for name, beyond in document["beyond"].items():
        less = "; ".join(
            f"of {baseline} {row['tau']:+.3f} ({row['tau_low']:+.3f} to {row['tau_high']:+.3f})"
            for baseline, row in beyond.items()
        )
        lines.append(f"- {name}: its tau less that {less}.")
    if two := document["two supernets"]:
        lines.append(
            f"- Two supernets of {two['epochs']} epochs agree by a tau of {two['tau']:.3f} "
            f"({_range(two, 'tau')})."
        )
    lines += ["", "## Where it misranks", ""]
    for stem, row in document["within"].items():
        ours, theirs = row[document["best"]], row[_REGRESSION]
        lines.append(
            f"- among the {ours['networks']:.0f} networks with the stem {stem} the tau of the "
            f"{document['best']}, is {ours['tau']:.3f} ({_range(ours, 'tau')}), that of the "
            f"regression {theirs['tau']:.3f} ({_range(theirs, 'tau')})."
        )
    lines += [
        "",
        f"Of the {document['best']}, Spearman's rho of a network's features with how many places "
        "too high it is ranked:",
        "",
        "| feature | rho |",
        "|---|---:|",
        *(f"| {name} | {rho:+.2f} |" for name, rho in document["misranked"].items()),
        "",
        "## What calibrating batch norm brings",
        "",
        f"Of the {document['best']}; 0 images: the leading part of the largest network's "
        "statistics, as if they were weights.",
        "",
        "| images | Kendall's tau | 95 % | Spearman's rho | points above |",
        "|---:|---:|---|---:|---:|",
    ]
    for images, row in document["calibration"].items():
        lines.append(
            f"| {images} | {_ranking(row)} | {row['points']:+.2f} ({row['points_sd']:.2f}) |"
        )
    if cost := document["cost"]:
        lines += ["", "## What it costs", "", *_costs(cost)]
    return "\n".join(lines) + "\n"


def _ranking(row: Mapping[str, float]) -> str:
    """Three cells of a table."""
    return f"{row['tau']:.3f} | {_range(row, 'tau')} | {row['rho']:.3f}"


def _costs(cost: Mapping[str, Any]) -> list[str]:
    return [
        "Timed in turn on one core. A step of the supernet takes "
        f"{cost['step_of_largest']:.2f} times a step of its largest network alone, so that:",
        "",
        *(
            f"- {epochs} epochs take {share:.1f} short trainings of the largest network;"
            for epochs, share in cost["largest_trainings"].items()
        ),
        f"- a candidate ({cost['calibration_images']} images to calibrate, {cost['val_images']} to "
        f"look at) takes 1/{1 / cost['candidate']['median']:.1f} of its own short training "
        f"(1/{1 / cost['candidate']['highest']:.1f} to 1/{1 / cost['candidate']['lowest']:.1f} "
        f"over {cost['candidate']['networks']} networks), {cost['calibration_share']:.0%} of it "
        "for the calibration.",
    ]


def _range(row: Mapping[str, float], name: str) -> str:
    return f"{row[f'{name}_low']:.3f} to {row[f'{name}_high']:.3f}"
