"""A search as TensorBoard's scalars, written while it goes on."""

import json
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from levit_search.architecture import Architecture
from levit_search.audit.figures import Outcome, outcome
from levit_search.baseline import BaselineConfig
from levit_search.errors import BudgetError, InputError, LevitSearchError
from levit_search.pareto import is_maximised
from levit_search.printable import quoted
from levit_search.search.outcome import Display, front_volume
from levit_search.search.trials import SearchStatus
from levit_search.space import Slot
from levit_search.study import BaselineRecord, Record, Study

if TYPE_CHECKING:
    from levit_search.search.event_file import EventFile, Hparam

_FINAL = "final/"
_COSTS = ("flops", "params")


class TensorBoard:
    """A display that writes into ``STUDY/tensorboard``, and shows everything on another one.

    The run ``search`` is the search as a whole. By the number of finished trials it has
    ``front/hypervolume``, ``front/networks``, the front's best value of each objective as
    ``best/top1_percent`` and so forth, and as ``trials/complete``, ``trials/stopped`` and so forth
    what became of the proposals (:data:`levit_search.audit.figures.Outcome`). By the number of the
    trial, ``network/top1_percent`` and so forth is what each network came to.

    Each network that was evaluated has a run of its own, ``trial-0007``: ``top1_percent`` and
    ``train_loss`` by epoch, its last figures as ``final/latency_ms`` and so forth, and for the
    table of hyperparameters the choices it is made of.

    What is missing in the folder is added first, such as trials of a session without this display;
    what is there is not written again.

    Args:
        study: no search is at work on it.
        display: another one.

    Raises:
        InputError: TensorBoard is not installed, another search is at work on the study, its
            storage cannot be read or the folder not be written.
    """

    def __init__(self, study: Study, display: Display) -> None:
        require_tensorboard()
        self._study, self._display = study, display
        self._folder = _folder(study)
        self._space = study.config.space(str(study.folder / "study.yaml"))
        self._slots = [slot for slot in self._space.slots if len(slot.values) > 1]
        self._objectives = study.config.objectives
        self._metrics = tuple(dict.fromkeys([*self._objectives, *_COSTS]))
        self._status = SearchStatus(self._objectives)
        self._seen: set[int] = set()
        self._outcomes: Counter[str] = Counter()
        self._volume: tuple[object, float] = ((), 0.0)
        with study.lock(), self._writing(InputError):
            self._folder.mkdir(exist_ok=True)
            self._whole = self._run("search")
            self._known = max(self._whole.steps("front/networks"), default=0)
            for record in sorted(study.records(), key=_order):
                self._count(record)

    def preparing(self, text: str, fraction: float | None) -> None:
        self._display.preparing(text, fraction)

    def started(self, trial: int, network: Architecture | BaselineConfig) -> None:
        self._display.started(trial, network)

    def progress(self, trial: int, text: str, fraction: float | None) -> None:
        self._display.progress(trial, text, fraction)

    def at_rung(self, trial: int, epoch: int, top1_percent: float) -> None:
        self._display.at_rung(trial, epoch, top1_percent)
        with self._writing(BudgetError):
            self._run(_name(trial)).add(epoch, time.time(), {"top1_percent": top1_percent})

    def finished(self, record: Record, status: SearchStatus, left_s: float | None) -> None:
        self._display.finished(record, status, left_s)
        with self._writing(BudgetError):
            if record.trial in self._seen:
                self._recount(record, status)
            for each in status.records:  # those taken over from another study are not told
                if each.trial not in self._seen:
                    self._count(each)

    def compared(self, trial: int, record: BaselineRecord) -> None:
        self._display.compared(trial, record)

    def tick(self) -> None:
        self._display.tick()

    def _count(self, record: Record) -> None:
        """Write what a finished trial changed."""
        self._status.add(record)
        self._seen.add(record.trial)
        self._outcomes[outcome(record, self._study.config.candidate_recipe.epochs)] += 1
        at = _ended(record)
        if len(self._seen) >= self._known:
            self._whole.add(len(self._seen), at, self._state())
        if record.reused_from is None and record.architecture is not None and record.evaluation:
            self._network(record, at)

    def _recount(self, record: Record, status: SearchStatus) -> None:
        """Write what changed as a network's latency was measured that had been predicted."""
        self._status = SearchStatus(self._objectives, status.records)
        epochs = self._study.config.candidate_recipe.epochs
        self._outcomes = Counter(outcome(each, epochs) for each in status.records)
        now = time.time()
        self._whole.add(len(self._seen), now, self._state())
        self._network(record, now)

    def _state(self) -> dict[str, float]:
        """The search as a whole, as it stands."""
        front = self._status.front
        names = get_args(Outcome)
        is_known = self._study.config.reference is not None  # not yet in the first session
        return {
            **({"front/hypervolume": self._hypervolume(front)} if is_known else {}),
            "front/networks": len(front),
            **{f"best/{name}": _best(name, front) for name in self._objectives if front},
            **{f"trials/{name.replace(' ', '_')}": self._outcomes[name] for name in names},
        }

    def _hypervolume(self, front: list[Record]) -> float:
        """Few trials change it."""
        points = [[record.values[name] for name in self._objectives] for record in front]
        if self._volume[0] != points:
            self._volume = (points, front_volume(front, self._study))
        return self._volume[1]

    def _network(self, record: Record, at: float) -> None:
        """What is known of a network at its end."""
        known = {n: record.values[n] for n in self._objectives if n in record.values}
        self._whole.add(record.trial, at, {f"network/{n}": value for n, value in known.items()})
        run, step = self._run(_name(record.trial)), 0
        curve: list[dict[str, Any]] = (record.evaluation.get("training") or {}).get("curve", [])
        for point in curve:
            step = point["epoch"]
            begun = at - curve[-1].get("seconds", 0.0)
            run.add(step, begun + point.get("seconds", 0.0), _figures(point))
        run.add(step, at, {f"{_FINAL}{name}": value for name, value in record.values.items()})
        self._begin_experiment(at)
        if not run.has_hparams:
            assert record.architecture is not None
            choices = self._space.chosen(record.architecture) or {}
            slots = [slot for slot in self._slots if slot.name in choices]
            values = {slot.name: _hparam(slot, choices[slot.name]) for slot in slots}
            run.add_hparams(_name(record.trial), values, at - record.seconds, at)

    def _begin_experiment(self, at: float) -> None:
        if not self._whole.has_hparams:
            hparams = {slot.name: [_hparam(slot, v) for v in slot.values] for slot in self._slots}
            metrics = {_FINAL + name: name for name in self._metrics}
            self._whole.begin_experiment(at, hparams, metrics)

    def _run(self, name: str) -> "EventFile":
        from levit_search.search.event_file import EventFile

        return EventFile(self._folder / name)

    @contextmanager
    def _writing(self, kind: type[LevitSearchError]) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            reason = error.strerror or error
            raise kind(f"{self._folder}: cannot be read or written ({reason})") from None


