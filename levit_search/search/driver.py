"""The ask/tell loop: proposals, limits, repeats, evaluations, and going on after a kill."""

import time
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import optuna
from optuna.trial import TrialState

from levit_search import architecture as architectures
from levit_search import table
from levit_search.architecture import Architecture
from levit_search.cost import cost
from levit_search.donors import check_donor_weights
from levit_search.errors import BudgetError, InputError
from levit_search.latency.cache import fingerprint
from levit_search.pareto import hypervolume, minimised
from levit_search.search.engine import Engine, Event, LocalEngine
from levit_search.search.samplers import SeededSampler
from levit_search.space import Space
from levit_search.study import MEASURED, Record, Study, record_of, with_measured

# A proposal that is not trained (over a limit, or known already) uses up no budget; this many of
# them in a row mean that nothing new can be found. One that was probed costs as much as many.
_IDLE_PROPOSALS = 500
_IDLE_PROBED = 25
# So many failures without a single success are no bad luck of single candidates.
_FAILURES_AT_START = 3
_REFRESH_S = 0.25
# Tables are for people to look at meanwhile; more often than this would only cost time.
_TABLES_EVERY_S = 5.0


@dataclass(frozen=True)
class Summary:
    """How a search ended. ``trials`` counts all of the study's, ``seconds`` this session's."""

    study: str
    trials: dict[str, int]
    seconds: float
    hypervolume: float
    front: list[Record]
    stopped_because: str


class Display(Protocol):
    """Whoever shows a search while it runs."""

    def preparing(self, text: str, fraction: float | None) -> None:
        """Something all trials need is being prepared."""

    def started(self, trial: int, network: Architecture) -> None:
        """A trial is being evaluated."""

    def progress(self, trial: int, text: str, fraction: float | None) -> None:
        """A running trial has come to a step."""

    def finished(self, record: Record, records: list[Record], left_s: float | None) -> None:
        """A trial has ended; ``left_s`` is the time that the rest will take, if that is known."""

    def tick(self) -> None:
        """Called a few times a second, for clocks."""


def search(study: Study, display: Display) -> Summary:
    """Search until the study's budget is used up; goes on where an earlier session stopped.

    Raises:
        InputError: what all trials need (data, teacher, donor weights, reference) is wrong or
            missing, or another search is at work on the study. Nothing was evaluated.
        BudgetError: nothing could be evaluated at all.
    """
    with study.lock():
        space = study.config.space(str(study.folder / "study.yaml"))
        check_donor_weights(study.config.train.donor_weights, space.donors())
        return _Driver(study, space, display).run()


