"""Charts as SVG: points, lines and intervals on linear or log axes, and horizontal bars.

A chart is data first; a page and a file draw it, each as wide as it has room for.
"""

import math
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape
from itertools import chain
from typing import Literal, Protocol

from levit_search.drawing.svg import LARGE, SMALL, Attributes, Svg, document, element, number

WIDE, NARROW = 880, 384
"""Of a chart, in units: on a screen, and on a phone, where texts are to be as large."""

Mark = Literal["circle", "square", "diamond", "star", "triangle", "cross"]
Line = Literal["straight", "dashed", "steps", "area"]

_PLUS = [(-1, -0.3), (-0.3, -0.3), (-0.3, -1), (0.3, -1), (0.3, -0.3), (1, -0.3)]
_PLUS += [(-x, -y) for x, y in _PLUS]
_POLYGONS: dict[str, list[tuple[float, float]]] = {
    "square": [(-0.9, -0.9), (0.9, -0.9), (0.9, 0.9), (-0.9, 0.9)],
    "diamond": [(0, -1.2), (1.2, 0), (0, 1.2), (-1.2, 0)],
    "triangle": [(0, -1.1), (1, 0.8), (-1, 0.8)],
    "star": [
        (radius * math.sin(math.pi * corner / 5), -radius * math.cos(math.pi * corner / 5))
        for corner, radius in enumerate([1.3, 0.55] * 5)
    ],
    "cross": [(0.7 * (x - y), 0.7 * (x + y)) for x, y in _PLUS],
}
_STROKE: Attributes = {"fill": "none", "stroke": "currentColor"}
_SOLID: Attributes = {"fill": "currentColor"}
_OPEN: Attributes = {**_STROKE, "stroke_width": 2}
_LABEL: Attributes = {"fill": "currentColor", "stroke": "none"}
_BAR_COLORS = ("front", "reference", "known", "published", "compared", "stopped")


class Drawable(Protocol):
    """What is drawn as wide as there is room."""

    @property
    def title(self) -> str: ...

    @property
    def description(self) -> str:
        """What there is to see, in words."""

    def draw(self, width: float = WIDE, embedded: bool = False) -> Svg:
        """A part of a picture; the page that it is ``embedded`` in tells its title."""


def picture(parts: Sequence[Drawable]) -> str:
    """Charts below each other as an SVG file."""
    told = " ".join(part.description for part in parts)
    return document([part.draw() for part in parts], parts[0].title, told)


def embedded(part: Drawable) -> str:
    """A chart for a page of HTML twice, for screens and for phones; the page's style shows one."""
    return "".join(
        document([part.draw(width, True)], part.title, part.description, embedded=True)
        for width in (WIDE, NARROW)
    )


@dataclass(frozen=True)
class Axis:
    """From its least value to its largest, with some room, unless ``low`` says where it begins."""

    label: str
    is_log: bool = False
    is_whole: bool = False
    """Ticks are whole numbers."""
    low: float | None = None

    def ends(self, values: Sequence[float]) -> tuple[float, float]:
        """Where the axis begins and ends."""
        low, high = min(values), max(values)
        if self.is_log:
            room = max(0.06 * math.log10(high / low), 0.02)
            low, high = low / 10**room, high * 10**room
        else:
            room = 0.06 * (high - low) or 1.0
            low, high = low - room, high + room
        return (low if self.low is None else self.low), high

    def scale(self, low: float, high: float, start: float, end: float) -> Callable[[float], float]:
        """From a value to its place from ``start`` to ``end``; what lies outside is at an end."""

        def place(value: float) -> float:
            value = min(max(value, low), high)
            if self.is_log:
                return start + (end - start) * math.log(value / low) / math.log(high / low)
            return start + (end - start) * (value - low) / (high - low)

        return place

    def ticks(self, low: float, high: float, most: int) -> list[float]:
        """Even ones, or round ones of a log axis that is long enough for them."""
        if self.is_log:
            for round_ones in ((1, 1.5, 2, 3, 4, 5, 7), (1, 2, 3, 5, 7), (1, 2, 5), (1, 3), (1,)):
                decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
                found = [float(f"{step}e{decade}") for decade in decades for step in round_ones]
                found = [value for value in found if low <= value <= high]
                if 4 <= len(found) <= most:
                    return found
        raw = max((high - low) / min(most, 6), 1.0 if self.is_whole else 0.0)
        unit = 10 ** math.floor(math.log10(raw))
        steps = (1, 2, 5, 10) if self.is_whole else (1, 2, 2.5, 5, 10)
        step = next(times * unit for times in steps if times * unit >= raw)
        first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
        return [float(f"{count * step:.6g}") for count in range(first, last + 1)]


