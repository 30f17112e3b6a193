"""A chosen network of a study as a folder that needs nothing of this package to run."""

from levit_search.export.package import ALSO, Export, Wishes, default_folder, export
from levit_search.export.picking import pick
from levit_search.export.retraining import Retrained, Retraining

__all__ = [
    "ALSO",
    "Export",
    "Retrained",
    "Retraining",
    "Wishes",
    "default_folder",
    "export",
    "pick",
]
