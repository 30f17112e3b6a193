"""All trials of a study out of the tables, beside Optuna's own way of reading them."""

from pathlib import Path

import optuna
import pytest
from optuna.storages import RDBStorage
from optuna.trial import TrialState

from levit_search.study.database import Database


def test_trials_are_what_optuna_reads(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/trials.db"
    storage = Database(url)
    optuna.create_study(storage=storage, study_name="another").ask()
    study = optuna.create_study(
        storage=storage, study_name="ours", directions=["minimize", "maximize"]
    )
    for number in range(4):
        trial = study.ask()
        trial.suggest_int("z", 0, 9)
        trial.suggest_float("a", 1e-3, 1.0, log=True)
        trial.suggest_categorical("kind", ["x", None, 3])
        trial.set_user_attr("nested", {"a": [1, 2.5, None], "é": "ü"})
        trial.set_constraint("size", number - 2.0)
        if number == 0:
            study.tell(trial, [float("inf"), -1.0])
        elif number == 1:
            study.tell(trial, state=TrialState.FAIL)
        elif number == 2:
            study.tell(trial, [1 / 3, 2.0])
    alone = optuna.create_study(storage=storage, study_name="steps")
    trial = alone.ask()
    trial.report(0.5, 1)
    trial.report(float("nan"), 2)
    for each, count in ((study, 4), (alone, 1)):
        ours = storage.get_all_trials(each._study_id, deepcopy=False)
        theirs = RDBStorage(url).get_all_trials(each._study_id, deepcopy=False)
        assert len(ours) == count
        assert repr(ours) == repr(theirs)
        assert [list(trial.params) for trial in ours] == [list(trial.params) for trial in theirs]


def test_a_study_that_is_not_there_is_no_empty_one(tmp_path: Path) -> None:
    with pytest.raises(KeyError):
        Database(f"sqlite:///{tmp_path}/trials.db").get_all_trials(7)
