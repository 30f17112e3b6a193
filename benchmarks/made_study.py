"""Studies of any size whose figures are made up, for what only looks at studies.

The networks, their costs and their places in the space are real; accuracies and latencies follow
from them with some noise, and every outcome that a search knows occurs.
"""

import sys
from collections.abc import Mapping
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
from optuna.trial import FrozenTrial, TrialState, create_trial

from levit_search.architecture import Architecture, described, load
from levit_search.cost import cost
from levit_search.errors import InputError
from levit_search.search.setup import reference_of
from levit_search.space import Space
from levit_search.study import Study, StudyConfig

_DEVICE = {"machine": "x86_64", "cpu": "Made-up CPU", "cores": 2, "emulated": False}
_DATA = {
    "id": "made-up",
    "train_images": 1149,
    "val_images": 288,
    "test_images": 360,
    "num_classes": 10,
    "guess_percent": 10.1,
    "mirrored": False,
}
_RUNG = 1  # epoch
_WORST_MS = 10.0


class _Made:
    """Trials of a study one after another."""

    def __init__(self, config: StudyConfig, seed: int) -> None:
        self._config, self._space = config, config.space()
        self._distributions = self._space.distributions()
        self._chance = np.random.default_rng(seed)
        self._known: dict[str, tuple[int, dict[str, Any]]] = {}
        self._ended = datetime(2026, 1, 1)
        self.measured: dict[str, Any] = {}

    def trial(self, number: int) -> FrozenTrial:
        values = self._first(number) or _drawn(self._space, self._chance)
        start = self._ended
        try:
            network = self._space.decode(values)
        except InputError as error:
            notes: dict[str, Any] = {"reason": str(error)}
            return self._frozen(values, notes, TrialState.PRUNED, start)
        notes = {
            "architecture": network.model_dump(mode="json"),
            "cost": cost(network)._asdict(),
        }
        over = [n for n, e in self._space.limits.excess(cost(network)).items() if e > 0]
        if over:
            notes["reason"] = f"{over[0]} {cost(network)._asdict()[over[0]]:,} over the limit"
            return self._frozen(values, notes, TrialState.PRUNED, start)
        if self._chance.random() < 0.02:
            notes["reason"] = f"training: the loss is not finite at step {number} <b>& so on</b>"
            return self._frozen(values, notes, TrialState.FAIL, start)
        self._ended += timedelta(seconds=40)
        if network.id in self._known:
            first, notes = self._known[network.id]
            notes = {**notes, "reused_from": first}
        else:
            notes |= self._evaluated(network)
            self._known[network.id] = (number, notes)
        goes_on = all(rung["goes_on"] for rung in notes["rungs"])
        if not goes_on:
            notes["reason"] = f"stopped at epoch {_RUNG} of {self._config.train.epochs}"
        state = TrialState.COMPLETE if goes_on else TrialState.PRUNED
        return self._frozen(values, notes, state, start)

    def _first(self, number: int) -> dict[str, Any] | None:
        """One of the networks to begin with."""
        if number >= len(self._config.start):
            return None
        given = self._config.start[number]
        network = load(given) if isinstance(given, str) else described(given, self._space.sizes)
        return self._space.encode(network)

    def _evaluated(self, network: Architecture) -> dict[str, Any]:
        epochs, chance = self._config.train.epochs, self._chance
        share = np.log10(cost(network).flops / 1e5) / 2
        end = 70 + 20 * (1 - np.exp(-1.5 * share)) + chance.normal(0, 0.6)
        curve = [
            {
                "epoch": epoch,
                "train_loss": 1.0,
                "val_top1_percent": float(end - 30 * np.exp(-2.5 * epoch / epochs)),
                "seconds": 4.0 * epoch,
            }
            for epoch in range(1, epochs + 1)
        ]
        goes_on = epochs <= _RUNG or bool(chance.random() < 0.6)
        rungs = []
        if epochs > _RUNG:
            percent = curve[_RUNG - 1]["val_top1_percent"]
            rungs = [{"epoch": _RUNG, "top1_percent": percent, "goes_on": goes_on}]
        if not goes_on:
            curve = curve[:_RUNG]
        final = curve[-1]["val_top1_percent"]
        latency, ms = self._latency(network, 1.0)
        targets, values = {}, {"latency_ms": ms}
        for index, name in enumerate(self._config.also_measured):
            targets[name], values[f"latency_ms@{name}"] = self._latency(network, 3.0 + index)
        if self._config.latency.method == "predicted":
            predicted = ms * float(np.exp(chance.normal(0, 0.04)))
            found = {"method": "predicted", "latency_ms": predicted}
            found |= {"low_ms": 0.9 * predicted, "high_ms": 1.1 * predicted}
            self.measured[network.id] = {"latency": latency, "values": {"latency_ms": ms}}
            values |= {"latency_ms": predicted, "latency_predicted_ms": predicted}
            latency = found
        if goes_on:
            values["top1_percent"] = final
        int8 = self._in_int8(network, values) if goes_on and self._config.is_quantized else {}
        training = {"val_top1_percent": final, "seconds": 4.0 * len(curve), "curve": curve}
        return {
            "rungs": rungs,
            "evaluation": {
                "values": values,
                "latency": latency,
                "training": training if self._config.is_trained else None,
                "targets": targets,
                "int8": int8,
                "seconds": 4.0 * len(curve) + 2,
            },
        }

    def _in_int8(self, network: Architecture, values: dict[str, float]) -> dict[str, Any]:
        """What is known of a network in int8, its figures added to ``values``; hardswish loses
        most."""
        found = cost(network)
        is_hard = getattr(network, "activation", None) == "hardswish"
        drop = (0.5 if is_hard else 0.1) + abs(float(self._chance.normal(0, 0.1)))
        values |= {
            "top1_int8_percent": values["top1_percent"] - drop,
            "model_bytes": found.params + 20_000,
        }
        operators = {"linear": 20, "stem": 2, "classifier": 1}
        quantized = {"format": "u8-reduced", "calibration": "minmax", "images": 128}
        quantized |= {"bytes": values["model_bytes"], "quantized": operators}
        quantized |= {"kept": {"attention": 8}, "left": {"elementwise": 4}}
        int8: dict[str, Any] = {"top1_int8_percent": {**quantized, "runtime": "onnxruntime"}}
        for name in [name for name in values if name.partition("@")[0] == "latency_ms"]:
            ms = 0.7 * values[name] * float(np.exp(self._chance.normal(0, 0.05)))
            name = name.replace("latency_ms", "latency_int8_ms")
            values[name] = ms
            measured, _ = self._latency(network, 1.0)
            ratio = measured["ratio_to_reference"] * ms / measured["latency_ms"]
            ends = {"ratio_ci95": [0.98 * ratio, 1.02 * ratio], "ratio_to_reference": ratio}
            measured |= {**ends, "latency_ms": ms, "int8_format": "u8-reduced"}
            int8[name] = {**measured, "precision": "int8"}
        return int8

    def _latency(self, network: Architecture, scale: float) -> tuple[dict[str, Any], float]:
        found = cost(network)
        blocks = sum(getattr(stage, "depth", 0) for stage in getattr(network, "stages", ()))
        ms = (
            scale
            * (0.05 * blocks + found.flops / 2e7)
            * float(np.exp(self._chance.normal(0, 0.03)))
        )
        ratio = ms / scale
        return {
            "latency_ms": ms,
            "ratio_to_reference": ratio,
            "ratio_ci95": [0.98 * ratio, 1.02 * ratio],
            "converged": True,
            "pairs": 60,
            "rounds": 4,
        }, ms

    def _frozen(
        self,
        values: Mapping[str, Any],
        notes: dict[str, Any],
        state: TrialState,
        start: datetime,
    ) -> FrozenTrial:
        known = {**notes.get("cost", {}), **notes.get("evaluation", {}).get("values", {})}
        is_whole = state == TrialState.COMPLETE
        trial = create_trial(
            state=state,
            values=[known[name] for name in self._config.objectives] if is_whole else None,
            params=self._space.encoded(values),
            distributions=self._distributions,
            user_attrs=notes,
        )
        trial.datetime_start, trial.datetime_complete = start, self._ended
        return trial


