"""A study: its configuration, and the folder that keeps what was found."""

from levit_search.study.baselines import BASELINE, BaselineRecord, baselines_of
from levit_search.study.config import (
    EngineConfig,
    SamplerName,
    SearchConfig,
    StudyConfig,
    config_of,
    parse_settings,
    read_config,
    space_file,
)
from levit_search.study.folder import Study, find_record, load_architecture, training_file
from levit_search.study.record import (
    MEASURED,
    REMEASURED,
    Outcome,
    Record,
    State,
    compared,
    outcome,
    record_from_notes,
    record_of,
    with_measured,
)
from levit_search.study.settings import differences

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
    "find_record",
    "load_architecture",
    "outcome",
    "parse_settings",
    "read_config",
    "record_from_notes",
    "record_of",
    "space_file",
    "training_file",
    "with_measured",
]
