"""The ask/tell loop: proposals, limits, repeats, rungs, evaluations, and going on after a kill."""

import contextlib
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from optuna.trial import FrozenTrial, TrialState

from levit_search import architecture as architectures
from levit_search import table
from levit_search.architecture import Architecture
from levit_search.cost import Cost, cost
from levit_search.donors import check_donor_weights
from levit_search.errors import (
    GOES_ON,
    BudgetError,
    InputError,
    LevitSearchError,
    refused_by_disk,
)
from levit_search.files import remove_unfinished
from levit_search.search.engine import Engine, Event, make_engine, pass_on_warnings
from levit_search.search.history import History
from levit_search.search.ledger import Ledger
from levit_search.search.memory import collected_later
from levit_search.search.outcome import Display, Summary, front_volume
from levit_search.search.preparation import check_devices, remember, sample_of, start_values
from levit_search.search.rungs import Rungs
from levit_search.search.samplers import (
    Proposer,
    Standing,
    chosen,
    population_of,
    reads_pruned,
)
from levit_search.search.takeover import check_source, taken_over
from levit_search.search.tally import Tally, is_spent
from levit_search.search.verification import Verification
from levit_search.space import Space
from levit_search.study import (
    Record,
    SamplerName,
    State,
    Study,
    record_from_notes,
    record_of,
    training_file,
    with_measured,
)

# So many networks in a row that turned out to be over a limit only when they were probed mean that
# the limit cannot be kept.
_TOO_SLOW = 20
# So many failures without a single success are no bad luck of single candidates.
_FAILURES_AT_START = 3
# So many in a row mean that the device, the disk or the like is gone.
_FAILURES = 10
_MOST_TRIES = 2  # of a network that fails
_REFRESH_S = 0.25
_INTERRUPTED = "you interrupted it"
# Tables are for people to look at meanwhile; writing them should cost a fiftieth of the time.
_TABLES_EVERY_S = 5.0
_TABLES_SHARE = 50

_STATES: dict[TrialState, State] = {
    TrialState.COMPLETE: "complete",
    TrialState.PRUNED: "pruned",
    TrialState.FAIL: "failed",
}


@dataclass
class _Candidate:
    """A network on its way through its evaluation."""

    number: int
    network: Architecture
    notes: dict[str, Any]
    """What is stored with the trial."""
    excess: dict[str, float] = field(default_factory=dict)
    """By limit, how far above it."""


MakeEngine = Callable[[Study, Architecture, dict[str, float]], Engine]
"""As :func:`levit_search.search.engine.make_engine`."""


def search(
    study: Study,
    display: Display,
    take_from: Path | None = None,
    engine: MakeEngine | None = None,
    is_asked_to_stop: Callable[[], bool] = lambda: False,
) -> Summary:
    """Search until the study's budget is used up; goes on where an earlier session stopped.

    Args:
        study: what to search, and where to keep it.
        display: told what happens.
        take_from: the folder of another study, whose finished trials are taken over where they
            fit.
        engine: makes what carries evaluations out; None is what the study's configuration names.
        is_asked_to_stop: asked often. Once it is true nothing is begun any more, and what runs goes
            on to its next rung or its end.

    Raises:
        InputError: what all trials need (data, teacher, donor weights, reference, storage, a
            cluster) is wrong or missing, or another search is at work on the study. Nothing was
            evaluated.
        BudgetError: nothing could be evaluated at all, or a disk or the storage refuses. What was
            finished is there.
        KeyboardInterrupt: asked to stop before the first proposal.
    """
    with study.lock():
        remove_unfinished(study.folder)
        space = study.config.space(str(study.folder / "study.yaml"))
        check_donor_weights(study.config.train.donor_weights, space.donors())
        made = engine or make_engine
        with collected_later():
            driver = _Driver(study, space, display, take_from, made, is_asked_to_stop)
        return driver.run()


