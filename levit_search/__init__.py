"""Find the best LeViT-like vision transformer for a data set and a device."""

from levit_search.api import (
    baselines,
    count,
    evaluation,
    front,
    load_model,
    open_study,
    pick,
    read_space,
    run,
    trials,
    verdict,
    write_export,
    write_report,
)
from levit_search.version import __version__ as __version__

__all__ = [
    "baselines",
    "count",
    "evaluation",
    "front",
    "load_model",
    "open_study",
    "pick",
    "read_space",
    "run",
    "trials",
    "verdict",
    "write_export",
    "write_report",
]
