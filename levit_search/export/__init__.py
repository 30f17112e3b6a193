"""A chosen network of a study as a folder that needs nothing of this package to run."""

from levit_search.export.package import ALSO, Export, Wishes, export
from levit_search.export.picking import pick, weights_of
from levit_search.export.retraining import Retrained, Retraining

__all__ = [
    "ALSO",
    "Export",
    "Retrained",
    "Retraining",
    "Wishes",
    "export",
    "pick",
    "weights_of",
]
