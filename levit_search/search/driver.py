"""The ask/tell loop: proposals, limits, repeats, rungs, evaluations, and going on after a kill."""

import contextlib
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from optuna.trial import FrozenTrial

from levit_search.architecture import Architecture
from levit_search.cost import cost
from levit_search.donors import check_donor_weights
from levit_search.errors import GOES_ON, BudgetError, InputError, LevitSearchError
from levit_search.files import remove_unfinished
from levit_search.search.baselines import Baselines
from levit_search.search.books import Books, Candidate, notes_of
from levit_search.search.callbacks import Callback, CallbackList, Summary, front_volume
from levit_search.search.engine import NO_TRIAL, Engine, Event, make_engine, pass_on_warnings
from levit_search.search.memory import collected_later
from levit_search.search.preparation import (
    check_data,
    check_devices,
    costliest,
    reference_of,
    remember,
    sample_of,
    start_values,
)
from levit_search.search.samplers import Proposer, Standing
from levit_search.search.takeover import check_fits, check_source, taken_over
from levit_search.search.verification import Verification
from levit_search.significance import judged, teacher_choice
from levit_search.space import Space
from levit_search.study import Study, training_file

# So many networks in a row that turned out to be over a limit only when they were probed mean that
# the limit cannot be kept.
_TOO_SLOW = 20
# So many in a row mean that the device, the disk or the like is gone. Fewer may be bad luck of
# single candidates, at the start too, where the largest published networks are tried.
_FAILURES = 10
_MOST_TRIES = 2  # of a network that fails
_REFRESH_S = 0.25
_INTERRUPTED = "you interrupted it"

MakeEngine = Callable[[Study, Architecture, dict[str, float]], Engine]
"""As :func:`levit_search.search.engine.make_engine`."""