class _Driver:
    """One session of a search."""

    def __init__(self, study: Study, space: Space, display: Display) -> None:
        self._study, self._space, self._display = study, space, display
        self._config = study.config
        sampler = SeededSampler(self._config.search, space.distributions())
        self._storage = study.storage(sampler)
        self._start_values = _start_values(study, space)
        self._running: dict[int, optuna.trial.Trial] = {}
        self._left_over = self._storage.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
        finished = self._storage.get_trials(deepcopy=True)
        self._measured = dict(self._storage.user_attrs)
        self._records = [self._record(t) for t in finished if t.state.is_finished()]
        self._known = {
            record.architecture.id: record
            for record in reversed(self._records)
            if record.evaluation and record.architecture is not None
        }
        self._idle = 0
        self._tables_written = 0.0

    def run(self) -> Summary:
        self._begun = time.monotonic()
        if self._is_enough() and not self._unmeasured():
            return self._summary("the budget was used up before")
        settled_ms = self._storage.user_attrs.get("settled_ms", {})
        sample = self._sample()
        engine = LocalEngine(self._study, sample, settled_ms)
        try:
            self._prepare(engine)
            because = self._loop(engine)
            self._verify(engine)
        finally:
            engine.close()
            self._write_tables()
        return self._summary(because)

    def _sample(self) -> Architecture:
        """Any valid network: what is prepared depends on the images alone."""
        chance = np.random.default_rng(0)
        while True:
            try:
                return self._space.draw(chance)
            except InputError:
                continue  # the space was checked to have valid networks

    def _prepare(self, engine: Engine) -> None:
        while not engine.has_room():
            for event in engine.events(_REFRESH_S):
                if event.kind == "failed":
                    kind = InputError if event.content.get("wrong_input") else BudgetError
                    raise kind(event.text)
                if event.kind == "progress":
                    self._display.preparing(event.text, event.fraction)
                if event.kind == "done" and event.trial is None:
                    self._remember(event.content)
            self._display.tick()

    def _check_device(self, now: dict[str, Any]) -> None:
        """Latencies of two devices do not belong on one front."""
        before, runtime = self._storage.user_attrs.get("device"), self._config.latency.runtime
        if not before or not now:
            return
        old, new = fingerprint(before, runtime), fingerprint(now, runtime)
        changed = [name for name in {**old, **new} if old.get(name) != new.get(name)]
        if changed:
            name = changed[0]
            raise InputError(
                f"{self._study.folder}: its latencies were measured with {name} {old.get(name)}, "
                f"here it is {new.get(name)}; start another study by --study"
            )

    def _remember(self, prepared: dict[str, Any]) -> None:
        self._check_device(prepared["device"])
        if prepared["settled_ms"]:
            self._storage.set_user_attr("settled_ms", prepared["settled_ms"])
        for key in ("device", "teacher"):
            if prepared[key]:
                self._storage.set_user_attr(key, prepared[key])

    def _loop(self, engine: Engine) -> str:
        limit_s = self._config.search.time_s
        while True:
            out_of_time = limit_s is not None and time.monotonic() - self._begun >= limit_s
            while engine.has_room() and not self._is_enough() and not out_of_time:
                if not self._propose(engine):
                    break
            if not self._running:
                if out_of_time:
                    return "the time is up"
                if self._is_enough():
                    return "the budget is used up"
                if self._idle >= _IDLE_PROPOSALS:
                    return self._exhausted()
            for event in engine.events(_REFRESH_S if self._running else 0):
                self._handle(event)
            self._display.tick()

    def _verify(self, engine: Engine) -> None:
        """Measure what the front holds by prediction only, until nothing on it is.

        A network that fails leaves the front once others have been measured; where several fail in
        a row it is not their fault, and they stay for the next session.
        """
        failed: dict[str, dict[str, Any]] = {}
        works = False
        while left := self._unmeasured(failed):
            found = self._verified(engine, left[0])
            failed[_measured_key(left[0])] = found
            works = works or "failed" not in found
            if "failed" not in found or (works and not self._unmeasured(failed)):
                self._note_measured(failed)
                failed = {}
            shown = next(each for each in self._records if each.trial == left[0].trial)
            self._display.finished(shown, self._records, None)
            if len(failed) == _FAILURES_AT_START:
                break
        if failed:
            reason = next(reversed(failed.values()))["failed"]
            raise BudgetError(
                f"{len(failed)} networks on the front could not be measured, the last with: "
                f"{reason}; the same command tries again"
            )

    def _verified(self, engine: Engine, record: Record) -> dict[str, Any]:
        """What measuring a network gave, or ``failed`` with the reason."""
        while not engine.has_room():  # a worker may have ended
            self._raise_if_unprepared(engine.events(_REFRESH_S))
            self._display.tick()
        assert record.architecture is not None
        engine.verify(record.trial, record.architecture)
        self._display.started(record.trial, record.architecture)
        while True:
            events = engine.events(_REFRESH_S)
            self._raise_if_unprepared(events)
            for event in events:
                if event.trial is None:
                    continue
                match event.kind:
                    case "progress":
                        self._display.progress(event.trial, event.text, event.fraction)
                    case "failed":
                        return {"failed": event.text}
                    case "done":
                        return {name: event.content[name] for name in ("values", "latency")}
            self._display.tick()

    def _raise_if_unprepared(self, events: list[Event]) -> None:
        for event in events:
            if event.trial is None and event.kind == "failed":
                raise BudgetError(event.text)

    def _note_measured(self, found: dict[str, dict[str, Any]]) -> None:
        for key, content in found.items():
            self._storage.set_user_attr(key, content)
        self._measured |= found
        limit_ms = self._space.limits.latency_ms
        self._records = [with_measured(each, found, limit_ms) for each in self._records]

    def _unmeasured(self, aside: Collection[str] = ()) -> list[Record]:
        """Records whose latency is predicted only, on the front of all but those ``aside``."""
        if self._config.latency.method == "measured" or not self._config.is_measured:
            return []
        records = [
            record
            for record in self._records
            if record.architecture is None or _measured_key(record) not in aside
        ]
        return [
            record
            for record in table.front(records, self._config.objectives)
            if _measured_key(record) not in self._measured
        ]

    def _record(self, trial: optuna.trial.FrozenTrial) -> Record:
        return with_measured(record_of(trial), self._measured, self._config.limits.latency_ms)

    def _is_enough(self) -> bool:
        return self._spent() + len(self._running) >= self._config.search.trials

    def _spent(self) -> int:
        """Trials that cost an evaluation: neither turned down by a limit nor known already."""
        return sum(
            record.state == "failed" or (record.state == "complete" and record.reused_from is None)
            for record in self._records
        )

    def _exhausted(self) -> str:
        if not self._has_complete():
            reason = next((r.reason for r in reversed(self._records) if r.reason), "")
            raise BudgetError(
                f"nothing that was proposed keeps the limits (the last: {reason}); loosen them"
            )
        return f"{_IDLE_PROPOSALS} proposals in a row brought nothing new"

    def _propose(self, engine: Engine) -> bool:
        """Ask for a trial, and start it unless its outcome is known already.

        Returns:
            False when so many proposals in a row cost nothing that asking on is of no use.
        """
        trial = self._asked()
        values = self._space.suggest(trial)
        try:
            network = self._space.decode(values)
        except InputError as error:
            trial.set_constraint("valid", 1.0)
            self._turn_down(trial, str(error))
            return self._idle < _IDLE_PROPOSALS
        attributes = trial.user_attrs
        found = cost(network)
        notes = {"architecture": network.model_dump(mode="json"), "cost": found._asdict()}
        for key, note in notes.items():  # a kill may have come between the two
            if key not in attributes:
                trial.set_user_attr(key, note)
        constraints = trial.constraints
        excess = {"valid": 0.0, **self._space.limits.excess(found)}
        for name, value in excess.items():
            if name not in constraints:
                trial.set_constraint(name, value)
        over = [name for name, value in excess.items() if value > 0]
        if over:
            limit = getattr(self._space.limits, over[0])
            self._turn_down(trial, f"{over[0]} over the limit of {limit:,.0f}")
        elif "evaluation" in attributes:  # the kill came between an evaluation and its telling
            self._tell_evaluated(trial, attributes["evaluation"])
        elif network.id in self._known:
            self._reuse(trial, self._known[network.id])
        else:
            self._running[trial.number] = trial
            engine.submit(trial.number, network)
            self._display.started(trial.number, network)
        return self._idle < _IDLE_PROPOSALS

    def _asked(self) -> optuna.trial.Trial:
        """A trial left running by a killed session, the next of the networks to start with, or a
        new proposal."""
        if self._left_over:
            left = self._left_over.pop(0)
            return optuna.trial.Trial(self._storage, left._trial_id)
        # One network is queued just before it is asked for, so that a kill in between leaves
        # a waiting trial with the right number, which the next ask takes.
        trials = self._storage.get_trials(deepcopy=False)
        waiting = any(trial.state == TrialState.WAITING for trial in trials)
        if not waiting and len(trials) < len(self._start_values):
            parameters = self._space.encoded(self._start_values[len(trials)])
            self._storage.enqueue_trial(parameters)
        return self._storage.ask()

    def _turn_down(self, trial: optuna.trial.Trial, reason: str) -> None:
        self._idle += 1
        trial.set_user_attr("reason", reason)
        self._tell(trial, state=TrialState.PRUNED)

    def _reuse(self, trial: optuna.trial.Trial, known: Record) -> None:
        self._idle += 1
        evaluation = {**known.evaluation, "seconds": 0.0}
        trial.set_user_attr("reused_from", known.trial)
        trial.set_user_attr("evaluation", evaluation)
        self._tell_evaluated(trial, evaluation)

    def _has_complete(self) -> bool:
        return any(record.state == "complete" for record in self._records)

    def _handle(self, event: Event) -> None:
        if event.trial is None:
            if event.kind == "failed":  # a new worker could not prepare what the old one could
                raise BudgetError(event.text)
            return
        trial = self._running[event.trial]
        match event.kind:
            case "progress":
                self._display.progress(event.trial, event.text, event.fraction)
            case "done":
                trial.set_user_attr("evaluation", event.content)
                self._tell_evaluated(trial, event.content)
            case "failed":
                trial.set_user_attr("reason", event.text)
                self._tell(trial, state=TrialState.FAIL)
                failures = sum(record.state == "failed" for record in self._records)
                if not self._has_complete() and failures >= _FAILURES_AT_START:
                    raise BudgetError(
                        f"the first {failures} trials failed, the last with: {event.text}"
                    )

    def _tell_evaluated(self, trial: optuna.trial.Trial, evaluation: dict[str, Any]) -> None:
        limit, latency_ms = self._space.limits.latency_ms, evaluation["values"].get("latency_ms")
        if limit is not None and "latency_ms" not in trial.constraints:
            trial.set_constraint("latency_ms", latency_ms / limit - 1)
        if limit is not None and latency_ms > limit:
            if evaluation["seconds"] > 0:
                self._idle += _IDLE_PROBED
            reason = f"latency_ms {latency_ms:.3g} over the limit of {limit:g}"
            self._turn_down(trial, reason)
            return
        if "reused_from" not in trial.user_attrs:
            self._idle = 0
        values = {**trial.user_attrs["cost"], **evaluation["values"]}
        self._tell(trial, values=[values[name] for name in self._config.objectives])

    def _tell(
        self,
        trial: optuna.trial.Trial,
        values: list[float] | None = None,
        state: TrialState | None = None,
    ) -> None:
        """End a trial in the storage, then in our own books."""
        frozen = self._storage.tell(trial, values, state)
        self._running.pop(trial.number, None)
        record = self._record(frozen)
        self._records.append(record)
        if record.evaluation and record.architecture is not None:
            self._known.setdefault(record.architecture.id, record)
        self._display.finished(record, self._records, self._left_s())
        if time.monotonic() - self._tables_written > _TABLES_EVERY_S:
            self._write_tables()

    def _left_s(self) -> float | None:
        """The time that the rest of the budget will take, by the median of what trials took."""
        spent = [r.seconds for r in self._records if r.seconds > 0]
        if not spent:
            return None
        left_s = float(np.median(spent)) * (self._config.search.trials - self._spent())
        if self._config.search.time_s is not None:
            elapsed = time.monotonic() - self._begun
            left_s = min(left_s, self._config.search.time_s - elapsed)
        return max(0.0, left_s)

    def _write_tables(self) -> None:
        self._tables_written = time.monotonic()
        self._records.sort(key=lambda record: record.trial)
        table.write_tables(self._study, self._records)

    def _summary(self, because: str) -> Summary:
        front = table.front(self._records, self._config.objectives)
        counts = {
            state: sum(record.state == state for record in self._records)
            for state in ("complete", "pruned", "failed")
        }
        counts["reused"] = sum(record.reused_from is not None for record in self._records)
        return Summary(
            study=str(self._study.folder),
            trials=counts,
            seconds=time.monotonic() - self._begun,
            hypervolume=front_volume(front, self._study),
            front=front,
            stopped_because=because,
        )


