"""Draws the way of the data through the package, for docs/architecture.md.

python docs/pictures/architecture.py    # writes architecture.svg beside itself
"""

from html import escape
from pathlib import Path

_WIDTH, _HEIGHT = 136, 44
_COLUMN, _ROW = 204, 76
_STYLE = """
text { font: 13px sans-serif; fill: #1f2328; }
.small { font-size: 11px; fill: #59636e; }
rect { fill: #eef3fb; stroke: #3867b5; }
.file rect { fill: none; stroke: #818b98; stroke-dasharray: 4 3; }
path { fill: none; stroke: #59636e; marker-end: url(#tip); }
#tip path { fill: #59636e; stroke: none; marker-end: none; }
@media (prefers-color-scheme: dark) {
  text { fill: #f0f6fc; } .small { fill: #9198a1; }
  rect { fill: #16233a; stroke: #7aa7f0; } .file rect { stroke: #656c76; }
  path { stroke: #9198a1; } #tip path { fill: #9198a1; }
}
"""

# Column, row, what it is called, what it does; FILES are what people bring.
BOXES = {
    "space file": (0, 0, "YAML"),
    "pictures": (0, 2, "folders, timm's sets"),
    "teacher": (0, 3, "a timm network"),
    "weights": (0, 4, "files, timm's, shared"),
    "space": (1, 0, "what may vary"),
    "data": (1, 2, "decoded, in splits"),
    "distill": (1, 3, "teacher's answers"),
    "supernet": (1, 4, "one set for all"),
    "search": (2, 0, "Optuna, ASHA"),
    "cost": (2, 1, "FLOPs, parameters"),
    "batches": (2, 2, "views by seed"),
    "engine": (3, 0, "processes or Ray"),
    "latency": (3, 1, "pairs, any device"),
    "train": (3, 2, "short schedule"),
    "model": (3, 4, "torch modules"),
    "study": (4, 0, "trials, backup"),
    "report": (5, 0, "one HTML page"),
    "export": (5, 1, "ONNX, model.py"),
    "audit": (5, 2, "how sure it is"),
}
FILES = {"space file", "pictures", "teacher", "weights"}
FLOWS = (
    ("space file", "space", ""),
    ("space", "search", "networks"),
    ("search", "cost", "limits"),
    ("search", "engine", "candidates"),
    ("engine", "latency", ""),
    ("engine", "study", "results"),
    ("study", "report", ""),
    ("study", "export", ""),
    ("study", "audit", ""),
    ("latency", "train", ""),
    ("pictures", "data", ""),
    ("data", "batches", "images"),
    ("batches", "train", "views"),
    ("teacher", "distill", ""),
    ("distill", "train", "targets"),
    ("weights", "supernet", ""),
    ("supernet", "model", "slices"),
    ("model", "train", ""),
)


def drawn() -> str:
    """The picture as SVG."""
    columns = 1 + max(column for column, _, _ in BOXES.values())
    rows = 1 + max(row for _, row, _ in BOXES.values())
    width, height = _COLUMN * (columns - 1) + _WIDTH + 20, _ROW * (rows - 1) + _HEIGHT + 20
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
        f'width="{width}" height="{height}" role="img" aria-label="The way of the data">',
        f"<style>{_STYLE}</style>",
        '<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" '
        'markerHeight="7" orient="auto"><path d="M0 0 8 4 0 8z"/></marker></defs>',
        *(_arrow(start, end, label) for start, end, label in FLOWS),
        *(_box(name) for name in BOXES),
        "</svg>",
    ]
    return "\n".join(parts) + "\n"


def _place(name: str) -> tuple[int, int]:
    column, row, _ = BOXES[name]
    return 10 + column * _COLUMN, 10 + row * _ROW


def _box(name: str) -> str:
    x, y = _place(name)
    middle = x + _WIDTH // 2
    kind = ' class="file"' if name in FILES else ""
    return (
        f'<g{kind}><rect x="{x}" y="{y}" width="{_WIDTH}" height="{_HEIGHT}" rx="6"/>'
        f'<text x="{middle}" y="{y + 19}" text-anchor="middle">{escape(name)}</text>'
        f'<text class="small" x="{middle}" y="{y + 35}" text-anchor="middle">'
        f"{escape(BOXES[name][2])}</text></g>"
    )


def _arrow(start: str, end: str, label: str) -> str:
    """From the side of a box to that of another; through the gap between columns where it turns."""
    (x0, y0), (x1, y1) = _place(start), _place(end)
    if x0 == x1:
        x, down = x0 + _WIDTH // 2, y1 > y0
        y0, y1 = (y0 + _HEIGHT, y1) if down else (y0, y1 + _HEIGHT)
        line, at = f"M{x} {y0} V{y1}", (x + 6, (y0 + y1) // 2 + 4, "start")
    else:
        x0, y0, y1 = x0 + _WIDTH, y0 + _HEIGHT // 2, y1 + _HEIGHT // 2
        turn = x1 - (_COLUMN - _WIDTH) // 2
        line, at = f"M{x0} {y0} H{turn} V{y1} H{x1}", (x0 + 4, y0 - 6, "start")
    x, y, anchor = at
    text = f'<text class="small" x="{x}" y="{y}" text-anchor="{anchor}">{escape(label)}</text>'
    return f'<path d="{line}"/>' + (text if label else "")


if __name__ == "__main__":
    Path(__file__).with_suffix(".svg").write_text(drawn(), "utf-8")
