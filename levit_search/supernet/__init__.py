"""One set of weights for all networks of a space: its training, and accuracies inherited from it.

The rest of the package imports it where it is needed: it loads torch.
"""

from levit_search.supernet.elastic import Elastic, SupernetCard, read_card
from levit_search.supernet.keeping import (
    Inheritance,
    Supernet,
    calibrate,
    draw_within,
    obtain_supernet,
    supernet_folder,
)
from levit_search.supernet.sandwich import Sandwich, SupernetEpoch

__all__ = [
    "Elastic",
    "Inheritance",
    "Sandwich",
    "Supernet",
    "SupernetCard",
    "SupernetEpoch",
    "calibrate",
    "draw_within",
    "obtain_supernet",
    "read_card",
    "supernet_folder",
]
