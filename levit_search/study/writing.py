"""A study opened by the one that writes: looked over, and with a backup that is up to date."""

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from levit_search.errors import InputError
from levit_search.study.backup import Backup, Kept, lines_of, lost_rest, missing_lines, study_body
from levit_search.study.config import StudyConfig
from levit_search.study.notes import check_attributes
from levit_search.study.storage import DamagedError
from levit_search.study.trials import SETTINGS, Contents, Trials

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution
    from optuna.storages import BaseStorage


@dataclass(frozen=True)
class Opened:
    """What a driver writes to, and what it found there."""

    storage: "BaseStorage"
    """It keeps no trials in memory, but for a journal, which Optuna does not read otherwise."""
    study_id: int
    contents: Contents
    backup: Backup


def open_to_write(
    trials: Trials, config: StudyConfig, distributions: "Mapping[str, BaseDistribution]"
) -> Opened:
    """Open a study whose lock is held; storage and backup are made if they are not there.

    What a kill kept from being written to one of them is written now.

    Raises:
        InputError: the storage cannot be used, or is not as it was left. Nothing was changed.
    """
    kept = trials.backup.read()
    storage, study_id = trials.open()
    storage = uncached(storage)
    with trials.way_out():
        contents = checked(trials, kept, storage, study_id)
        if kept.pending is not None:
            with trials.place.errors():  # a journal's last line may turn out to be none
                contents = _finished(kept, storage, study_id, contents)
    with trials.place.errors():
        name = storage.get_study_name_from_id(study_id)
    try:
        check_attributes(contents.attributes)
    except InputError as error:
        raise InputError(f"{trials.place}: {error}") from None
    _bring_up_to_date(trials.backup, kept, contents, study_line(name, config, distributions))
    return Opened(storage, study_id, contents, trials.backup)


def checked(trials: Trials, kept: Kept, storage: "BaseStorage", study_id: int) -> Contents:
    """All that a storage has of a study, as it was written.

    Args:
        trials: whose they are.
        kept: what their backup holds.
        storage: without a cache.
        study_id: in the storage.

    Raises:
        InputError: something was changed or is gone, or the file is damaged elsewhere.
    """
    trials.place.check_file()
    with trials.place.reading():
        found = storage.get_all_trials(study_id, deepcopy=False)
        attributes = dict(storage.get_study_user_attrs(study_id))
    numbers = [trial.number for trial in found]
    if numbers != list(range(len(found))):
        raise DamagedError(f"{trials.place}: is damaged (its trials are not numbered in a row)")
    trials.check_whole(kept, found, lost_rest(kept, found, attributes))
    return Contents(found, attributes)


def uncached(storage: "BaseStorage") -> "BaseStorage":
    """A storage as Optuna gives it, without the cache in which it keeps all trials that it meets.

    A journal's trials are in memory all the same.
    """
    from levit_search.study.database import Database

    behind = getattr(storage, "_backend", None)
    return behind if isinstance(behind, Database) else storage


def _finished(kept: Kept, storage: "BaseStorage", study_id: int, contents: Contents) -> Contents:
    """Write what was about to be written to the storage when a driver was killed."""
    pending = kept.pending
    assert pending is not None
    if pending.trial is None:
        if contents.attributes.get(pending.key) != pending.value:
            storage.set_study_user_attr(study_id, pending.key, pending.value)
            contents.attributes[pending.key] = pending.value
        return contents
    trial = contents.trials[pending.trial]
    if trial.state.is_finished() or trial.user_attrs.get(pending.key) == pending.value:
        return contents
    storage.set_trial_user_attr(trial._trial_id, pending.key, pending.value)
    return Contents(storage.get_all_trials(study_id, deepcopy=False), contents.attributes)


def _bring_up_to_date(
    backup: Backup, kept: Kept, contents: Contents, study: Mapping[str, Any]
) -> None:
    """Write to a backup what is missing there; one that is damaged, or not there, is made anew."""
    if kept.broken or kept.study is None:
        ours = {key: each for key, each in contents.attributes.items() if key != SETTINGS}
        backup.rewrite(lines_of(study, ours, contents.trials))
        if kept.broken:
            count = len(kept.broken)
            told = "1 line is" if count == 1 else f"{count} lines are"
            warnings.warn(
                f"{backup.path}: {told} damaged; the storage is whole, and the file was written "
                "anew from it",
                stacklevel=2,
            )
        return
    lines = missing_lines(kept, contents.trials)
    if kept.study != study:
        lines.insert(0, study)
    if lines or kept.is_torn:
        backup.append(lines, at=kept.size)


def study_line(
    name: str, config: StudyConfig, distributions: "Mapping[str, BaseDistribution]"
) -> dict[str, Any]:
    """What a backup says of a study under its name in the storage."""
    from optuna.distributions import distribution_to_json

    spelt = {key: distribution_to_json(each) for key, each in distributions.items()}
    return study_body(name, config.model_dump(mode="json"), spelt)