class _Driver:
    """One session of a search."""

    def __init__(
        self,
        study: Study,
        space: Space,
        display: Display,
        take_from: Path | None,
        engine: MakeEngine,
        is_asked_to_stop: Callable[[], bool],
    ) -> None:
        self._make_engine, self._is_asked_to_stop = engine, is_asked_to_stop
        self._study, self._space, self._display = study, space, display
        self._config = study.config
        self._distributions = space.distributions()
        self._source = check_source(take_from, study) if take_from is not None else None
        self._starts = start_values(study, space)
        self._ledger = Ledger(study, self._distributions)
        self._rungs = _rungs(study)
        limits = space.limits.model_dump()
        constraints = ["valid", *(name for name, bound in limits.items() if bound is not None)]
        sampler, population = self._settled_sampler()
        self._history = History(
            self._config.objectives,
            self._distributions,
            constraints,
            reads_pruned(sampler),
            self._rungs,
        )
        self._history.restore_parents(self._ledger.attributes)
        self._proposer = Proposer(
            sampler,
            self._config.search,
            self._distributions,
            self._history,
            self._standing,
            population,
        )
        self._running: dict[int, _Candidate] = {}
        self._left_over: list[_Candidate] = []
        self._tally = Tally(self._config.objectives)
        self._verification = Verification(study, self._ledger)
        self._fruitless = self._too_slow = self._failures = 0
        self._is_exhausted = False
        self._tables_at = 0.0

    def run(self) -> Summary:
        self._begun = time.monotonic()
        trials = self._ledger.trials()
        # Workers take seconds to start; they may do so while trials are recalled.
        engine = self._started_engine() if self._is_surely_begun(trials) else None
        try:
            with collected_later():
                self._recall_all(trials)
        except BaseException:
            if engine is not None:
                engine.close()
            raise
        is_done = self._is_enough() and not self._left_over and self._source is None
        if is_done and not self._verification.left(self._tally):
            if engine is not None:
                engine.close()
            self._write_tables()
            return self._summary("the budget was used up before")
        engine = engine or self._started_engine()
        try:
            self._prepare(engine)
            if self._source is not None:
                self._take_over(self._source)
            because = self._loop(engine)
            self._tally = self._verification.run(
                engine, self._tally, self._display, self._is_asked_to_stop
            )
        except BaseException:
            engine.close()
            with contextlib.suppress(BudgetError):  # it must not take the place of what happened
                self._write_tables()
            raise
        engine.close()
        self._write_tables()
        return self._summary(_INTERRUPTED if self._is_asked_to_stop() else because)

    def _is_surely_begun(self, trials: Sequence[FrozenTrial]) -> bool:
        """Whether something is left to evaluate, as far as that can be told at a glance."""
        notes = [trial.user_attrs for trial in trials]
        evaluated = sum("evaluation" in each and "reused_from" not in each for each in notes)
        return self._config.search.trials is None or evaluated < self._config.search.trials

    def _started_engine(self) -> Engine:
        settled_ms = self._ledger.attributes.get("settled_ms", {})
        if not settled_ms and self._source is not None:
            settled_ms = self._source.attributes().get("settled_ms", {})
        return self._make_engine(self._study, sample_of(self._space), settled_ms)

    def _settled_sampler(self) -> tuple[SamplerName, int]:
        """What the budget decides is settled when a study begins, and stays when it is extended."""
        attributes = self._ledger.attributes
        if "sampler" not in attributes:
            self._ledger.set_attribute("population", population_of(self._config.search))
            self._ledger.set_attribute("sampler", chosen(self._config.search))
        return attributes["sampler"], attributes["population"]

    def _take_over(self, source: Study) -> None:
        known = len(self._ledger.trials())
        taken_over(source, self._study, self._space, self._ledger)
        for trial in self._ledger.trials()[known:]:
            self._recall(trial)
        for name in self._tally.known:
            self._starts.pop(name, None)

    def _recall_all(self, trials: Sequence[FrozenTrial]) -> None:
        """All trials of earlier sessions."""
        for trial in trials:
            self._recall(trial)
        self._forget_trainings()
        self._fruitless = self._tally.fruitless()
        for tried in {trial.user_attrs.get("architecture_id", "") for trial in trials}:
            self._starts.pop(tried, None)

    def _forget_trainings(self) -> None:
        """Remove what a kill left of trainings whose outcome is written down."""
        unfinished = {
            training_file(self._study.folder, each.network.id) for each in self._left_over
        }
        for path in self._study.checkpoints.glob("*.training.pt"):
            if path not in unfinished:
                path.unlink()

    def _recall(self, trial: FrozenTrial) -> None:
        """A trial of an earlier session, or of another study."""
        number, notes = trial.number, dict(trial.user_attrs)
        self._history.begin(number, trial.system_attrs)
        self._proposer.place(number)
        self._history.propose(number, trial.params)
        for rung in notes.get("rungs", ()):
            if self._rungs is not None and rung["epoch"] in self._rungs.epochs:
                network = notes["architecture_id"]
                self._rungs.enter(rung["epoch"], network, rung["values"], rung["goes_on"])
        excess = dict(trial.constraints)
        if not trial.state.is_finished():
            network = architectures.parse(notes["architecture"])
            self._left_over.append(_Candidate(number, network, notes, excess))
            return
        limit_ms = self._config.limits.latency_ms
        self._count(with_measured(record_of(trial), self._ledger.attributes, limit_ms), excess)

    def _prepare(self, engine: Engine) -> None:
        while not engine.has_room():
            for event in pass_on_warnings(engine.events(_REFRESH_S)):
                if event.kind == "failed":
                    raise self._unprepared(event)
                if event.kind == "progress":
                    self._display.preparing(event.text, event.fraction)
                if event.kind == "done" and event.trial is None:
                    self._prepared(event)
            if self._is_asked_to_stop():  # what is being prepared keeps checkpoints of its own
                raise KeyboardInterrupt
            self._display.tick()

    def _unprepared(self, event: Event) -> LevitSearchError:
        """Why nothing can be evaluated, or nothing any more."""
        if refusal := event.content.get("refused_by_disk"):
            return BudgetError(f"{refusal}; {GOES_ON}")
        kind = InputError if event.content.get("wrong_input") else BudgetError
        return kind(event.text)

    def _prepared(self, event: Event) -> None:
        check_devices(self._study, self._ledger.attributes, event.content)
        remember(self._ledger, event.content)

    def _loop(self, engine: Engine) -> str:
        limit_s = self._config.search.time_s
        while True:
            if self._is_asked_to_stop():
                if not self._running:
                    return _INTERRUPTED
                self._tell_of_stopping()
                for event in pass_on_warnings(engine.events(_REFRESH_S)):
                    self._handle(engine, event)
                self._display.tick()
                continue
            out_of_time = limit_s is not None and time.monotonic() - self._begun >= limit_s
            while engine.has_room() and (self._left_over or not (self._is_enough() or out_of_time)):
                if not self._start_one(engine):
                    break
            if not self._running and not self._left_over:
                if out_of_time:
                    return "the time is up"
                if self._is_enough():
                    return "the budget is used up"
                if self._is_exhausted or self._too_slow >= _TOO_SLOW:
                    return self._exhausted()
            is_waiting = self._running or not engine.has_room()
            for event in pass_on_warnings(engine.events(_REFRESH_S if is_waiting else 0)):
                self._handle(engine, event)
            self._display.tick()

    def _tell_of_stopping(self) -> None:
        count = len(self._running)
        what = "1 network goes" if count == 1 else f"{count} networks go"
        text = f"interrupted: {what} on to the next rung or the end; Ctrl-C again stops now"
        self._display.preparing(text, None)

    def _is_enough(self) -> bool:
        trials = self._config.search.trials
        begun = self._tally.spent + len(self._running) + len(self._left_over)
        return trials is not None and begun >= trials

    def _exhausted(self) -> str:
        if not self._tally.states["complete"]:
            latest = reversed(self._tally.records)
            reason = next((record.reason for record in latest if record.reason), "nothing")
            raise BudgetError(
                f"no network could be evaluated (the last: {reason}); loosen the limits"
            )
        if self._too_slow >= _TOO_SLOW:
            return f"the last {_TOO_SLOW} networks were over the limit of latency_ms"
        return "no new network within the limits was found in the space"

    def _start_one(self, engine: Engine) -> bool:
        """Adopt or propose a trial, and submit it unless its outcome is known already.

        Returns:
            False when asking on is of no use.
        """
        if self._left_over:
            left = self._left_over.pop(0)
            if "evaluation" in left.notes:  # the kill came between an evaluation and its telling
                self._tell_evaluated(left)
            else:
                self._submit(engine, left)
            return True
        if self._too_slow >= _TOO_SLOW or self._is_exhausted:
            return False
        number = self._ledger.next_number
        self._history.begin(number)
        self._proposer.place(number)
        params: Mapping[str, Any] | None
        if self._starts:
            params = self._space.encoded(self._starts.pop(next(iter(self._starts))))
        else:
            params = self._proposer.propose(number, self._fruitless)
        if params is None:
            self._is_exhausted = True
            return False
        for key, parents in self._history.parents().items():
            if key not in self._ledger.attributes:
                self._ledger.set_attribute(key, parents)
        self._history.propose(number, params)
        self._judge(engine, number, params)
        return True

    def _judge(self, engine: Engine, number: int, params: Mapping[str, Any]) -> None:
        """Turn a proposal down, tell what is known of it, or submit it."""
        try:
            network = self._space.decode(self._space.values(params))
        except InputError as error:
            reason = str(error)
            self._add(TrialState.PRUNED, number, params, {"reason": reason}, {"valid": 1.0})
            return
        found = cost(network)
        excess = {"valid": 0.0, **self._space.limits.excess(found)}
        notes = _notes(network, found)
        over = [name for name, value in excess.items() if value > 0]
        if over:
            limit = getattr(self._space.limits, over[0])
            notes["reason"] = f"{over[0]} over the limit of {limit:,.0f}"
            self._add(TrialState.PRUNED, number, params, notes, excess)
        elif network.id in self._tally.known:
            self._reuse(number, params, notes, excess, self._tally.known[network.id])
        elif len(failed := self._tally.failures.get(network.id, [])) >= _MOST_TRIES:
            notes |= {"reused_from": failed[-1], "reason": f"failed in trial {failed[-1]} already"}
            self._add(TrialState.PRUNED, number, params, notes, excess)
        elif (twin := self._twin(network)) is not None:
            notes |= {"reused_from": twin, "reason": f"trial {twin} is evaluating this network"}
            self._add(TrialState.PRUNED, number, params, notes, excess)
        else:
            self._ledger.begin(params, notes, excess, self._history.attributes(number))
            self._submit(engine, _Candidate(number, network, notes, excess))

    def _standing(self, params: Mapping[str, Any]) -> Standing:
        """What a proposal would come to."""
        try:
            network = self._space.decode(self._space.values(params))
        except InputError:
            return "infeasible"
        if any(value > 0 for value in self._space.limits.excess(cost(network)).values()):
            return "infeasible"
        if network.id in self._tally.known or self._twin(network) is not None:
            return "known"
        failed = self._tally.failures.get(network.id, ())
        return "known" if len(failed) >= _MOST_TRIES else "new"

    def _twin(self, network: Architecture) -> int | None:
        """The running trial that evaluates the same network."""
        running = [*self._running.values(), *self._left_over]
        return next((each.number for each in running if each.network.id == network.id), None)

    def _submit(self, engine: Engine, candidate: _Candidate) -> None:
        self._running[candidate.number] = candidate
        engine.submit(candidate.number, candidate.network)
        self._display.started(candidate.number, candidate.network)

    def _reuse(
        self,
        number: int,
        params: Mapping[str, Any],
        notes: dict[str, Any],
        excess: dict[str, float],
        known: Record,
    ) -> None:
        evaluation = {k: value for k, value in known.evaluation.items() if k != "verified"}
        notes |= {"reused_from": known.trial, "evaluation": {**evaluation, "seconds": 0.0}}
        if known.rungs:
            notes["rungs"] = list(known.rungs)
        if known.state == "complete":
            values = self._objective_values(notes)
            self._add(TrialState.COMPLETE, number, params, notes, excess, values)
        else:
            notes["reason"] = known.reason
            self._add(TrialState.PRUNED, number, params, notes, excess)

    def _add(
        self,
        state: TrialState,
        number: int,
        params: Mapping[str, Any],
        notes: dict[str, Any],
        excess: dict[str, float],
        values: list[float] | None = None,
    ) -> None:
        """Write a proposal that costs no evaluation."""
        kept = self._history.attributes(number)
        self._ledger.add(state, values, params, notes, excess, kept)
        self._ended(number, state, notes, excess)

    def _handle(self, engine: Engine, event: Event) -> None:
        if event.trial is None:
            if event.kind == "failed":  # a new worker could not prepare what the old one could
                raise self._unprepared(event)
            if event.kind == "progress":
                self._display.preparing(event.text, event.fraction)
            if event.kind == "done":
                self._prepared(event)
            return
        candidate = self._running.get(event.trial)
        if candidate is None:  # it stopped at a rung for Ctrl-C, and its worker died there
            return
        match event.kind:
            case "progress":
                self._display.progress(event.trial, event.text, event.fraction)
            case "rung":
                goes_on = self._at_rung(candidate, event.content["epoch"], event.content["values"])
                if goes_on and self._is_asked_to_stop():
                    del self._running[event.trial]  # goes on from its checkpoint the next time
                else:
                    engine.answer(event.trial, goes_on)
            case "done":
                candidate.notes["evaluation"] = event.content
                self._ledger.note(event.trial, "evaluation", event.content)
                self._tell_evaluated(candidate)
            case "failed":
                if refusal := event.content.get("refused_by_disk"):
                    raise BudgetError(f"{refusal}; {GOES_ON}")
                self._tell(candidate, TrialState.FAIL, reason=event.text)
                self._check_failures(event.text)

    def _check_failures(self, text: str) -> None:
        self._failures += 1
        works = self._tally.spent > self._tally.states["failed"]
        if self._failures >= (_FAILURES if works else _FAILURES_AT_START):
            raise BudgetError(
                f"{self._failures} trials in a row failed, the last with: {text}; the same command "
                "goes on"
            )

    def _at_rung(self, candidate: _Candidate, epoch: int, values: Mapping[str, float]) -> bool:
        """Whether a candidate goes on; what was decided before a kill stays."""
        assert self._rungs is not None
        passed: list[dict[str, Any]] = candidate.notes.setdefault("rungs", [])
        for rung in passed:
            if rung["epoch"] == epoch:
                return bool(rung["goes_on"])
        known = {**candidate.notes["cost"], **values}
        goes_on = self._rungs.judge(epoch, candidate.network.id, known)
        rung = {"epoch": epoch, "top1_percent": values["top1_percent"], "goes_on": goes_on}
        passed.append({**rung, "values": {name: known[name] for name in self._config.objectives}})
        self._ledger.note(candidate.number, "rungs", passed)
        self._display.at_rung(candidate.number, epoch, values["top1_percent"])
        return goes_on

    def _tell_evaluated(self, candidate: _Candidate) -> None:
        self._failures = 0
        notes = candidate.notes
        evaluation = notes["evaluation"]
        limit, latency_ms = self._space.limits.latency_ms, evaluation["values"].get("latency_ms")
        if limit is not None:
            candidate.excess["latency_ms"] = latency_ms / limit - 1
            self._ledger.constrain(candidate.number, "latency_ms", latency_ms / limit - 1)
        if limit is not None and latency_ms > limit:
            self._too_slow += 1
            reason = f"latency_ms {latency_ms:.3g} over the limit of {limit:g}"
            self._tell(candidate, TrialState.PRUNED, reason=reason)
            return
        self._too_slow = 0
        rungs = notes.get("rungs", [])
        if rungs and not rungs[-1]["goes_on"]:
            reason = f"stopped at epoch {rungs[-1]['epoch']} of {self._config.train.epochs}"
            self._tell(candidate, TrialState.PRUNED, reason=reason)
        else:
            self._tell(candidate, TrialState.COMPLETE, self._objective_values(notes))

    def _objective_values(self, notes: Mapping[str, Any]) -> list[float]:
        values = {**notes["cost"], **notes["evaluation"]["values"]}
        return [values[name] for name in self._config.objectives]

    def _tell(
        self,
        candidate: _Candidate,
        state: TrialState,
        values: list[float] | None = None,
        reason: str | None = None,
    ) -> None:
        """End a trial in the storage, then in our own books."""
        if reason is not None:
            candidate.notes["reason"] = reason
            self._ledger.note(candidate.number, "reason", reason)
        self._ledger.finish(candidate.number, state, values)
        training_file(self._study.folder, candidate.network.id).unlink(missing_ok=True)
        self._running.pop(candidate.number, None)
        self._ended(candidate.number, state, candidate.notes, candidate.excess)

    def _ended(
        self,
        number: int,
        state: TrialState,
        notes: Mapping[str, Any],
        excess: Mapping[str, float],
    ) -> None:
        now = datetime.now().isoformat(timespec="seconds")
        record = record_from_notes(number, _STATES[state], notes, now)
        record = with_measured(record, self._ledger.attributes, self._config.limits.latency_ms)
        self._count(record, excess)
        self._fruitless = 0 if is_spent(record) else self._fruitless + 1
        self._display.finished(record, self._tally, self._left_s())
        if time.monotonic() > self._tables_at:
            self._write_tables()

    def _count(self, record: Record, excess: Mapping[str, float]) -> None:
        """Enter a finished trial into all that is kept in memory."""
        self._tally.add(record)
        broken = any(value > 0 for value in excess.values())
        if broken:
            self._history.violate(record.trial, record.estimates, excess)
        elif record.state == "complete":
            if self._rungs is not None and record.architecture is not None:
                accuracy = record.values["top1_percent"]
                self._rungs.complete(record.architecture.id, accuracy)
            self._history.complete(record.trial, record.estimates, excess)
        elif record.is_stopped:
            rung = record.rungs[-1]
            self._history.stop(record.trial, rung["epoch"], rung["values"], excess)
        else:
            self._history.drop(record.trial)

    def _left_s(self) -> float | None:
        """The time that the rest of the budget will take, as far as it is known."""
        search = self._config.search
        bounds = []
        each_s = self._tally.seconds()
        if search.trials is not None and each_s is not None:
            left = search.trials - self._tally.spent
            bounds.append(left * each_s / self._config.engine.jobs)
        if search.time_s is not None:
            bounds.append(search.time_s - (time.monotonic() - self._begun))
        return max(0.0, min(bounds)) if bounds else None

    def _write_tables(self) -> None:
        """Write the tables that people look at.

        Raises:
            BudgetError: the disk refuses.
        """
        start = time.monotonic()
        records = sorted(self._tally.records, key=lambda each: each.trial)
        try:
            table.write_tables(self._study, records)
        except OSError as error:
            refusal = refused_by_disk(error) or f"{self._study.folder}: {error}"
            raise BudgetError(f"{refusal}; {GOES_ON}") from None
        took_s = time.monotonic() - start
        self._tables_at = start + max(_TABLES_EVERY_S, _TABLES_SHARE * took_s)

    def _summary(self, because: str) -> Summary:
        front = self._tally.front
        tally = self._tally
        return Summary(
            study=str(self._study.folder),
            trials={
                **{state: tally.states[state] for state in ("complete", "pruned", "failed")},
                "reused": tally.reused,
                "evaluated": tally.spent,
                "stopped": tally.stopped,
                "infeasible": tally.over,
                "taken": tally.taken,
            },
            seconds=time.monotonic() - self._begun,
            hypervolume=front_volume(front, self._study),
            front=front,
            stopped_because=because,
            is_interrupted=because == _INTERRUPTED,
        )


def _notes(network: Architecture, found: Cost) -> dict[str, Any]:
    """What is stored with every trial that is a network."""
    return {
        "architecture": network.model_dump(mode="json"),
        "architecture_id": network.id,
        "cost": found._asdict(),
    }


def _rungs(study: Study) -> Rungs | None:
    config = study.config
    epochs = config.rung_epochs
    if not epochs or config.search.reduction is None:
        return None
    return Rungs(epochs, config.search.reduction, config.objectives)
