"""A study: its configuration, and the folder that keeps what was found."""

from levit_search.study.config import EngineConfig, SamplerName, SearchConfig, StudyConfig
from levit_search.study.folder import Study, training_file
from levit_search.study.record import (
    BASELINE,
    MEASURED,
    REMEASURED,
    BaselineRecord,
    Outcome,
    Record,
    State,
    baselines_of,
    compared,
    latency_of,
    outcome,
    record_from_notes,
    record_of,
    with_measured,
)
from levit_search.study.settings import (
    config_of,
    differences,
    parse_settings,
    read_config,
    space_file,
)

__all__ = [
    "BASELINE",
    "MEASURED",
    "REMEASURED",
    "BaselineRecord",
    "EngineConfig",
    "Outcome",
    "Record",
    "SamplerName",
    "SearchConfig",
    "State",
    "Study",
    "StudyConfig",
    "baselines_of",
    "compared",
    "config_of",
    "differences",
    "latency_of",
    "outcome",
    "parse_settings",
    "read_config",
    "record_from_notes",
    "record_of",
    "space_file",
    "training_file",
    "with_measured",
]
