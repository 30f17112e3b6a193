"""Data sets by name, what is in them, and their fixed splits.

Splits: a network is fitted on ``train``, a search sees ``val``, and ``test`` is read by nothing but
``train --final`` and the final checks. A data set's own held-out part is ``test``; ``val`` is then
cut from its training part, stratified and always the same. A set with both a validation and a test
split keeps them; from one without any, ``test`` is cut first.
"""

from levit_search.data.loading import Arrays, Split, StoredImages, load, outline
from levit_search.data.sources import (
    ArraySource,
    DataConfig,
    DataInfo,
    DataSet,
    FileSource,
    Source,
    SplitName,
)
from levit_search.data.survey import DataSurvey, check, describe, looked_at, survey_of, surveyed

__all__ = [
    "ArraySource",
    "Arrays",
    "DataConfig",
    "DataInfo",
    "DataSet",
    "DataSurvey",
    "FileSource",
    "Source",
    "Split",
    "SplitName",
    "StoredImages",
    "check",
    "describe",
    "load",
    "looked_at",
    "outline",
    "survey_of",
    "surveyed",
]