@dataclass(frozen=True)
class Series:
    """Points, the line through them, or both; ``x`` and ``y`` are of one length."""

    name: str
    """In the legend; empty where it stands in none."""
    x: Sequence[float]
    y: Sequence[float]
    color: str = "front"
    """By what it stands for, see :data:`levit_search.drawing.svg.LIGHT`."""
    mark: Mark | None = "circle"
    radius: float = 4
    is_open: bool = False
    """Marks are outlines."""
    line: Line | None = None
    width: float = 1.5
    opacity: float = 1.0
    labels: Sequence[str] = ()
    """Texts below the points."""
    x_ends: Sequence[tuple[float, float] | None] = ()
    y_ends: Sequence[tuple[float, float] | None] = ()
    """Intervals of the points."""
    trials: Sequence[int] = ()
    """What a page tells of the points when they are pointed at."""
    tips: Sequence[str] = ()
    """The same of what is no trial."""
    is_hidden: bool = False
    """Until its name in the legend is pressed; left out of files. The axes are made for the others:
    what lies outside of them stands at their edge."""


@dataclass(frozen=True)
class Rule:
    """A vertical line at a value, and what stands at it."""

    x: float
    text: str
    color: str = "soft"


@dataclass(frozen=True)
class Chart:
    """Series on a pair of axes."""

    title: str
    x: Axis
    y: Axis
    series: Sequence[Series]
    rules: Sequence[Rule] = ()
    notes: Sequence[str] = ()
    """Below a file's title."""
    height: float = 340

    @property
    def description(self) -> str:
        shown = [f"{each.name} ({len(each.x)})" for each in self.series if each.name and each.x]
        return f"{self.y.label} against {self.x.label}: {', '.join(shown)}."

    def draw(self, width: float = WIDE, embedded: bool = False) -> Svg:
        found = Svg(width)
        _head(found, "" if embedded else self.title, () if embedded else self.notes)
        series = [each for each in self.series if each.x and (embedded or not each.is_hidden)]
        xs, ys = [rule.x for rule in self.rules], list[float]()
        for each in series:
            if not each.is_hidden:
                xs += [*each.x, *chain(*filter(None, each.x_ends))]
                ys += [*each.y, *chain(*filter(None, each.y_ends))]
        x_low, x_high = self.x.ends(xs)
        y_low, y_high = self.y.ends(ys)
        y_ticks = [(value, f"{value:,.6g}") for value in self.y.ticks(y_low, y_high, 8)]
        left = 34 + 7 * max(len(text) for _, text in y_ticks)
        top, right = found.height + (22 if self.rules else 8), width - 12
        bottom = top + self.height
        x_of = self.x.scale(x_low, x_high, left, right)
        y_of = self.y.scale(y_low, y_high, bottom, top)
        for value in self.x.ticks(x_low, x_high, 10 if width > NARROW else 5):
            found.path(f"M{number(x_of(value))} {number(top)}V{number(bottom)}", "rule")
            found.text(x_of(value), bottom + 17, f"{value:,.6g}", look="faint", anchor="middle")
        for value, text in y_ticks:
            found.path(f"M{number(left)} {number(y_of(value))}H{number(right)}", "rule")
            found.text(left - 7, y_of(value) + 4, text, look="faint", anchor="end")
        found.path(f"M{number(left)} {number(top)}V{number(bottom)}H{number(right)}", "line")
        found.text((left + right) / 2, bottom + 37, self.x.label, 13, anchor="middle")
        turned = f"translate(14 {number((top + bottom) / 2)}) rotate(-90)"
        centred: Attributes = {"font_size": 13, "text_anchor": "middle"}
        found.add(element("text", "ink", escape(self.y.label), transform=turned, **centred))
        for rule in self.rules:
            x = x_of(rule.x)
            anchor = "end" if x > 0.75 * width else "start" if x < 0.25 * width else "middle"
            commands = f"M{number(x)} {number(top)}V{number(bottom)}"
            line = element("path", d=commands, **_STROKE, stroke_width=1.3, stroke_dasharray="6 4")
            at: Attributes = {"x": x, "y": top - 7, "font_size": SMALL, "text_anchor": anchor}
            text = element("text", "", escape(rule.text), **at)
            found.add(element("g", f"in-{rule.color}", line + text, fill="currentColor"))
        for each in series:
            found.add(_drawn(each, x_of, y_of))
        found.height = bottom + 46
        _legend(found, [each for each in series if each.name])
        return found


@dataclass(frozen=True)
class Bars:
    """A bar for each label and group, in per cent."""

    title: str
    labels: Sequence[str]
    groups: dict[str, Sequence[float]]
    """By name, a value for each label."""
    note: str = ""

    @property
    def description(self) -> str:
        told = [
            f"{label}: {values[place]:.1f} % of {name}"
            for place, label in enumerate(self.labels)
            for name, values in self.groups.items()
        ]
        return "; ".join(told) + "."

    def draw(self, width: float = WIDE, embedded: bool = False) -> Svg:
        found = Svg(width)
        _head(found, "" if embedded else self.title, [self.note] if self.note else [])
        is_wide = width > NARROW  # else a label stands above its bars
        left = 18 + 7 * max(map(len, self.labels)) if is_wide else 4
        full = max(max(values) for values in self.groups.values())
        for place, label in enumerate(self.labels):
            found.height += 8
            if is_wide:
                found.text(left - 8, found.height + 12, label, anchor="end")
            else:
                found.text(left, found.height + 12, label)
                found.height += 16
            for values, color in zip(self.groups.values(), _BAR_COLORS, strict=False):
                long = max((width - left - 60) * values[place] / full, 1)
                size: Attributes = {"x": left, "y": found.height + 2, "width": long, "height": 12}
                found.add(element("rect", f"in-{color}", fill="currentColor", **size))
                share = f"{values[place]:.1f} %"
                found.text(left + long + 6, found.height + 12, share, look="faint")
                found.height += 15
        found.height += 6
        named = zip(self.groups, _BAR_COLORS, strict=False)
        _legend(found, [Series(name, [0], [0], color, "square", 6) for name, color in named])
        return found


