"""A chosen network of a study as a folder that needs nothing of this package to run."""

from levit_search.export.package import Export, export
from levit_search.export.picking import pick, weights_of

__all__ = ["Export", "export", "pick", "weights_of"]
