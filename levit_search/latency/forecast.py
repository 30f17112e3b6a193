"""Predicted latencies for a search: a predictor calibrated by a probe, which fills its table."""

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from levit_search.architecture import Architecture
from levit_search.errors import InputError, TrialError
from levit_search.files import DamagedFileError, read_checksummed, write_checksummed
from levit_search.latency.cache import Cache, cache_key
from levit_search.latency.predictor import (
    MIN_NETWORKS,
    BlockTable,
    Prediction,
    Predictor,
    calibration_networks,
)
from levit_search.latency.probe import Probe
from levit_search.latency.protocol import Measurement
from levit_search.progress import Progress
from levit_search.space import Space

# Blocks are timed together, a few at once; half of a second each makes some dozens of pairs. An
# error of one is a small part of a network's sum, but a disturbed round must not move it.
_BLOCK_S = 0.5
_BLOCK_ROUNDS = 10
_FEWEST_TIMED = 2


class Forecast:
    """Predicts the latencies of a space's networks on a probe's target.

    Blocks are timed when a network needs them first, each once; the table is kept in the cache, for
    all studies with the same target and settled reference, and the calibration in the study.

    Args:
        probe: its reference is settled already.
        space: calibration networks are drawn from it.
        seed: of that draw.
        file: where the calibration is kept; read if it is there. Where it, or the table, is damaged
            there is a warning, and it is made again.
        cache: where the table is kept; by default the user's cache.
    """

    def __init__(
        self, probe: Probe, space: Space, seed: int, file: Path, cache: Cache | None = None
    ) -> None:
        self._probe, self._space, self._seed, self._file = probe, space, seed, file
        self._cache = cache or Cache()

    def prepare(self, report: Progress) -> dict[str, Any]:
        """Load the table, and the calibration or else measure its networks whole.

        Returns:
            What is known of the predictor: coefficients, errors, the calibration.

        Raises:
            TrialError: too few networks could be measured, or their blocks could not be timed.
            InputError: the space has too few networks.
        """
        config = self._probe.config
        networks = calibration_networks(self._space, config.calibration, self._seed)
        self._reference, self._graph = self._probe.reference_graph(networks[0])
        self._table_file, self._table = self._opened_table()
        kept = self._kept_predictor()
        if kept is not None:  # the study goes on, and its predictions stay comparable
            self._predictor, known = kept
            return known
        measured = [
            (network, found.latency_ms)
            for network, found in zip(networks, self._probe.measure_all(networks), strict=True)
            if isinstance(found, Measurement)
        ]
        if len(measured) < MIN_NETWORKS:
            raise TrialError(
                f"latency cannot be predicted: only {len(measured)} of {len(networks)} networks "
                "could be measured"
            )
        self._time_missing([network for network, _ in measured], report)
        self._predictor = Predictor.fit(self._table, measured)
        known = self._predictor.as_json()
        write_checksummed(self._file, known)
        return known

    def predict(self, network: Architecture, report: Progress) -> Prediction:
        """The latency of a network; its blocks that are new are timed now.

        Raises:
            TrialError: a block could not be timed, or the network is too unlike the others.
        """
        self._time_missing([network], report)
        return self._predictor.predict(network)

    def sum_ms(self, network: Architecture) -> float:
        """What the blocks of a predicted network take together, as they were timed."""
        return self._table.sum_ms(network)

    @property
    def size(self) -> int:
        """How many blocks have been timed."""
        return len(self._table.blocks_ms)

    def _opened_table(self) -> tuple[Path, BlockTable]:
        """The table for this target, runtime and reference, new or with what is known."""
        config = self._probe.config
        assert config.layout != "fastest" and isinstance(config.batch_size, int)
        scale_ms = self._probe.settled_ms[self._reference.id]
        device = self._probe.connect()
        name = f"blocks-{config.layout}"
        # Milliseconds are multiples of the settled reference, so its figure belongs to the key.
        key = {**cache_key(config, device, name, self._reference.id), "scale_ms": scale_ms}
        path = self._cache.path(key)
        if path.exists():
            try:
                return path, BlockTable.load(path)
            except InputError as error:
                warnings.warn(f"{error}; blocks are timed again", stacklevel=3)
        return path, BlockTable(config.layout, config.batch_size)

    def _kept_predictor(self) -> tuple[Predictor, dict[str, Any]] | None:
        try:
            known = read_checksummed(self._file)
            return Predictor.from_json(self._table, known), known
        except FileNotFoundError:
            return None
        except (OSError, DamagedFileError, InputError) as error:
            warnings.warn(
                f"{self._file}: damaged ({error}); the predictor is calibrated again, and predicts "
                "a little otherwise than for earlier trials",
                stacklevel=3,
            )
            return None

    def _time_missing(self, networks: Sequence[Architecture], report: Progress) -> None:
        missing = self._table.missing(networks)
        if missing:
            self._table_file.parent.mkdir(parents=True, exist_ok=True)
            self._table.add(
                missing, self._time_graphs, report, lambda: self._table.save(self._table_file)
            )

    def _time_graphs(self, paths: Sequence[Path]) -> list[float]:
        scale_ms = self._probe.settled_ms[self._reference.id]
        config = self._probe.config.model_copy(
            update={"seconds": _BLOCK_S * max(_FEWEST_TIMED, len(paths)), "rounds": _BLOCK_ROUNDS}
        )
        found = self._probe.time_graphs(paths, self._graph, config, warm=False)
        return [each.ratio_to_reference * scale_ms for each in found]