def _head(found: Svg, title: str, notes: Sequence[str]) -> None:
    """The title and what stands below it, in as many lines as they take."""
    for line in textwrap.wrap(title, int(found.width / 8.4)):
        found.height += 20
        found.text(8, found.height, line, LARGE, bold=True)
    for note in notes:
        for line in textwrap.wrap(note, int(found.width / 6.8)):
            found.height += 16
            found.text(8, found.height, line, look="faint")
    found.height += 6 if found.height else 0


def _drawn(each: Series, x_of: Callable[[float], float], y_of: Callable[[float], float]) -> str:
    """A series as a group of its colour."""
    points = [(x_of(x), y_of(y)) for x, y in zip(each.x, each.y, strict=True)]
    parts = []
    if each.line is not None:
        to = "H{0}V{1}" if each.line == "steps" else "L{0},{1}"
        (start, *others) = ((number(x), number(y)) for x, y in points)
        path = "M{},{}".format(*start) + "".join(to.format(*place) for place in others)
        trial = each.trials[0] if each.trials and each.mark is None else None
        dash = "6 4" if each.line == "dashed" else None
        stroke: Attributes = {**_STROKE, "stroke_width": each.width, "stroke_dasharray": dash}
        look = {} if each.line == "area" else stroke
        parts.append(element("path", d=path, **look, data_trial=trial))
    # Intervals are lines from end to end, with bars across their ends.
    for (_, y), ends in zip(points, each.x_ends, strict=False):
        if ends is not None:
            low, high = (number(x_of(end)) for end in ends)
            path = f"M{low} {number(y)}H{high}M{low} {number(y - 3)}v6M{high} {number(y - 3)}v6"
            parts.append(element("path", d=path, **_STROKE))
    for (x, _), ends in zip(points, each.y_ends, strict=False):
        if ends is not None:
            low, high = (number(y_of(end)) for end in ends)
            path = f"M{number(x)} {low}V{high}M{number(x - 3)} {low}h6M{number(x - 3)} {high}h6"
            parts.append(element("path", d=path, **_STROKE))
    for index, (x, y) in enumerate(points if each.mark is not None else []):
        trial = each.trials[index] if each.trials else None
        tip = each.tips[index] if each.tips else None
        parts.append(_mark(each, x, y, each.radius, data_trial=trial, data_tip=tip))
    for (x, y), label in zip(points, each.labels, strict=False):
        at: Attributes = {"x": x, "y": y + each.radius + 12, "font_size": 11}
        parts.append(element("text", "", escape(label), **at, text_anchor="middle", **_LABEL))
    opacity = each.opacity if each.opacity < 1 else None
    return element(
        "g",
        f"in-{each.color}",
        "\n".join(parts),
        **(_OPEN if each.is_open else _SOLID),
        fill_opacity=opacity,
        stroke_opacity=opacity,
        data_series=each.name,
        display="none" if each.is_hidden else None,
    )


def _mark(each: Series, x: float, y: float, radius: float, **more: str | float | None) -> str:
    at = f"translate({number(x)},{number(y)})"
    if each.mark == "circle":
        return element("circle", r=radius, transform=at, **more)
    corners = _POLYGONS[each.mark or "square"]
    points = " ".join(f"{number(radius * i)},{number(radius * j)}" for i, j in corners)
    return element("polygon", points=points, transform=at, **more)


def _legend(found: Svg, series: Sequence[Series]) -> None:
    """Names with their marks, row by row."""
    x = 16.0
    found.height += 16 if series else 0
    for each in series:
        long = 7.1 * len(each.name) + 34
        if x > 16 and x + long > found.width:
            x, found.height = 16.0, found.height + 19
        y = found.height - 4
        sample = _mark(each, x, y, min(each.radius, 6)) if each.mark else ""
        if each.line is not None or not sample:
            commands = f"M{number(x - 7)} {number(y)}h14"
            sample += element("path", d=commands, **_STROKE, stroke_width=2)
        mark = element("g", f"in-{each.color}", sample, **(_OPEN if each.is_open else _SOLID))
        name = element("text", "ink", escape(each.name), x=x + 12, y=y + 4, font_size=SMALL)
        found.add(element("g", "", mark + name, data_entry=each.name))
        x += long
    found.height += 8
