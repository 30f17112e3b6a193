"""A search as scalars and hyperparameters of TensorBoard, written while it goes on.

TensorBoard's package and torch, whose ``SummaryWriter`` writes the files, are imported as a search
begins, not before.
"""

import json
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from datetime import datetime
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import numpy as np

from levit_search import table
from levit_search.errors import BudgetError, InputError, LevitSearchError
from levit_search.escaping import quoted
from levit_search.files import named_in_utf_8
from levit_search.pareto import is_maximised
from levit_search.search.callbacks import Callback, front_volume
from levit_search.search.trials import SearchStatus
from levit_search.space import Slot
from levit_search.study import Outcome, Record, Study, outcome

if TYPE_CHECKING:
    from tensorboard.compat.proto.summary_pb2 import Summary
    from torch.utils.tensorboard import SummaryWriter

_SEARCH = "search"  # the run of the search as a whole
_FINAL = "final/"
_QUEUED = 1000  # events for the thread that writes them; each wait for it takes time
_EARLIER = "events.out.tfevents.levit-search"  # the one file of a run, by earlier releases
_EARLIER_FIRST = "events.out.tfevents.0.levit-search"  # the same before files of SummaryWriter


class TensorBoardCallback(Callback):
    """Writes a search into ``STUDY/tensorboard``.

    The run ``search`` is the search as a whole. By the number of finished trials it has
    ``front/hypervolume``, ``front/networks``, the front's best value of each objective as
    ``best/top1_percent`` and so forth, and as ``trials/complete``, ``trials/stopped`` and so forth
    what became of the proposals (:data:`levit_search.study.Outcome`). By the number of the
    trial, ``network/top1_percent`` and so forth is what each network came to.

    Each network that was evaluated has a run of its own, ``trial-0007``: ``top1_percent`` and
    ``train_loss`` by epoch, its last figures as ``final/latency_ms`` and so forth, and for the
    table of hyperparameters the choices it is made of.

    What is missing in the folder is added first, such as trials of a session without this callback;
    what is there is not written again.

    A folder that cannot be read or written raises an InputError as the search begins and a
    BudgetError later.

    Raises:
        InputError: TensorBoard is not installed.
    """

    def __init__(self, study: Study) -> None:
        require_tensorboard()
        self._study, self._folder = study, _folder(study)
        self._space = study.config.space(str(study.folder / "study.yaml"))
        self._slots = [slot for slot in self._space.slots if len(slot.values) > 1]
        self._objectives = study.config.objectives
        self._epochs = study.config.candidate_recipe.epochs
        self._front: list[Record] = []
        self._hypervolume: float | None = None  # where the study has no reference yet
        self._outcomes: Counter[Outcome] = Counter()
        self._count = 0  # trials that have been told
        self._known = 0  # trials that earlier sessions have written
        self._runs: dict[str, _Run] = {}  # those that are written to, by name

    def on_search_start(self, status: SearchStatus) -> None:
        with self._writing(InputError):
            self._folder.mkdir(exist_ok=True)
            self._known = self._run(_SEARCH).last_step("front/networks")
            # In the order in which they ended; those of unknown end are an earlier release's.
            records = sorted(status.records, key=lambda each: (each.finished or "", each.trial))
            for record in records:
                self._add(record)
            self._run(_SEARCH).flush()

    def on_trial_result(self, trial: int, epoch: int, top1_percent: float) -> None:
        with self._writing(BudgetError):
            run = self._run(_name(trial))
            run.add(epoch, time.time(), {"top1_percent": top1_percent})
            run.flush()

    def on_trial_complete(self, record: Record, status: SearchStatus, left_s: float | None) -> None:
        del left_s
        with self._writing(BudgetError):
            if self._count == len(status.records):  # measured or trained now, after an estimate
                self._outcomes = Counter(outcome(each, self._epochs) for each in status.records)
                self._add_state(status.front, time.time())
                self._add_network(record, time.time())
            for each in status.records[self._count :]:
                self._add(each)
            self._close(_name(record.trial))
            self._run(_SEARCH).flush()

    def on_search_end(self) -> None:
        with self._writing(BudgetError):
            for name in list(self._runs):
                self._close(name)

    def _add(self, record: Record) -> None:
        """Write what a trial changed."""
        at = _ended(record)
        self._count += 1
        self._outcomes[outcome(record, self._epochs)] += 1
        self._add_state(table.front([*self._front, record], self._objectives), at)
        if record.reused_from is None and record.architecture is not None and record.evaluation:
            self._add_network(record, at)
        self._close(_name(record.trial))

    def _add_state(self, front: list[Record], at: float) -> None:
        """Write the search as a whole, as it stands."""
        is_known = self._study.config.reference is not None  # not yet in the first session
        if is_known and (front != self._front or self._hypervolume is None):
            self._hypervolume = front_volume(front, self._study)
        self._front = front
        if self._count < self._known:
            return
        state: dict[str, float] = {"front/networks": len(front)}
        if self._hypervolume is not None:
            state["front/hypervolume"] = self._hypervolume
        for name in self._objectives if front else ():
            best = max if is_maximised(name) else min
            state[f"best/{name}"] = best(record.values[name] for record in front)
        for kind in get_args(Outcome):
            state[f"trials/{kind.replace(' ', '_')}"] = self._outcomes[kind]
        self._run(_SEARCH).add(self._count, at, state)

    def _add_network(self, record: Record, at: float) -> None:
        """Write what a network came to: into its own run first, so that its figures in the run of
        the search stand for all of it."""
        name, whole = _name(record.trial), self._run(_SEARCH)
        figures = {f"network/{n}": record.values[n] for n in self._objectives if n in record.values}
        if whole.has(record.trial, figures) and (self._folder / name).is_dir():
            return
        run, curve, step = self._run(name), record.curve, 0
        for point in curve:
            step = point["epoch"]
            before_s = curve[-1].get("seconds", 0.0) - point.get("seconds", 0.0)
            run.add(step, at - before_s, {"top1_percent": point["val_top1_percent"]})
            if (loss := point.get("train_loss")) is not None:  # not known of all engines' trainings
                run.add(step, at - before_s, {"train_loss": loss})
        run.add(step, at, {f"{_FINAL}{name}": value for name, value in record.values.items()})
        if not run.has_hparams:
            if not whole.has_hparams:
                whole.add_hparams(self._experiment(at), at)
            run.add_hparams(self._session(record, at), at)
        whole.add(record.trial, at, figures)

    def _experiment(self, at: float) -> "Summary":
        """For the table of hyperparameters: what varies over all networks, and what is shown of
        each."""
        from tensorboard.plugins.hparams.summary_v2 import (
            Discrete,
            HParam,
            Metric,
            hparams_config_pb,
        )

        choices = [
            HParam(slot.name, Discrete([_hparam(slot, value) for value in slot.values]))
            for slot in self._slots
        ]
        names = dict.fromkeys([*self._objectives, "flops", "params"])
        metrics = [Metric(f"{_FINAL}{name}", display_name=name) for name in names]
        return hparams_config_pb(choices, metrics, at)

    def _session(self, record: Record, at: float) -> "Summary":
        """For the table of hyperparameters: a network's own, that it is done, and when."""
        from tensorboard.plugins.hparams import metadata, plugin_data_pb2, summary_v2
        from tensorboard.plugins.hparams.api_pb2 import STATUS_SUCCESS

        assert record.architecture is not None
        chosen = self._space.chosen(record.architecture) or {}
        choices = {s.name: _hparam(s, chosen[s.name]) for s in self._slots if s.name in chosen}
        summary = summary_v2.hparams_pb(choices, _name(record.trial), at - record.seconds)
        end = plugin_data_pb2.SessionEndInfo(status=STATUS_SUCCESS, end_time_secs=at)
        content = plugin_data_pb2.HParamsPluginData(session_end_info=end)
        summary.value.add(
            tag=metadata.SESSION_END_INFO_TAG,
            metadata=metadata.create_summary_metadata(content),
            tensor=metadata.NULL_TENSOR,
        )
        return summary

    def _run(self, name: str) -> "_Run":
        if name not in self._runs:
            self._runs[name] = _Run(self._folder / name)
        return self._runs[name]

    def _close(self, name: str) -> None:
        if name in self._runs:
            self._runs.pop(name).close()

    @contextmanager
    def _writing(self, kind: type[LevitSearchError]) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            reason = error.strerror or error
            raise kind(f"{self._folder}: cannot be read or written ({reason})") from None