def search(
    study: Study,
    callbacks: Sequence[Callback] = (),
    take_from: Path | None = None,
    engine: MakeEngine | None = None,
    is_asked_to_stop: Callable[[], bool] = lambda: False,
) -> Summary:
    """Search until the study's budget is used up; goes on where an earlier session stopped.

    Args:
        study: what to search, and where to keep it.
        callbacks: each is told what happens.
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
            callback_list = CallbackList(callbacks)
            driver = _Driver(study, space, callback_list, take_from, made, is_asked_to_stop)
        try:
            return driver.run()
        finally:
            callback_list.on_search_end()


class _Driver:
    """One session of a search."""

    def __init__(
        self,
        study: Study,
        space: Space,
        callbacks: CallbackList,
        take_from: Path | None,
        engine: MakeEngine,
        is_asked_to_stop: Callable[[], bool],
    ) -> None:
        self._make_engine, self._is_asked_to_stop = engine, is_asked_to_stop
        self._study, self._space, self._callbacks = study, space, callbacks
        self._config = study.config
        self._source = check_source(take_from, study) if take_from is not None else None
        self._starts = start_values(study.config, space, str(study.folder / "study.yaml"))
        self._books = Books(study, space, callbacks)
        self._proposer = Proposer(
            self._books.sampler,
            self._config.search,
            space.distributions(),
            self._books.history,
            self._standing,
            self._books.population,
        )
        self._running: dict[int, Candidate] = {}
        self._left_over: list[Candidate] = []
        self._baselines = Baselines(study, self._books.ledger)
        self._verification = Verification(study, self._books.ledger, self._baselines)
        self._too_slow = self._failures = 0
        self._is_exhausted = self._is_prepared = False

    def run(self) -> Summary:
        trials = self._books.ledger.trials()
        # Workers take seconds to start; they may do so while trials are recalled.
        engine = self._started_engine() if self._is_surely_begun(trials) else None
        try:
            with collected_later():
                self._recall_all(trials)
            self._callbacks.on_search_start(self._books.tally)
        except BaseException:
            if engine is not None:
                engine.close()
            raise
        is_done = self._is_enough() and not self._left_over and self._source is None
        is_done = is_done and not self._baselines.left()
        if is_done and not self._verification.left(self._books.tally):
            if engine is not None:
                engine.close()
            if self._verification.left_again(self._books.tally):
                self._measure_again()
            self._books.write_tables()
            self._check_all_failed()
            return self._summary(
                _INTERRUPTED if self._is_asked_to_stop() else "the budget was used up before"
            )
        engine = engine or self._started_engine()
        try:
            self._prepare(engine)
            if self._study.config.reference is None:
                self._keep_reference(engine)
            if self._source is not None:
                self._take_over(self._source)
            because = self._loop(engine)
            self._check_all_failed()
            self._baselines.run(engine, self._callbacks, self._is_asked_to_stop)
            self._books.tally = self._verification.run(
                engine, self._books.tally, self._callbacks, self._is_asked_to_stop
            )
        except BaseException:
            engine.close()
            with contextlib.suppress(BudgetError):  # it must not take the place of what happened
                self._books.write_tables()
            raise
        engine.close()
        self._books.write_tables()
        return self._summary(_INTERRUPTED if self._is_asked_to_stop() else because)

    def _measure_again(self) -> None:
        """Measure again what is on the front of a search that has ended; where nothing can be
        measured any more, such as on another device, it stays as it is, with a warning."""
        with contextlib.ExitStack() as stack:
            try:
                engine = stack.enter_context(contextlib.closing(self._started_engine()))
                self._prepare(engine)
            except LevitSearchError as error:
                warnings.warn(f"the front is not measured again: {error}", stacklevel=2)
                return
            self._books.tally = self._verification.run(
                engine, self._books.tally, self._callbacks, self._is_asked_to_stop
            )

    def _is_surely_begun(self, trials: Sequence[FrozenTrial]) -> bool:
        """Whether something is left to evaluate, as far as that can be told at a glance."""
        notes = [trial.user_attrs for trial in trials]
        evaluated = sum("evaluation" in each and "reused_from" not in each for each in notes)
        return self._config.search.trials is None or evaluated < self._config.search.trials

    def _started_engine(self) -> Engine:
        settled_ms = self._books.attributes.get("settled_ms", {})
        if not settled_ms and self._source is not None:
            settled_ms = self._source.attributes().get("settled_ms", {})
        return self._make_engine(self._study, sample_of(self._space), settled_ms)

    def _take_over(self, source: Study) -> None:
        ledger = self._books.ledger
        known = len(ledger.trials())
        taken_over(source, self._study, self._space, ledger)
        for trial in ledger.trials()[known:]:
            self._recall(trial)
        for name in self._books.tally.known:
            self._starts.pop(name, None)

    def _recall_all(self, trials: Sequence[FrozenTrial]) -> None:
        """All trials of earlier sessions."""
        for trial in trials:
            self._recall(trial)
        self._forget_trainings()
        self._books.fruitless = self._books.tally.fruitless()
        for tried in {trial.user_attrs.get("architecture_id", "") for trial in trials}:
            self._starts.pop(tried, None)

    def _forget_trainings(self) -> None:
        """Remove what a kill left of trainings whose outcome is written down."""
        unfinished = {
            training_file(self._study.folder, name)
            for name in (
                *(each.network.id for each in self._left_over),
                *(each.id for each in self._baselines.left()),
            )
        }
        for path in self._study.checkpoints.glob("*.training.pt"):
            if path not in unfinished:
                path.unlink()

    def _recall(self, trial: FrozenTrial) -> None:
        """A trial of an earlier session, or of another study."""
        self._books.history.begin(trial.number, trial.system_attrs)
        self._proposer.place(trial.number)
        left_over = self._books.recall(trial)
        if left_over is not None:
            self._left_over.append(left_over)

    def _prepare(self, engine: Engine) -> None:
        while not (self._is_prepared and engine.has_room()):
            self._handle_all(engine, _REFRESH_S)
            if self._is_asked_to_stop():  # what is being prepared keeps checkpoints of its own
                raise KeyboardInterrupt

    def _keep_reference(self, engine: Engine) -> None:
        """Find what hypervolumes are measured from, and keep it with the study."""
        measured = self._costliest_figures(engine) if self._config.referred else {}
        data = self._books.attributes.get("data") or {}
        found = reference_of(self._config, self._space, data, measured)
        self._books.ledger.keep_reference(found)

    def _costliest_figures(self, engine: Engine) -> dict[str, float]:
        """What the configuration has ``referred``, measured of the costliest network that runs.

        Raises:
            BudgetError: none of them does.
        """
        for network in costliest(self._space):
            self._prepare(engine)  # a worker that the one before has killed starts anew
            self._callbacks.on_progress("measuring the costliest network of the space", None)
            engine.remeasure(NO_TRIAL, [network])
            told = self._answer(engine)
            if told.kind == "done":
                values = told.content["results"][0]["values"]
                return {name: values[name] for name in self._config.referred}
            warnings.warn(
                f"{network.summary()}, of the costliest, cannot be measured: {told.text}",
                stacklevel=2,
            )
        raise BudgetError(f"no network of the space can be measured, the last: {told.text}")

    def _answer(self, engine: Engine) -> Event:
        """What comes of what was measured for no trial."""
        answers: list[Event] = []
        while not answers:
            for event in pass_on_warnings(engine.events(_REFRESH_S)):
                self._handle(engine, event)
                if event.trial == NO_TRIAL and event.kind in ("done", "failed"):
                    answers.append(event)
            self._callbacks.on_loop_end()
            if self._is_asked_to_stop():
                raise KeyboardInterrupt
        if refusal := answers[0].content.get("refused_by_disk"):
            raise BudgetError(f"{refusal}; {GOES_ON}")
        return answers[0]

    def _unprepared(self, event: Event) -> LevitSearchError:
        """Why nothing can be evaluated, or nothing any more."""
        if refusal := event.content.get("refused_by_disk"):
            return BudgetError(f"{refusal}; {GOES_ON}")
        kind = InputError if event.content.get("wrong_input") else BudgetError
        return kind(event.text)

    def _prepared(self, event: Event) -> None:
        check_devices(self._study, self._books.attributes, event.content)
        check_data(self._study, self._books.attributes, event.content)
        if self._source is not None:
            check_fits(self._source, self._study, event.content)
        remember(self._books.ledger, event.content)
        self._is_prepared = True

    def _loop(self, engine: Engine) -> str:
        """Begin and handle evaluations until there are no more; returns why there are none."""
        while True:
            if self._is_asked_to_stop():
                if not self._running:
                    return _INTERRUPTED
                self._tell_of_stopping()
            elif because := self._filled(engine):
                return because
            is_waiting = self._running or not engine.has_room()
            self._handle_all(engine, _REFRESH_S if is_waiting else 0)

    def _filled(self, engine: Engine) -> str | None:
        """Begin as many evaluations as there is room for.

        Returns:
            Why there will be none any more, once nothing runs.
        """
        limit_s = self._config.search.time_s
        out_of_time = limit_s is not None and self._books.seconds >= limit_s - self._reserve_s
        while engine.has_room() and (self._left_over or not (self._is_enough() or out_of_time)):
            if not self._start_one(engine):
                break
        if self._running or self._left_over:
            return None
        if out_of_time:
            return "the time is up"
        if self._is_enough():
            return "the budget is used up"
        if self._is_exhausted or self._too_slow >= _TOO_SLOW:
            return self._exhausted()
        return None

    @property
    def _reserve_s(self) -> float:
        """So long before the time is up nothing is begun: a network that was planned would not be
        half trained by then, and the baselines take their time, too."""
        plan, limit_s = self._config.plan, self._config.search.time_s
        reserved_s = self._baselines.reserved_s(self._books.tally)
        if plan is None or limit_s is None:
            return reserved_s
        return min(plan.network_s / 2 + reserved_s, limit_s / 2)

    def _handle_all(self, engine: Engine, wait_s: float) -> None:
        for event in pass_on_warnings(engine.events(wait_s)):
            self._handle(engine, event)
        self._callbacks.on_loop_end()

    def _tell_of_stopping(self) -> None:
        count = len(self._running)
        what = "1 network goes" if count == 1 else f"{count} networks go"
        text = f"interrupted: {what} on to the next rung or the end; Ctrl-C again stops now"
        self._callbacks.on_progress(text, None)

    def _is_enough(self) -> bool:
        trials = self._config.search.trials
        begun = self._books.tally.spent + len(self._running) + len(self._left_over)
        return trials is not None and begun >= trials

    def _exhausted(self) -> str:
        if not self._books.tally.states["complete"]:
            latest = reversed(self._books.tally.records)
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
                self._end(left)
            else:
                self._submit(engine, left)
            return True
        if self._too_slow >= _TOO_SLOW or self._is_exhausted:
            return False
        number = self._books.begin()
        self._proposer.place(number)
        params: Mapping[str, Any] | None
        if self._starts:
            params = self._space.encoded(self._starts.pop(next(iter(self._starts))))
        else:
            params = self._proposer.propose(number, self._books.fruitless)
        if params is None:
            self._is_exhausted = True
            return False
        self._books.propose(number, params)
        self._judge(engine, number, params)
        return True

    def _judge(self, engine: Engine, number: int, params: Mapping[str, Any]) -> None:
        """Turn a proposal down, tell what is known of it, or submit it."""
        try:
            network = self._space.decode(self._space.values(params))
        except InputError as error:
            self._books.turn_down(number, params, {"reason": str(error)}, {"valid": 1.0})
            return
        found = cost(network)
        excess = {"valid": 0.0, **self._space.limits.excess(found)}
        notes = notes_of(network, found)
        over = [name for name, value in excess.items() if value > 0]
        if over:
            limit = getattr(self._space.limits, over[0])
            notes["reason"] = f"{over[0]} over the limit of {limit:,.0f}"
            self._books.turn_down(number, params, notes, excess)
        elif network.id in self._books.tally.known:
            self._books.reuse(number, params, notes, excess, self._books.tally.known[network.id])
        elif len(failed := self._books.tally.failures.get(network.id, [])) >= _MOST_TRIES:
            notes |= {"reused_from": failed[-1], "reason": f"failed in trial {failed[-1]} already"}
            self._books.turn_down(number, params, notes, excess)
        elif (twin := self._twin(network)) is not None:
            notes |= {"reused_from": twin, "reason": f"trial {twin} is evaluating this network"}
            self._books.turn_down(number, params, notes, excess)
        else:
            if not self._teaches():
                notes["taught"] = False
            candidate = Candidate(number, network, notes, excess)
            self._books.submit(candidate, params)
            self._submit(engine, candidate)

    def _standing(self, params: Mapping[str, Any]) -> Standing:
        """What a proposal would come to."""
        try:
            network = self._space.decode(self._space.values(params))
        except InputError:
            return "infeasible"
        if any(value > 0 for value in self._space.limits.excess(cost(network)).values()):
            return "infeasible"
        if network.id in self._books.tally.known or self._twin(network) is not None:
            return "known"
        failed = self._books.tally.failures.get(network.id, ())
        return "known" if len(failed) >= _MOST_TRIES else "new"

    def _twin(self, network: Architecture) -> int | None:
        """The running trial that evaluates the same network."""
        running = [*self._running.values(), *self._left_over]
        return next((each.number for each in running if each.network.id == network.id), None)

    def _teaches(self) -> bool:
        """Whether a network that begins now learns from the teacher, where there is one; decided
        once, after the first networks."""
        teaching = self._config.teaching
        if teaching is None or not teaching.auto:
            return True
        choice = self._books.attributes.get("teacher_choice")
        if choice is None:
            choice = teacher_choice(self._books.tally.records, self._books.attributes)
            if choice is None:
                return False
            self._books.ledger.set_attribute("teacher_choice", choice)
            self._callbacks.on_progress(choice["text"], None)
        return bool(choice["kept"])

    def _submit(self, engine: Engine, candidate: Candidate) -> None:
        self._running[candidate.number] = candidate
        taught = candidate.notes.get("taught", True)
        engine.submit(candidate.number, candidate.network, taught)
        self._callbacks.on_trial_start(candidate.number, candidate.network)

    def _handle(self, engine: Engine, event: Event) -> None:
        if event.trial is None:
            if event.kind == "failed":  # a new worker could not prepare what the old one could
                raise self._unprepared(event)
            if event.kind == "progress":
                self._callbacks.on_progress(event.text, event.fraction)
            if event.kind == "done":
                self._prepared(event)
            return
        candidate = self._running.get(event.trial)
        if candidate is None:  # it stopped at a rung for Ctrl-C, and its worker died there
            return
        match event.kind:
            case "progress":
                self._callbacks.on_trial_progress(event.trial, event.text, event.fraction)
            case "rung":
                epoch, values = event.content["epoch"], event.content["values"]
                goes_on = self._books.at_rung(candidate, epoch, values)
                if goes_on and self._is_asked_to_stop():
                    del self._running[event.trial]  # goes on from its checkpoint the next time
                else:
                    engine.answer(event.trial, goes_on)
            case "done":
                self._books.note_evaluation(candidate, event.content)
                self._end(candidate)
            case "failed":
                if refusal := event.content.get("refused_by_disk"):
                    raise BudgetError(f"{refusal}; {GOES_ON}")
                self._books.fail(candidate, event.text)
                del self._running[event.trial]
                self._check_failures(event.text)

    def _check_failures(self, text: str) -> None:
        self._failures += 1
        if self._failures >= _FAILURES:
            raise BudgetError(
                f"{self._failures} trials in a row failed, the last with: {text}; the same command "
                "goes on"
            )

    def _check_all_failed(self) -> None:
        """Make sure that something came of a search that is at its end.

        Raises:
            BudgetError: every network failed.
        """
        tally = self._books.tally
        if tally.spent and tally.spent == tally.states["failed"] and not self._is_asked_to_stop():
            failed = [record.reason for record in tally.records if record.state == "failed"]
            count = "the only network" if tally.spent == 1 else f"all {tally.spent} networks"
            raise BudgetError(f"{count} failed, the last with: {failed[-1]}")

    def _end(self, candidate: Candidate) -> None:
        """A candidate's evaluation is noted."""
        self._failures = 0
        is_too_slow = self._books.verdict(candidate) == "too slow"
        self._too_slow = self._too_slow + 1 if is_too_slow else 0
        self._books.end(candidate)
        self._running.pop(candidate.number, None)

    def _summary(self, because: str) -> Summary:
        tally = self._books.tally
        front = tally.front
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
            seconds=self._books.seconds,
            hypervolume=front_volume(front, self._study),
            front=front,
            stopped_because=because,
            is_interrupted=because == _INTERRUPTED,
            verdict=judged(tally.records, self._books.attributes, self._config),
            teacher_choice=self._books.attributes.get("teacher_choice"),
            baselines=self._baselines.records(),
        )
