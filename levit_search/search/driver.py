"""A search from its first trial to its end: Optuna proposes, an engine evaluates, the study keeps.

Each proposal is decoded, judged (:meth:`_Driver._judge`) and, unless its outcome is known already,
submitted; multi-objective ASHA says at rungs whether it goes on. A search that goes on after a kill
takes up its trials first, then does what an undisturbed one would have done.
"""

import contextlib
import time
import warnings
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from optuna.trial import FrozenTrial, TrialState

from levit_search import architecture as architectures
from levit_search.architecture import Architecture
from levit_search.cost import cost
from levit_search.engine import make_engine
from levit_search.engine.interface import Engine, Event, Settled, settled_in
from levit_search.errors import BudgetError, InputError, LevitSearchError
from levit_search.files import remove_unfinished
from levit_search.pretrained import check_donor_weights
from levit_search.search.callbacks import Callback, CallbackList, Summary, front_volume
from levit_search.search.final_evaluation import Comparisons, FinalEvaluation
from levit_search.search.freeze_thaw import (
    SETTLED_ACTS,
    SETTLED_PERCENT,
    Candidate,
    FreezeThaw,
    has_settled,
)
from levit_search.search.loop import Loop
from levit_search.search.moasha import MultiObjectiveASHA
from levit_search.search.sampling import Proposal, Sampler, chosen, population_of
from levit_search.search.setup import costliest_figures, reference_of, sample_of, start_values
from levit_search.search.trials import TrialStore
from levit_search.search.warm_start import (
    check_prepared,
    check_source,
    earlier_accuracies,
    taken_over,
)
from levit_search.significance import judged, teacher_choice
from levit_search.space import Space
from levit_search.study import Record, State, Study, record_from_notes, record_of, training_file
from levit_search.study.stored_trials import without_garbage_collection

# So many networks in a row that turned out to be over a limit only when they were probed mean that
# the limit cannot be kept.
_TOO_SLOW = 20
# So many in a row mean that the device, the disk or the like is gone. Fewer may be bad luck of
# single candidates, at the start too, where the largest published networks are tried.
_FAILURES = 10
_MOST_TRIES = 2  # of a network that fails
_INTERRUPTED = "you interrupted it"
_TOO_SLOW_TEXT = f"the last {_TOO_SLOW} networks were over the limit of latency_ms"
_SETTLED_TEXT = (
    f"of the last {SETTLED_ACTS} trainings none was expected to add more than "
    f"{SETTLED_PERCENT:g} % to the hypervolume"
)
_NOTHING_NEW = "no new network within the limits was found in the space"

_STATES: dict[TrialState, State] = {
    TrialState.COMPLETE: "complete",
    TrialState.PRUNED: "pruned",
    TrialState.FAIL: "failed",
}

MakeEngine = Callable[[Study, Architecture, Settled], Engine]
"""As :func:`levit_search.engine.make_engine`."""


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
        callback_list = CallbackList(callbacks)
        driver = _Driver(study, space, callback_list, take_from, made, is_asked_to_stop)
        try:
            return driver.run()
        finally:
            callback_list.on_search_end()


@dataclass
class _Trial:
    """A trial on its way from its proposal to its end."""

    number: int
    params: Mapping[str, Any]
    notes: dict[str, Any]  # which are stored with it
    excess: dict[str, float]  # by limit, how far above it, as a share
    network: Architecture | None = None  # where the proposal is no valid network