def make(folder: Path, config: StudyConfig, trials: int, seed: int = 0) -> Study:
    """A study with so many finished trials.

    Args:
        folder: where there is nothing yet.
        config: of the study.
        trials: how many; about a third of those trained are stopped at the first epoch.
        seed: of everything that is drawn.
    """
    study = Study.create(folder, config, sys.argv)
    worst = dict.fromkeys(config.referred, _WORST_MS)
    study.keep_reference(reference_of(config, config.space(), _DATA, worst))
    storage, study_id = study.open_storage()
    made = _Made(config, seed)
    for number in range(trials):
        storage.create_new_trial(study_id, made.trial(number))
    storage.set_study_user_attr(study_id, "device", _DEVICE)
    storage.set_study_user_attr(study_id, "data", _DATA)
    if config.is_quantized:
        formats = dict.fromkeys(["", *config.also_measured], "u8-reduced")
        storage.set_study_user_attr(study_id, "int8_formats", formats)
    storage.set_study_user_attr(study_id, "devices", dict.fromkeys(config.also_measured, _DEVICE))
    for network_id, found in made.measured.items():
        storage.set_study_user_attr(study_id, f"measured:{network_id}", found)
    return study


def weigh(study: Study, most: int = 1_000) -> None:
    """Weights, as they are before any training, for the networks on the front."""
    import torch

    from levit_search.model import build, save_weights
    from levit_search.table import front

    study.checkpoints.mkdir(exist_ok=True)
    for record in front(study.records(), study.config.objectives)[:most]:
        assert record.architecture is not None
        torch.manual_seed(0)
        model = build(record.architecture)
        for name, tensor in model.named_parameters():
            if name.endswith("attention_bias"):  # zero before training
                torch.nn.init.normal_(tensor, std=0.1)
        save_weights(model, study.checkpoints / f"{record.architecture.id}.safetensors")


def _drawn(space: Space, chance: np.random.Generator) -> dict[str, Any]:
    return {slot.name: slot.values[chance.integers(len(slot.values))] for slot in space.slots}
