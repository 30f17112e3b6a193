"""What a search keeps of its trials: written in the storage, and in memory what is asked again."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal

from optuna.trial import FrozenTrial, TrialState

from levit_search import architecture as architectures
from levit_search import table
from levit_search.architecture import Architecture
from levit_search.cost import Cost
from levit_search.errors import GOES_ON, BudgetError, refused_by_disk
from levit_search.search.callbacks import CallbackList
from levit_search.search.history import History
from levit_search.search.ledger import Ledger
from levit_search.search.rungs import Rungs
from levit_search.search.samplers import chosen, population_of, reads_pruned
from levit_search.search.tally import Tally, is_spent
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

# Tables are for people to look at meanwhile; writing them should cost a fiftieth of the time.
_TABLES_EVERY_S = 5.0
_TABLES_SHARE = 50

_STATES: dict[TrialState, State] = {
    TrialState.COMPLETE: "complete",
    TrialState.PRUNED: "pruned",
    TrialState.FAIL: "failed",
}

Verdict = Literal["too slow", "stopped", "complete"]


@dataclass
class Candidate:
    """A network on its way through its evaluation."""

    number: int
    network: Architecture
    notes: dict[str, Any]
    """What is stored with the trial."""
    excess: dict[str, float] = field(default_factory=dict)
    """By limit, how far above it."""


class Books:
    """All trials of a study, in its storage and as samplers, rungs and people look at them.

    Args:
        study: its lock is held.
        space: of the study.
        callbacks: told of every trial that ends.

    Raises:
        InputError: see :class:`Ledger`.
    """

    def __init__(self, study: Study, space: Space, callbacks: CallbackList) -> None:
        self._study, self._space, self._callbacks = study, space, callbacks
        self._config = study.config
        self.ledger = Ledger(study, space.distributions())
        self.sampler, self.population = self._settled_sampler()
        self._rungs = _rungs(study)
        limits = space.limits.model_dump()
        constraints = ["valid", *(name for name, bound in limits.items() if bound is not None)]
        self.history = History(
            self._config.objectives,
            space.distributions(),
            constraints,
            reads_pruned(self.sampler),
            self._rungs,
        )
        self.history.restore_parents(self.ledger.attributes)
        self.tally = Tally(self._config.objectives)
        self.fruitless = 0
        """How many proposals in a row came to nothing."""
        self._tables_at = 0.0
        self._begun = time.monotonic()

    @property
    def attributes(self) -> Mapping[str, Any]:
        """Of the study."""
        return self.ledger.attributes

    @property
    def seconds(self) -> float:
        """How long this session lasts."""
        return time.monotonic() - self._begun

    def begin(self) -> int:
        """The number of a new trial, of which nothing is written yet."""
        number = self.ledger.next_number
        self.history.begin(number)
        return number

    def propose(self, number: int, params: Mapping[str, Any]) -> None:
        """What a trial that has begun is to be."""
        for key, parents in self.history.parents().items():
            if key not in self.attributes:
                self.ledger.set_attribute(key, parents)
        self.history.propose(number, params)

    def recall(self, trial: FrozenTrial) -> Candidate | None:
        """Enter a trial of an earlier session or of another study, begun in the history already.

        Returns:
            What is to be evaluated still.
        """
        number, notes = trial.number, dict(trial.user_attrs)
        self.history.propose(number, trial.params)
        for rung in notes.get("rungs", ()):
            if self._rungs is not None and rung["epoch"] in self._rungs.epochs:
                network = notes["architecture_id"]
                self._rungs.enter(rung["epoch"], network, rung["values"], rung["goes_on"])
        excess = dict(trial.constraints)
        if not trial.state.is_finished():
            return Candidate(number, architectures.parse(notes["architecture"]), notes, excess)
        self._count(self._with_measured(record_of(trial)), excess)
        return None

    def turn_down(
        self,
        number: int,
        params: Mapping[str, Any],
        notes: Mapping[str, Any],
        excess: Mapping[str, float],
    ) -> None:
        """Write a proposal that is not evaluated; its notes tell the reason."""
        self._add(TrialState.PRUNED, number, params, notes, excess)

    def reuse(
        self,
        number: int,
        params: Mapping[str, Any],
        notes: dict[str, Any],
        excess: Mapping[str, float],
        known: Record,
    ) -> None:
        """Write a proposal whose network was evaluated in another trial."""
        notes |= {
            "reused_from": known.trial,
            "evaluation": {**known.own_evaluation, "seconds": 0.0},
        }
        if known.rungs:
            notes["rungs"] = list(known.rungs)
        if not known.taught:
            notes["taught"] = False
        if known.state == "complete":
            values = self._objective_values(notes)
            self._add(TrialState.COMPLETE, number, params, notes, excess, values)
        else:
            self.turn_down(number, params, {**notes, "reason": known.reason}, excess)

    def submit(self, candidate: Candidate, params: Mapping[str, Any]) -> None:
        """Write a proposal that is going to be evaluated."""
        kept = self.history.attributes(candidate.number)
        self.ledger.begin(params, candidate.notes, candidate.excess, kept)

    def at_rung(self, candidate: Candidate, epoch: int, values: Mapping[str, float]) -> bool:
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
        self.ledger.note(candidate.number, "rungs", passed)
        self._callbacks.on_trial_result(candidate.number, epoch, values["top1_percent"])
        return goes_on

    def note_evaluation(self, candidate: Candidate, evaluation: Mapping[str, Any]) -> None:
        """Write what an evaluation gave, before its trial ends."""
        candidate.notes["evaluation"] = evaluation
        self.ledger.note(candidate.number, "evaluation", evaluation)

    def verdict(self, candidate: Candidate) -> Verdict:
        """What became of a candidate whose evaluation is noted."""
        latency_ms = candidate.notes["evaluation"]["values"].get("latency_ms")
        limit = self._space.limits.latency_ms
        if limit is not None and latency_ms > limit:
            return "too slow"
        rungs = candidate.notes.get("rungs", [])
        return "stopped" if rungs and not rungs[-1]["goes_on"] else "complete"

    def end(self, candidate: Candidate) -> None:
        """End a trial whose evaluation is noted."""
        notes, limit = candidate.notes, self._space.limits.latency_ms
        latency_ms = notes["evaluation"]["values"].get("latency_ms")
        if limit is not None:
            candidate.excess["latency_ms"] = latency_ms / limit - 1
            self.ledger.constrain(candidate.number, "latency_ms", latency_ms / limit - 1)
        match self.verdict(candidate):
            case "too slow":
                reason = f"latency_ms {latency_ms:.3g} over the limit of {limit:g}"
                self._tell(candidate, TrialState.PRUNED, reason=reason)
            case "stopped":
                epoch = notes["rungs"][-1]["epoch"]
                reason = f"stopped at epoch {epoch} of {self._config.candidate_recipe.epochs}"
                self._tell(candidate, TrialState.PRUNED, reason=reason)
            case "complete":
                self._tell(candidate, TrialState.COMPLETE, self._objective_values(notes))

    def fail(self, candidate: Candidate, reason: str) -> None:
        """End a trial whose evaluation failed."""
        self._tell(candidate, TrialState.FAIL, reason=reason)

    def write_tables(self) -> None:
        """Write the tables that people look at.

        Raises:
            BudgetError: the disk refuses.
        """
        start = time.monotonic()
        records = sorted(self.tally.records, key=lambda each: each.trial)
        try:
            table.write_tables(self._study, records, self.attributes)
        except OSError as error:
            refusal = refused_by_disk(error) or f"{self._study.folder}: {error}"
            raise BudgetError(f"{refusal}; {GOES_ON}") from None
        took_s = time.monotonic() - start
        self._tables_at = start + max(_TABLES_EVERY_S, _TABLES_SHARE * took_s)

    def _settled_sampler(self) -> tuple[SamplerName, int]:
        """What the budget decides is settled when a study begins, and stays when it is extended."""
        if "sampler" not in self.attributes:
            self.ledger.set_attribute("population", population_of(self._config.search))
            self.ledger.set_attribute("sampler", chosen(self._config.search))
        return self.attributes["sampler"], self.attributes["population"]

    def _objective_values(self, notes: Mapping[str, Any]) -> list[float]:
        values = {**notes["cost"], **notes["evaluation"]["values"]}
        return [values[name] for name in self._config.objectives]

    def _add(
        self,
        state: TrialState,
        number: int,
        params: Mapping[str, Any],
        notes: Mapping[str, Any],
        excess: Mapping[str, float],
        values: Sequence[float] | None = None,
    ) -> None:
        """Write a proposal that costs no evaluation."""
        kept = self.history.attributes(number)
        self.ledger.add(state, values, params, notes, excess, kept)
        self._ended(number, state, notes, excess)

    def _tell(
        self,
        candidate: Candidate,
        state: TrialState,
        values: list[float] | None = None,
        reason: str | None = None,
    ) -> None:
        """End a trial in the storage, then in memory."""
        if reason is not None:
            candidate.notes["reason"] = reason
            self.ledger.note(candidate.number, "reason", reason)
        self.ledger.finish(candidate.number, state, values)
        training_file(self._study.folder, candidate.network.id).unlink(missing_ok=True)
        self._ended(candidate.number, state, candidate.notes, candidate.excess)

    def _ended(
        self,
        number: int,
        state: TrialState,
        notes: Mapping[str, Any],
        excess: Mapping[str, float],
    ) -> None:
        now = datetime.now().isoformat(timespec="seconds")
        record = self._with_measured(record_from_notes(number, _STATES[state], notes, now))
        self._count(record, excess)
        self.fruitless = 0 if is_spent(record) else self.fruitless + 1
        self._callbacks.on_trial_complete(record, self.tally, self._left_s())
        if time.monotonic() > self._tables_at:
            self.write_tables()

    def _with_measured(self, record: Record) -> Record:
        return with_measured(record, self.attributes, self._config.limits.latency_ms)

    def _count(self, record: Record, excess: Mapping[str, float]) -> None:
        """Enter a finished trial into all that is kept in memory."""
        self.tally.add(record)
        broken = any(value > 0 for value in excess.values())
        if broken:
            self.history.violate(record.trial, record.estimates, excess)
        elif record.state == "complete":
            if self._rungs is not None and record.architecture is not None:
                accuracy = record.values["top1_percent"]
                self._rungs.complete(record.architecture.id, accuracy)
            self.history.complete(record.trial, record.estimates, excess)
        elif record.is_stopped:
            rung = record.rungs[-1]
            self.history.stop(record.trial, rung["epoch"], rung["values"], excess)
        else:
            self.history.drop(record.trial)

    def _left_s(self) -> float | None:
        """The time that the rest of the budget will take, as far as it is known."""
        search = self._config.search
        bounds = []
        each_s = self.tally.seconds()
        if search.trials is not None and each_s is not None:
            left = search.trials - self.tally.spent
            bounds.append(left * each_s / self._config.engine.jobs)
        if search.time_s is not None:
            bounds.append(search.time_s - self.seconds)
        return max(0.0, min(bounds)) if bounds else None


def notes_of(network: Architecture, found: Cost) -> dict[str, Any]:
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
