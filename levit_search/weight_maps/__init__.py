"""Weights worth looking at: attention biases (the paper's Figure 6), patch filters (Figure 2).

Nothing here imports torch or matplotlib: a page may hold the pictures of many networks.
"""

from levit_search.weight_maps.drawing import description, sheets, svg
from levit_search.weight_maps.tensors import (
    BiasMaps,
    PatchFilters,
    attention_biases,
    patch_filters,
    read_weights,
)

__all__ = [
    "BiasMaps",
    "PatchFilters",
    "attention_biases",
    "description",
    "patch_filters",
    "read_weights",
    "sheets",
    "svg",
]