class _Run:
    """One of TensorBoard's runs: a folder, to which a session adds a file with what is not there.

    A record that a killed session left torn is the last of its file, which TensorBoard reads up to
    there. Each method raises OSError where the folder cannot be read or written. Times are in
    seconds since 1970, values are kept in single precision.
    """

    def __init__(self, folder: Path) -> None:
        self._folder, self._stack = folder, ExitStack()
        self._writer: "SummaryWriter | None" = None
        self._values: dict[tuple[str, int], bytes] = {}
        self.has_hparams = False
        if folder.is_dir():
            self._read()

    def last_step(self, tag: str) -> int:
        """The last at which there is a value, or 0."""
        return max((step for name, step in self._values if name == tag), default=0)

    def has(self, step: int, scalars: Mapping[str, float]) -> bool:
        """Whether all of these values are there."""
        return all(self._values.get((tag, step)) == _raw(each) for tag, each in scalars.items())

    def add(self, step: int, at: float, scalars: Mapping[str, float]) -> None:
        """Write by tag what is not there, or not with this value; :meth:`flush` makes it seen."""
        for tag, value in scalars.items():
            if self._values.get((tag, step)) != (raw := _raw(value)):
                self._opened().add_scalar(tag, value, step, at)
                self._values[tag, step] = raw

    def add_hparams(self, summary: "Summary", at: float) -> None:
        """Write what is for the table of hyperparameters.

        ``SummaryWriter.add_hparams`` would make a run within the run, with neither the time nor the
        choices that other runs have.
        """
        writer: Any = self._opened().file_writer  # torch's hints have None alone
        writer.add_summary(summary, 0, at)
        self.has_hparams = True

    def flush(self) -> None:
        if self._writer is not None:
            self._writer.flush()

    def close(self) -> None:
        self._stack.close()
        self._writer = None

    def _opened(self) -> "SummaryWriter":
        """The writer of this session, whose file is made now."""
        from torch.utils.tensorboard import SummaryWriter

        if self._writer is None:
            self._folder.mkdir(parents=True, exist_ok=True)
            folder = self._stack.enter_context(named_in_utf_8(self._folder))
            writer = SummaryWriter(str(folder), max_queue=_QUEUED)
            self._writer = self._stack.enter_context(writer)
        return self._writer

    def _read(self) -> None:
        from tensorboard.backend.event_processing import event_accumulator

        with suppress(FileNotFoundError):  # files are read in the order of their names
            (self._folder / _EARLIER).rename(self._folder / _EARLIER_FIRST)
        with named_in_utf_8(self._folder) as folder:
            every_one = {event_accumulator.SCALARS: 0}
            read = event_accumulator.EventAccumulator(str(folder), every_one)
            read.Reload()
        for tag in read.Tags()[event_accumulator.SCALARS]:
            for event in read.Scalars(tag):
                self._values[tag, event.step] = _raw(event.value)
        with suppress(KeyError):  # there are none
            self.has_hparams = bool(read.PluginTagToContent("hparams"))


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


def command(study: Study) -> str:
    """The command that shows a study's events, quoted for a shell."""
    return f"tensorboard --logdir {quoted(str(_folder(study).absolute()))}"


def _folder(study: Study) -> Path:
    return study.folder / "tensorboard"


def _name(trial: int) -> str:
    return f"trial-{trial:04d}"


def _ended(record: Record) -> float:
    return datetime.fromisoformat(record.finished).timestamp() if record.finished else time.time()


def _hparam(slot: Slot, value: Any) -> float | str:
    if slot.ordinal:
        return float(value)
    return value if isinstance(value, str) else json.dumps(value)


def _raw(value: float) -> bytes:
    """A value as it is kept, in single precision; NaN is the same as NaN."""
    with np.errstate(over="ignore"):
        return np.float32(value).tobytes()
