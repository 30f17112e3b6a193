"""Parallel coordinates: what networks were made of, and what came of it."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from levit_search.drawing.svg import BLACK
from levit_search.pareto import is_maximised
from levit_search.report.panels import SIZE, Document, Trial, evaluated, label_of, plot, value_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MOST_SLOTS = 14  # that a picture has room for


def parallel_coordinates(document: Document) -> "Figure":
    """What networks were made of, and what came out: one line a network, one axis a choice.

    Where a choice means nothing in a network its line is dotted.
    """
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    up, cost = document["up"], document["tabs"][0]["figure"]
    trials = [trial for trial in evaluated(document) if trial["choices"] is not None]
    trials = [trial for trial in trials if cost in trial["values"] and up in trial["values"]]
    drawn: list[_Choice | _Outcome] = [_Choice(document, slot) for slot in _main_slots(document)]
    drawn += [_Outcome(trials, cost), _Outcome(trials, up)]
    width = max(SIZE[0], 1.6 + 0.72 * len(drawn))
    figure, axes = plot(f"{document['study']}: choices and what came of them", width, 5.2)
    values = [value_of(trial, up) for trial in trials]
    scale = Normalize(min(values), max(values))
    # The best are dark: light lines are hard to see on white.
    shade = ScalarMappable(scale, "cividis_r" if is_maximised(up) else "cividis")
    for trial in sorted(trials, key=lambda trial: value_of(trial, up)):
        heights = [each.height(trial) for each in drawn]
        known = [(place, height) for place, height in enumerate(heights) if height is not None]
        is_best, color = trial["on_front"], shade.cmap(scale(value_of(trial, up)))
        look: dict[str, Any] = {
            "alpha": 1.0 if is_best else 0.45,
            "zorder": 3 if is_best else 2,
            "color": color,
        }
        thick = 1.8 if is_best else 0.8
        axes.plot(*zip(*known, strict=True), linestyle=":", linewidth=thick / 2, **look)
        whole = [float("nan") if height is None else height for height in heights]
        axes.plot(whole, linewidth=thick, **look)
    for place, each in enumerate(drawn):
        axes.axvline(place, color=BLACK, linewidth=0.6, zorder=1)
        for height, text in each.marks():
            axes.annotate(
                text,
                (place, height),
                xytext=(3, 0),
                textcoords="offset points",
                fontsize=7,
                va="center",
                zorder=4,
                bbox={"facecolor": "white", "alpha": 0.75, "linewidth": 0, "pad": 0.5},
            )
    heads = [each.head for each in drawn]
    axes.set_xticks(range(len(drawn)), heads, rotation=40, ha="right", rotation_mode="anchor")
    axes.set_yticks([])
    axes.set_ylim(-0.06, 1.06)
    axes.grid(visible=False)
    axes.spines[:].set_visible(False)
    figure.colorbar(shade, ax=axes, label=label_of(up), pad=0.02)
    return figure


def _main_slots(document: Document) -> list[str]:
    """The slots that matter most to what is drawn upwards; all where that is not known."""
    known = document["importance"].get(document["up"], {})
    by_share = sorted(document["slots"], key=lambda slot: -known.get(slot, 0.0))
    kept = set(by_share[:MOST_SLOTS])
    return [slot for slot in document["slots"] if slot in kept]


class _Choice:
    """An axis of the parallel coordinates with a slot's values, from 0 to 1."""

    def __init__(self, document: Document, slot: str) -> None:
        self.head = slot
        self._index = list(document["slots"]).index(slot)
        self._values = document["slots"][slot]
        self._last = len(self._values) - 1

    def height(self, trial: Trial) -> float | None:
        place = trial["choices"][self._index]
        # Lines that would lie on each other are spread a little, by the trial's number.
        spread = 0.05 / self._last * ((trial["trial"] * 0.618) % 1 - 0.5)
        return None if place is None else place / self._last + spread

    def marks(self) -> list[tuple[float, str]]:
        """What is written at which height."""
        places = range(self._last + 1) if self._last < 8 else (0, self._last)
        return [(place / self._last, _short(self._values[place])) for place in places]


class _Outcome:
    """An axis of the parallel coordinates with a figure, costs on a log scale."""

    def __init__(self, trials: Sequence[Trial], name: str) -> None:
        self.head, self._name = label_of(name), name
        self._ends = [end(value_of(trial, name) for trial in trials) for end in (min, max)]

    def height(self, trial: Trial) -> float | None:
        low, high, value = map(self._scaled, (*self._ends, value_of(trial, self._name)))
        return (value - low) / (high - low) if high > low else 0.5

    def marks(self) -> list[tuple[float, str]]:
        """What is written at which height."""
        return [(float(place), f"{end:.3g}") for place, end in enumerate(self._ends)]

    def _scaled(self, value: float) -> float:
        return value if is_maximised(self._name) else math.log10(value)


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 12 else f"{text[:11]}…"
