"""A study: its configuration, and the folder that keeps what was found."""

from levit_search.study.config import SearchConfig, StudyConfig, parse_settings, read_config
from levit_search.study.folder import (
    MEASURED,
    Record,
    Study,
    find_record,
    load_architecture,
    record_of,
    with_measured,
)

__all__ = [
    "MEASURED",
    "Record",
    "SearchConfig",
    "Study",
    "StudyConfig",
    "find_record",
    "load_architecture",
    "parse_settings",
    "read_config",
    "record_of",
    "with_measured",
]
