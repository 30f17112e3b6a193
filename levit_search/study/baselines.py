"""What a study knows of the networks of timm that it is compared with.

They are no trials: a space's choices cannot express them. Each is an attribute of the study under
:data:`BASELINE` and its id, with latencies measured again under the same key as candidates' are.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from levit_search.baseline import BaselineConfig
from levit_search.errors import InputError
from levit_search.study.config import StudyConfig
from levit_search.study.notes import check_baseline
from levit_search.study.record import REMEASURED, measured_again

BASELINE = "baseline:"
"""With the id of a :class:`levit_search.baseline.BaselineConfig` an attribute of the study."""


@dataclass(frozen=True)
class BaselineRecord:
    """A network of timm as a study has it: trained and measured, failed, or neither yet."""

    config: BaselineConfig
    values: Mapping[str, float]
    """As a trial's: all of the objectives, and ``params``, ``flops`` and ``activations`` as fvcore
    counts them; empty unless it is complete."""
    evaluation: Mapping[str, Any]
    """As a trial's."""
    reason: str | None = None
    """Why it failed."""

    @property
    def is_complete(self) -> bool:
        """Whether it has its figures."""
        return bool(self.values)

    @property
    def summary(self) -> str:
        """What it is called: ``timm/resnet10t``, ``timm/resnet10t (pretrained)``."""
        return self.config.summary()


def baselines_of(config: StudyConfig, attributes: Mapping[str, Any]) -> list[BaselineRecord]:
    """The networks that ``compare`` names, in its order, with what is known of each.

    Args:
        config: of the study.
        attributes: of the study.

    Raises:
        InputError: what stands there is not what a search writes.
    """
    return [_record(each, config, attributes) for each in config.compare]


def _record(
    given: BaselineConfig, config: StudyConfig, attributes: Mapping[str, Any]
) -> BaselineRecord:
    where = f"{BASELINE}{given.id}"
    found = attributes.get(where)
    if found is None:
        return BaselineRecord(given, {}, {})
    check_baseline(found, where)
    if "failed" in found:
        return BaselineRecord(given, {}, {}, found["failed"])
    missing = [
        name for name in (*config.objectives, "flops", "params") if name not in found["values"]
    ]
    if missing:
        raise InputError(f"{where}: is complete, and has no {missing[0]}")
    values = found["values"]
    evaluation = {key: found[key] for key in ("latency", "targets", "training") if found.get(key)}
    again = attributes.get(f"{REMEASURED}{given.id}")
    if again is not None:
        values, evaluation = measured_again(again, values, evaluation, where)
    return BaselineRecord(given, values, evaluation)
