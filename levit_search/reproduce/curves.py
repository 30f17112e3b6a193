"""Figure 3 of the paper from our own runs: accuracy by epoch."""

import io

from levit_search.reproduce.paper import Table
from levit_search.reproduce.results import Run

# Okabe and Ito's colours, which colour-blind people can tell apart, with a marker each.
_COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#999999")
_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")


def curves_of(run: Run) -> dict[str, list[tuple[int, float]]]:
    """By trained row: (epoch, accuracy on the validation split in percent)."""
    return {
        name: [(point["epoch"], point["val_top1_percent"]) for point in figures["curve"]]
        for name, figures in run.rows.items()
        if "curve" in figures
    }


def draw_curves(run: Run, table: Table) -> bytes:
    """Figure 3 of the paper from ``run``: accuracy by epoch, one line a row, as an SVG file."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt
    from matplotlib.ticker import MaxNLocator

    with plt.rc_context({"svg.hashsalt": "levit-search", "svg.fonttype": "none"}):
        figure, axes = plt.subplots(figsize=(7, 4.5), layout="constrained")
        for index, (name, points) in enumerate(curves_of(run).items()):
            epochs, accuracies = zip(*points, strict=True)
            color, marker = _COLORS[index % len(_COLORS)], _MARKERS[index % len(_MARKERS)]
            axes.plot(epochs, accuracies, color=color, marker=marker, markersize=5, label=name)
        axes.set_xlabel("epoch")
        axes.set_ylabel("top-1 on the validation split, %")
        data = run.settings["data"]
        axes.set_title(
            f"{table.name}: {data['name']} at {data['image_size']} px, widths x "
            f"{run.settings['width_scale']:g}",
            loc="left",
            fontsize=10,
        )
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.3)
        if axes.lines:
            axes.legend(frameon=False)
        file = io.BytesIO()
        figure.savefig(file, format="svg", metadata={"Date": None})
        plt.close(figure)
    return file.getvalue()