def require_tensorboard() -> None:
    """Make sure of the package that writes the events.

    Raises:
        InputError: it is not installed.
    """
    if find_spec("tensorboard") is None:
        raise InputError(
            "tensorboard is not installed, which writes its events; "
            "pip install 'levit-search[tensorboard]'"
        )


def watched(study: Study, display: Display, tensorboard: bool) -> Display:
    """A display that shows what another one does, and writes TensorBoard's events if asked to.

    Raises:
        InputError: see :class:`TensorBoard`.
    """
    return TensorBoard(study, display) if tensorboard else display


def command(study: Study) -> str:
    """The command that shows a study's events, quoted for a shell."""
    return f"tensorboard --logdir {quoted(str(_folder(study).absolute()))}"


def _folder(study: Study) -> Path:
    return study.folder / "tensorboard"


def _name(trial: int) -> str:
    return f"trial-{trial:04d}"


def _order(record: Record) -> tuple[float, int]:
    """That in which trials ended; those of unknown end, an earlier release's, come first."""
    return (_ended(record) if record.finished else 0.0, record.trial)


def _ended(record: Record) -> float:
    return datetime.fromisoformat(record.finished).timestamp() if record.finished else time.time()


def _best(objective: str, front: list[Record]) -> float:
    return (max if is_maximised(objective) else min)(r.values[objective] for r in front)


def _figures(point: dict[str, Any]) -> dict[str, float]:
    """Of an epoch; the loss is not known of other engines' own trainings."""
    found = {
        "top1_percent": point["val_top1_percent"],
        "train_loss": point.get("train_loss"),
    }
    return {tag: value for tag, value in found.items() if value is not None}


def _hparam(slot: Slot, value: Any) -> "Hparam":
    if slot.ordinal:
        return float(value)
    return value if isinstance(value, str) else json.dumps(value)
