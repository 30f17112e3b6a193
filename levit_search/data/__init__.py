"""Data sets by name, and their fixed splits.

Splits: a network is fitted on ``train``, a search sees ``val``, and ``test`` is read by nothing but
``train --final`` and the final checks. A data set's own held-out part is ``test``; ``val`` is then
cut from its training part, stratified and always the same. A set with both a validation and a test
split keeps them; from one without any, ``test`` is cut first.
"""

from levit_search.data.builtin import user_cache
from levit_search.data.config import DataConfig
from levit_search.data.loading import Outline, describe, load, load_described, outline
from levit_search.data.pictures import Arrays, Pictures, Split, fingerprint
from levit_search.data.plugged import DataSet
from levit_search.data.sources import ArraySource, FileSource, Source
from levit_search.data.splits import DataInfo, SplitName

__all__ = [
    "ArraySource",
    "Arrays",
    "DataConfig",
    "DataInfo",
    "DataSet",
    "FileSource",
    "Outline",
    "Pictures",
    "Source",
    "Split",
    "SplitName",
    "describe",
    "fingerprint",
    "load",
    "load_described",
    "outline",
    "user_cache",
]