def _measured_key(record: Record) -> str:
    assert record.architecture is not None
    return f"{MEASURED}{record.architecture.id}"


def front_volume(front: list[Record], study: Study) -> float:
    """The hypervolume of a front against the reference point kept with the study."""
    objectives = study.config.objectives
    reference = minimised([study.config.hypervolume_reference], objectives)[0]  # type: ignore[list-item]
    return hypervolume(minimised([record.values for record in front], objectives), reference)


def _start_values(study: Study, space: Space) -> list[dict[str, Any]]:
    """Slot values of the networks to try first: those given by hand, then the published ones.

    Each network stands there once, though some published names mean the same one.

    Raises:
        InputError: one given by hand is not in the space.
    """
    chosen: dict[str, dict[str, Any]] = {}
    for entry in study.config.start:
        if isinstance(entry, str):
            network, name = architectures.published(entry), entry
        else:
            network, name = architectures.parse(entry, "start"), "a network"
        values = space.encode(network)
        if values is None:
            raise InputError(
                f"{study.folder / 'study.yaml'}: start: {name} ({network.summary()}) is not in the "
                "space"
            )
        chosen.setdefault(network.id, values)
    for name in architectures.published_names():
        network = architectures.published(name)
        if network.id not in chosen and (values := space.encode(network)) is not None:
            chosen[network.id] = values
    return list(chosen.values())