class _Driver:
    """One session of a search; its candidates are :class:`levit_search.search.loop.Work`."""

    def __init__(
        self,
        study: Study,
        space: Space,
        callbacks: CallbackList,
        take_from: Path | None,
        make_engine: MakeEngine,
        is_asked_to_stop: Callable[[], bool],
    ) -> None:
        self._make_engine, self._is_asked_to_stop = make_engine, is_asked_to_stop
        self._study, self._space, self._callbacks = study, space, callbacks
        self._config = study.config
        self._source = check_source(take_from, study) if take_from is not None else None
        self._starts = start_values(study.config, space, str(study.folder / "study.yaml"))
        self._store = TrialStore(study, space.distributions())
        search, attributes = self._config.search, self._store.attributes
        if "sampler" not in attributes:  # it stays when the budget is extended later
            self._store.set_attribute("population", population_of(search))
            self._store.set_attribute("sampler", chosen(self._config))
        epochs = self._config.rung_epochs if search.reduction is not None else ()
        self._asha: MultiObjectiveASHA | None = None
        self._freeze_thaw: FreezeThaw | None = None
        if attributes["sampler"] == "freeze-thaw":
            self._asha = self._freeze_thaw = FreezeThaw(
                epochs,
                search.reduction or 1.0,
                self._config.objectives,
                self._config.candidate_recipe.epochs,
                space.distributions(),
                search.trials,
                search.startup_trials,
                study.reference,
                space.limits.latency_ms,
                self._earlier(),
            )
        elif epochs and search.reduction is not None:
            self._asha = MultiObjectiveASHA(epochs, search.reduction, self._config.objectives)
        limits = space.limits.model_dump()
        self._sampler = Sampler(
            attributes["sampler"],
            search,
            space.distributions(),
            self._config.objectives,
            ["valid", *(name for name, bound in limits.items() if bound is not None)],
            self._look,
            attributes["population"],
            self._asha,
        )
        self._sampler.restore_parents(attributes)
        self._comparisons = Comparisons(study, self._store, callbacks)
        self._final = FinalEvaluation(study, self._store, self._comparisons, callbacks)
        self.running: dict[int, _Trial] = {}
        self._left_over: list[_Trial] = []
        self._too_slow = self._failures = 0  # of the latest, how many in a row
        self._outlooks: deque[float] = deque(maxlen=SETTLED_ACTS)
        self._is_exhausted = False
        self._because = _INTERRUPTED
        self._begun = time.monotonic()

    def _earlier(self) -> list[tuple[dict[str, Any], float]]:
        """What another study tells of networks; kept with this one, as it was at the beginning."""
        if self._config.search.learn_from is None:
            return []
        if "earlier" not in self._store.attributes:
            found = earlier_accuracies(self._config, self._space)
            self._store.set_attribute("earlier", found)
        return [(params, percent) for params, percent in self._store.attributes["earlier"]]

    @property
    def seconds(self) -> float:
        """How long this session lasts."""
        return time.monotonic() - self._begun

    def run(self) -> Summary:
        with contextlib.ExitStack() as stack:
            trials, budget = self._store.trials(), self._config.search.trials
            notes = [trial.user_attrs for trial in trials]
            repeats = {"reused_from", "resumes"}
            evaluated = sum("evaluation" in each and repeats.isdisjoint(each) for each in notes)
            # Workers take seconds to start; they may do so while trials are recalled.
            is_begun = budget is None or evaluated < budget
            loop = self._started(stack) if is_begun else None
            with without_garbage_collection():
                for trial in trials:
                    self._recall(trial)
            self._forget_trainings()
            self._callbacks.on_search_start(self._store.status)
            is_left = self._left_over or self._source is not None or not self._is_enough()
            if is_left or self._comparisons.left() or self._final.left():
                self._carry_out(loop or self._started(stack))
            else:
                stack.close()
                self._because = "the budget was used up before"
                self._check_all_failed()
                if self._final.left_again():
                    self._measure_again()
        self._store.write_tables()
        return self._summary()

    def _started(self, stack: contextlib.ExitStack) -> Loop:
        """A loop with an engine, which is closed with ``stack``."""
        settled = settled_in(self._store.attributes)
        if not any(settled.values()) and self._source is not None:
            settled = settled_in(self._source.attributes())
        engine = self._make_engine(self._study, sample_of(self._space), settled)
        stack.callback(engine.close)
        return Loop(engine, self._callbacks, self._is_asked_to_stop, self._prepared)

    def _prepared(self, found: Mapping[str, Any]) -> None:
        """What evaluations need is there; it is kept with the study if it fits."""
        check_prepared(self._study, self._study, self._store.attributes, found)
        if self._source is not None:
            check_prepared(self._study, self._source, self._source.attributes(), found)
        for key, each in found.items():  # see levit_search.search.evaluate.Prepared
            if each:
                self._store.set_attribute(key, each)

    def _carry_out(self, loop: Loop) -> None:
        """All that is left to do, from the preparation to the last look at the front."""
        try:
            loop.prepare()
            if self._config.reference is None:
                data = self._store.attributes.get("data") or {}
                measured = costliest_figures(self._config, self._space, loop)
                found = reference_of(self._config, self._space, data, measured)
                self._store.keep_reference(found)
            if self._source is not None:
                known = self._store.next_number
                taken_over(self._source, self._study, self._space, self._store)
                for trial in self._store.trials()[known:]:
                    self._recall(trial)
            loop.run(self)
            self._check_all_failed()
            self._comparisons.run(loop)
            self._final.run(loop)
        except BaseException:
            with contextlib.suppress(BudgetError):  # it must not take the place of what happened
                self._store.write_tables()
            raise

    def _measure_again(self) -> None:
        """Measure again what is on the front of a search that has ended; where nothing can be
        measured any more, such as on another device, it stays as it is, with a warning."""
        with contextlib.ExitStack() as engine:
            try:
                loop = self._started(engine)
                loop.prepare()
            except LevitSearchError as error:
                warnings.warn(f"the front is not measured again: {error}", stacklevel=2)
                return
            self._final.run(loop)

    def _recall(self, trial: FrozenTrial) -> None:
        """Take up a trial of an earlier session, or of another study."""
        number, notes, excess = trial.number, dict(trial.user_attrs), dict(trial.constraints)
        self._starts.pop(notes.get("architecture_id", ""), None)
        if "outlook_percent" in notes:
            self._outlooks.append(notes["outlook_percent"])
        self._sampler.begin(number, trial.system_attrs)
        self._sampler.set_params(number, trial.params)
        is_own = not trial.state.is_finished() or "evaluation" in notes
        if self._freeze_thaw is not None and is_own and "reused_from" not in notes:
            network = architectures.parse(notes["architecture"])
            candidate = self._candidate(network, notes["cost"])
            is_taken = notes.get("taken_from") is not None
            self._freeze_thaw.begin(candidate, notes.get("resumed_at", 0), is_taken)
        for rung in notes.get("rungs", ()):
            if self._asha is not None and rung["epoch"] in self._asha.epochs:
                network = notes["architecture_id"]
                self._asha.enter(rung["epoch"], network, rung["values"], rung["goes_on"])
        if trial.state.is_finished():
            self._learn(self._store.count(record_of(trial)), excess)
        else:
            network = architectures.parse(notes["architecture"])
            self._left_over.append(_Trial(number, trial.params, notes, excess, network))

    def _forget_trainings(self) -> None:
        """Remove what a kill left of trainings whose outcome is written down."""
        left = [each.notes["architecture_id"] for each in self._left_over]
        left += [each.id for each in self._comparisons.left()]
        left += self._freeze_thaw.paused() if self._freeze_thaw is not None else ()
        unfinished = {training_file(self._study.folder, name) for name in left}
        for path in self._study.checkpoints.glob("*.training.pt"):
            if path not in unfinished:
                path.unlink()

    def start_next(self, engine: Engine) -> bool:
        """Adopt or propose a trial, and submit it unless its outcome is known already."""
        if self._left_over:
            left = self._left_over.pop(0)
            if "evaluation" in left.notes:  # the kill came between an evaluation and its telling
                self._end(left)
            else:
                self._submit(engine, left)
            return True
        if self._reason_to_end() is not None:
            return False
        number = self._store.next_number
        self._sampler.begin(number)
        params: Mapping[str, Any] | None
        if self._starts:
            params = self._space.encoded(self._starts.pop(next(iter(self._starts))))
        else:
            params = self._sampler.suggest(number, self._store.status.consecutive_rejections)
        if params is None:  # what runs may be paused, and go on
            self._is_exhausted = self._freeze_thaw is None or not self.running
            return False
        for generation, parents in self._sampler.parents().items():
            if generation not in self._store.attributes:
                self._store.set_attribute(generation, parents)
        self._sampler.set_params(number, params)
        self._judge(engine, _Trial(number, params, {}, {"valid": 0.0}))
        return True

    def is_done(self) -> bool:
        because = None if self._left_over else self._reason_to_end()
        status = self._store.status
        if because in (_TOO_SLOW_TEXT, _NOTHING_NEW) and not status.counts["complete"]:
            latest = reversed(status.records)
            reason = next((record.reason for record in latest if record.reason), "nothing")
            raise BudgetError(
                f"no network could be evaluated (the last: {reason}); loosen the limits"
            )
        self._because = because or _INTERRUPTED
        return because is not None

    def _reason_to_end(self) -> str | None:
        """Why nothing more is proposed, if that is so.

        Nothing is begun some time before the time is up: a network that was planned would not be
        half trained by then, and the baselines take their time, too.
        """
        plan, limit_s = self._config.plan, self._config.search.time_s
        if limit_s is not None:
            reserved_s = self._comparisons.reserved_s(self._store.status.front)
            if plan is not None:
                reserved_s = min(plan.network_s / 2 + reserved_s, limit_s / 2)
            if self.seconds >= limit_s - reserved_s:
                return "the time is up"
        if self._is_enough():
            return "the budget is used up"
        if self._config.search.until == "converged" and has_settled(self._outlooks):
            return _SETTLED_TEXT
        if self._too_slow >= _TOO_SLOW:
            return _TOO_SLOW_TEXT
        return _NOTHING_NEW if self._is_exhausted else None

    def _is_enough(self) -> bool:
        trials, evaluated = self._config.search.trials, self._store.status.counts["evaluated"]
        if self._freeze_thaw is not None and self._freeze_thaw.can_go_on():
            return False
        unfinished = [*self.running.values(), *self._left_over]
        begun = evaluated + sum("resumes" not in each.notes for each in unfinished)
        return trials is not None and begun >= trials

    def _judge(self, engine: Engine, trial: _Trial) -> None:
        """Reject a proposal, tell what is known of it, or submit it."""
        try:
            network = self._space.decode(self._space.values(trial.params))
        except InputError as error:
            trial.excess["valid"] = 1.0
            self._add(trial, TrialState.PRUNED, str(error))
            return
        found, trial.network = cost(network), network
        trial.excess |= self._space.limits.excess(found)
        trial.notes |= {
            "architecture": network.model_dump(mode="json"),
            "architecture_id": network.id,
            "cost": found._asdict(),
        }
        over = [name for name, value in trial.excess.items() if value > 0]
        if over:
            limit = getattr(self._space.limits, over[0])
            self._add(trial, TrialState.PRUNED, f"{over[0]} over the limit of {limit:,.0f}")
        elif self._freeze_thaw is not None and network.id in self._freeze_thaw.paused():
            known = self._store.status.known[network.id]
            trial.notes |= {
                "resumes": known.trial,
                "resumed_at": self._freeze_thaw.paused()[network.id],
                "rungs": [{**rung, "goes_on": True} for rung in known.rungs],
            }
            if not known.taught:
                trial.notes["taught"] = False
            self._begin(engine, trial)
        elif network.id in self._store.status.known:
            self._reuse(trial, self._store.status.known[network.id])
        elif (hopeless := self._hopeless(network)) is not None:
            trial.notes["reused_from"], reason = hopeless
            self._add(trial, TrialState.PRUNED, reason)
        else:
            if not self._is_taught():
                trial.notes["taught"] = False
            self._begin(engine, trial)

    def _begin(self, engine: Engine, trial: _Trial) -> None:
        """Write and submit a trial."""
        assert trial.network is not None
        if self._freeze_thaw is not None:
            candidate = self._candidate(trial.network, trial.notes["cost"])
            self._freeze_thaw.begin(candidate, trial.notes.get("resumed_at", 0))
            if self._freeze_thaw.outlook_percent is not None:
                trial.notes["outlook_percent"] = self._freeze_thaw.outlook_percent
                self._outlooks.append(trial.notes["outlook_percent"])
        kept = self._sampler.attributes(trial.number)
        running = TrialState.RUNNING
        self._store.add(running, None, trial.params, trial.notes, trial.excess, kept)
        self._submit(engine, trial)

    def _look(self, params: Mapping[str, Any]) -> Proposal:
        """What :meth:`_judge` would find."""
        try:
            network = self._space.decode(self._space.values(params))
        except InputError:
            return Proposal("infeasible")
        found = cost(network)
        if not self._space.limits.keeps(found):
            return Proposal("infeasible")
        is_known = network.id in self._store.status.known or self._hopeless(network) is not None
        candidate = None
        if self._freeze_thaw is not None:
            candidate = self._candidate(network, found._asdict())
        return Proposal("known" if is_known else "new", candidate)

    def _candidate(self, network: Architecture, found: Mapping[str, float]) -> Candidate:
        """A network of the space as a model of it knows it; ``found`` are its costs."""
        values = self._space.encode(network)
        assert values is not None, "a trial is of the space"
        return Candidate(network.id, self._space.encoded(values), found)

    def _hopeless(self, network: Architecture) -> tuple[int, str] | None:
        """The trial because of which a network is not evaluated now, and the reason."""
        failed = self._store.status.failures.get(network.id, [])
        if len(failed) >= _MOST_TRIES:
            return failed[-1], f"failed in trial {failed[-1]} already"
        for each in (*self.running.values(), *self._left_over):
            if each.notes["architecture_id"] == network.id:
                return each.number, f"trial {each.number} is evaluating this network"
        return None

    def _reuse(self, trial: _Trial, known: Record) -> None:
        """Write a proposal whose network was evaluated in another trial."""
        evaluation = {**known.own_evaluation, "seconds": 0.0}
        trial.notes |= {"reused_from": known.trial, "evaluation": evaluation}
        if known.rungs:
            trial.notes["rungs"] = list(known.rungs)
        if not known.taught:
            trial.notes["taught"] = False
        is_complete = known.state == "complete"
        self._add(trial, TrialState.COMPLETE if is_complete else TrialState.PRUNED, known.reason)

    def _add(self, trial: _Trial, state: TrialState, reason: str | None) -> None:
        """Write a trial that costs no evaluation, with the ``reason`` unless it is complete."""
        if state == TrialState.PRUNED:
            trial.notes["reason"] = reason
        kept, values = self._sampler.attributes(trial.number), self._objective_values(trial, state)
        self._store.add(state, values, trial.params, trial.notes, trial.excess, kept)
        self._ended(trial, state)

    def _is_taught(self) -> bool:
        """Whether a network that begins now learns from the teacher, where there is one; decided
        once, after the first networks."""
        teaching = self._config.teaching
        if teaching is None or not teaching.auto:
            return True
        choice = self._store.attributes.get("teacher_choice")
        if choice is None:
            choice = teacher_choice(self._store.status.records, self._store.attributes)
            if choice is None:
                return False
            self._store.set_attribute("teacher_choice", choice)
            self._callbacks.on_progress(choice["text"], None)
        return bool(choice["kept"])

    def _submit(self, engine: Engine, trial: _Trial) -> None:
        assert trial.network is not None
        self.running[trial.number] = trial
        engine.submit(trial.number, trial.network, trial.notes.get("taught", True))
        self._callbacks.on_trial_start(trial.number, trial.network)

    def at_rung(self, number: int, epoch: int, values: Mapping[str, float]) -> bool:
        """Whether a candidate goes on; what was decided before a kill stays."""
        assert self._asha is not None
        notes = self.running[number].notes
        passed: list[dict[str, Any]] = notes.setdefault("rungs", [])
        for rung in passed:
            if rung["epoch"] == epoch:
                return bool(rung["goes_on"])
        known = {**notes["cost"], **values}
        goes_on = self._asha.judge(epoch, notes["architecture_id"], known)
        rung = {"epoch": epoch, "top1_percent": values["top1_percent"], "goes_on": goes_on}
        passed.append({**rung, "values": {name: known[name] for name in self._config.objectives}})
        self._store.note(number, "rungs", passed)
        self._callbacks.on_trial_result(number, epoch, values["top1_percent"])
        return goes_on

    def done(self, number: int, content: Mapping[str, Any]) -> None:
        trial = self.running.pop(number)
        trial.notes["evaluation"] = content
        self._store.note(number, "evaluation", content)
        self._end(trial)

    def failed(self, number: int, event: Event) -> None:
        self._finish(self.running.pop(number), TrialState.FAIL, event.text)
        self._failures += 1
        if self._failures >= _FAILURES:
            raise BudgetError(
                f"{self._failures} trials in a row failed, the last with: {event.text}; the same "
                "command goes on"
            )

    def _end(self, trial: _Trial) -> None:
        """End a trial whose evaluation is noted."""
        self._failures = 0
        limit_ms, rungs = self._space.limits.latency_ms, trial.notes.get("rungs")
        latency_ms = trial.notes["evaluation"]["values"].get("latency_ms")
        is_too_slow = limit_ms is not None and latency_ms > limit_ms
        self._too_slow = self._too_slow + 1 if is_too_slow else 0
        if limit_ms is not None:
            trial.excess["latency_ms"] = latency_ms / limit_ms - 1
            self._store.constrain(trial.number, "latency_ms", latency_ms / limit_ms - 1)
        reason = None
        if is_too_slow:
            reason = f"latency_ms {latency_ms:.3g} over the limit of {limit_ms:g}"
        elif rungs and not rungs[-1]["goes_on"]:
            epochs = self._config.candidate_recipe.epochs
            ended = "stopped" if self._freeze_thaw is None else "paused"
            reason = f"{ended} at epoch {rungs[-1]['epoch']} of {epochs}"
        self._finish(trial, TrialState.COMPLETE if reason is None else TrialState.PRUNED, reason)

    def _finish(self, trial: _Trial, state: TrialState, reason: str | None) -> None:
        """End a trial that was evaluated, in the storage, then in memory."""
        if reason is not None:
            trial.notes["reason"] = reason
            self._store.note(trial.number, "reason", reason)
        self._store.finish(trial.number, state, self._objective_values(trial, state))
        self._ended(trial, state)
        name = trial.notes["architecture_id"]
        superfluous = [name]
        if self._freeze_thaw is not None and name in self._freeze_thaw.paused():
            superfluous = self._freeze_thaw.superfluous()
        for each in superfluous:
            training_file(self._study.folder, each).unlink(missing_ok=True)

    def _objective_values(self, trial: _Trial, state: TrialState) -> list[float] | None:
        """What the storage has of a trial that is complete."""
        if state != TrialState.COMPLETE:
            return None
        values = {**trial.notes["cost"], **trial.notes["evaluation"]["values"]}
        return [values[name] for name in self._config.objectives]

    def _ended(self, trial: _Trial, state: TrialState) -> None:
        """A trial has ended in the storage."""
        now = datetime.now().isoformat(timespec="seconds")
        told = record_from_notes(trial.number, _STATES[state], trial.notes, now)
        record = self._store.count(told)
        self._learn(record, trial.excess)
        self._callbacks.on_trial_complete(record, self._store.status, self._left_s())
        self._store.write_tables(now_and_then=True)

    def _learn(self, record: Record, excess: Mapping[str, float]) -> None:
        """Tell ASHA and the sampler of a trial that has ended."""
        is_over = any(value > 0 for value in excess.values())
        name = record.architecture.id if record.architecture is not None else ""
        if record.is_stopped and not is_over:
            rung = record.rungs[-1]
            self._sampler.tell(record.trial, rung["values"], excess, rung["epoch"])
            if self._freeze_thaw is not None and record.reused_from is None:
                self._freeze_thaw.pause(name, training_file(self._study.folder, name).exists())
            return
        is_whole = record.state == "complete" and not is_over
        if is_whole and self._freeze_thaw is not None:
            self._freeze_thaw.finish(name, record.estimates)
        elif is_whole and self._asha is not None:
            self._asha.complete(name, record.values[self._asha.accuracy])
        elif self._freeze_thaw is not None and record.reused_from is None:
            self._freeze_thaw.drop(name, record.values)
        values = record.estimates if is_whole or is_over else None
        self._sampler.tell(record.trial, values, excess)

    def _left_s(self) -> float | None:
        """The time that the rest of the budget will take, as far as it is known."""
        search, status = self._config.search, self._store.status
        bounds, trial_s = [], status.trial_s()
        if search.trials is not None and trial_s is not None:
            left = search.trials - status.counts["evaluated"]
            bounds.append(left * trial_s / self._config.engine.jobs)
        if search.time_s is not None:
            bounds.append(search.time_s - self.seconds)
        return max(0.0, min(bounds)) if bounds else None

    def _check_all_failed(self) -> None:
        """Make sure that something came of a search that is at its end.

        Raises:
            BudgetError: every network failed.
        """
        counts, records = self._store.status.counts, self._store.status.records
        count = counts["evaluated"]
        if count and count == counts["failed"] and not self._is_asked_to_stop():
            failed = [record.reason for record in records if record.state == "failed"]
            networks = "the only network" if count == 1 else f"all {count} networks"
            raise BudgetError(f"{networks} failed, the last with: {failed[-1]}")

    def _summary(self) -> Summary:
        status, attributes = self._store.status, self._store.attributes
        is_interrupted = self._is_asked_to_stop()
        return Summary(
            study=str(self._study.folder),
            trials=dict(status.counts),
            seconds=self.seconds,
            hypervolume=front_volume(status.front, self._study),
            front=status.front,
            stopped_because=_INTERRUPTED if is_interrupted else self._because,
            is_interrupted=is_interrupted,
            verdict=judged(status.records, attributes, self._config),
            teacher_choice=attributes.get("teacher_choice"),
            baselines=self._comparisons.records(),
        )
