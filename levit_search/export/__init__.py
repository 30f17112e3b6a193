"""A chosen network of a study as a folder that needs nothing of this package to run."""

from levit_search.export.int8 import Quantization
from levit_search.export.package import ALSO, Export, ExportOptions, default_folder, export
from levit_search.export.retraining import Retrained, Retraining
from levit_search.picking import pick

__all__ = [
    "ALSO",
    "Export",
    "ExportOptions",
    "Quantization",
    "Retrained",
    "Retraining",
    "default_folder",
    "export",
    "pick",
]
