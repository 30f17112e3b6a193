"""Figure 3 of the paper from our own runs: accuracy by epoch."""

import io

from levit_search.drawing.svg import COLORS, MARKERS
from levit_search.image_size import size_text
from levit_search.reproduce.paper import Table
from levit_search.reproduce.results import Run


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
            color, marker = COLORS[index % len(COLORS)], MARKERS[index % len(MARKERS)]
            axes.plot(epochs, accuracies, color=color, marker=marker, markersize=5, label=name)
        axes.set_xlabel("epoch")
        axes.set_ylabel("top-1 on the validation split, %")
        data = run.settings["data"]
        axes.set_title(
            f"{table.name}: {data['name']} at {size_text(data['image_size'])} px, widths x "
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
