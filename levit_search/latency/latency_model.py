"""The latency model: a network's latency predicted from its blocks, which are timed on their own.

A network takes about as long as its blocks together, and weights that are read anew in every run
cost on top: ``latency = scale x sum of blocks + cost of a parameter x parameters``, calibrated on a
few networks that were timed whole.
"""

import math
import tempfile
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from scipy.special import stdtrit

from levit_search.architecture import Architecture
from levit_search.cost import Cost, cost
from levit_search.errors import InputError, TrialError
from levit_search.files import DamagedFileError, read_checksummed, write_checksummed
from levit_search.latency.block_graphs import Block, distinct_blocks, write_block, write_nothing
from levit_search.latency.cache import cache_key
from levit_search.latency.probe import Probe
from levit_search.latency.protocol import Measurement
from levit_search.latency.targets import Int8Format
from levit_search.model import Layout
from levit_search.progress import Progress
from levit_search.space import Space

MIN_NETWORKS = 4
"""With fewer there is no calibration."""
NOTHING = "nothing"
"""What the file is called of a graph that computes nothing."""

# Graphs that are timed in one go, and so in turn with one reference; half of a second each makes
# some dozens of pairs. An error of one is a small part of a network's sum, but a disturbed round
# must not move it.
_CHUNK = 8
_BLOCK_S = 0.5
_BLOCK_ROUNDS = 10
_FEWEST_TIMED = 2
# Of so many networks drawn one is taken; a draw may be infeasible or known.
_DRAWN_FOR_EACH = 20
_TRIES_FOR_EACH = 10

TimeGraphs = Callable[[Sequence[Path]], Sequence[float]]
"""Milliseconds a run of each graph, on the scale that whole networks' latencies have."""


class LatencyModel:
    """Predicts the latencies of a space's networks on a probe's target.

    Blocks are timed when a network needs them first, each once. The table is kept in the probe's
    cache, for all studies with the same target and settled reference; the calibration in the study.

    Args:
        probe: its reference is settled already, and its format where it measures in int8; blocks
            are quantized as networks are then.
        space: calibration networks are drawn from it.
        seed: of that draw.
        file: where the calibration is kept; read if it is there. Where it, or the table, is damaged
            there is a warning, and it is made again.
    """

    table: "BlockTable"
    """Of the blocks that were timed, once :meth:`prepare` is done."""
    predictor: "Predictor"
    """Likewise."""

    def __init__(self, probe: Probe, space: Space, seed: int, file: Path) -> None:
        self._probe, self._space, self._seed, self._file = probe, space, seed, file

    def prepare(self, report: Progress) -> None:
        """Load the table, and the calibration or else measure its networks whole.

        Raises:
            TrialError: too few networks could be measured, or their blocks could not be timed.
            InputError: the space has too few networks.
        """
        config = self._probe.config
        networks = calibration_networks(self._space, config.calibration, self._seed)
        reference, self._graph = self._probe.reference_graph(networks[0])
        self._scale_ms = self._probe.reference_ms[reference.id]
        self._load_table(reference)
        kept = self._kept_predictor()
        if kept is not None:  # the study goes on, and its predictions stay comparable
            self.predictor = kept
            return
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
        self.predictor = Predictor.fit(self.table, measured)
        write_checksummed(self._file, self.predictor.as_json())

    def predict(self, network: Architecture, report: Progress) -> "Prediction":
        """The latency of a network; its blocks that are new are timed now.

        Raises:
            TrialError: a block could not be timed, or the network is too unlike the others.
        """
        self._time_missing([network], report)
        return self.predictor.predict(network)

    def _load_table(self, reference: Architecture) -> None:
        """Get the table for this target, runtime and reference, new or with what is known."""
        config = self._probe.config
        assert config.layout != "fastest" and isinstance(config.batch_size, int)
        name = "-".join(filter(None, ["blocks", config.layout, self._int8_format]))
        key = cache_key(config, self._probe.connect(), name, reference.id)
        # Milliseconds are multiples of the settled reference, so its figure belongs to the key.
        self._table_file = self._probe.cache.path({**key, "scale_ms": self._scale_ms})
        self.table = BlockTable(config.layout, config.batch_size)
        if self._table_file.exists():
            try:
                self.table = BlockTable.load(self._table_file)
            except InputError as error:
                warnings.warn(f"{error}; blocks are timed again", stacklevel=3)

    def _kept_predictor(self) -> "Predictor | None":
        try:
            return Predictor.from_json(self.table, read_checksummed(self._file))
        except FileNotFoundError:
            return None
        except (OSError, DamagedFileError, InputError) as error:
            what = f"{self._file}: damaged ({error})"
        warnings.warn(
            f"{what}; the predictor is calibrated again, and predicts a little otherwise than for "
            "earlier trials",
            stacklevel=3,
        )
        return None

    def _time_missing(self, networks: Sequence[Architecture], report: Progress) -> None:
        if missing := self.table.missing(networks):
            self._table_file.parent.mkdir(parents=True, exist_ok=True)
            self.table.add(
                missing, self._time_graphs, report, lambda: self.table.save(self._table_file)
            )

    def _time_graphs(self, paths: Sequence[Path]) -> list[float]:
        seconds = _BLOCK_S * max(_FEWEST_TIMED, len(paths))
        config = self._probe.config.model_copy(update={"seconds": seconds, "rounds": _BLOCK_ROUNDS})
        graphs = [self._in_int8(path) for path in paths]
        found = self._probe.time_graphs(graphs, self._graph, config, warm=False)
        for path in {*graphs} - {*paths}:
            path.unlink()
        return [each.ratio_to_reference * self._scale_ms for each in found]

    @property
    def _int8_format(self) -> Int8Format | None:
        return self._probe.int8_format if self._probe.config.precision == "int8" else None

    def _in_int8(self, graph: Path) -> Path:
        """What is timed in the place of a block's float graph: that in int8, where it is wanted."""
        if self._int8_format is None or graph.stem == NOTHING:
            return graph
        return self._probe.int8_graph(graph, self._int8_format)


def calibration_networks(space: Space, count: int, seed: int) -> list[Architecture]:
    """Networks within the limits that spread evenly over the FLOPs of a space, smallest first.

    A small space may have fewer than ``count``.

    Raises:
        InputError: fewer than ``MIN_NETWORKS`` were found.
    """
    rng = np.random.default_rng(seed)
    wanted = min(_DRAWN_FOR_EACH * count, space.size())
    found: dict[str, tuple[Cost, Architecture]] = {}
    for _ in range(_TRIES_FOR_EACH * wanted):
        if len(found) == wanted:
            break
        try:
            network = space.draw(rng)
        except InputError:
            continue
        its_cost = cost(network)
        if all(excess <= 0 for excess in space.limits.excess(its_cost).values()):
            found[network.id] = its_cost, network
    if len(found) < MIN_NETWORKS:
        raise InputError(
            f"latency: predictions need {MIN_NETWORKS} networks to be calibrated on, and the space "
            f"has {len(found)}"
        )
    by_flops = sorted(found.values(), key=lambda entry: entry[0].flops)
    chosen = np.linspace(0, len(by_flops) - 1, min(count, len(by_flops))).round().astype(int)
    return [by_flops[index][1] for index in chosen]


@dataclass
class BlockTable:
    """What blocks take on one target: milliseconds for a batch of ``batch_size`` images.

    A block's figure is without ``run_ms``, what a run takes that computes nothing; a network's sum
    has it once.
    """

    layout: Layout
    batch_size: int
    run_ms: float | None = None
    blocks_ms: dict[str, float] = field(default_factory=dict)
    """By the block's id."""

    @classmethod
    def load(cls, path: Path) -> "BlockTable":
        """The table in a file that :meth:`save` wrote.

        Raises:
            InputError: the file cannot be read, is damaged or holds no such table.
        """
        try:
            table = cls(**read_checksummed(path))
            table.blocks_ms = {str(name): float(ms) for name, ms in table.blocks_ms.items()}
            if not all(map(math.isfinite, [table.run_ms or 0.0, *table.blocks_ms.values()])):
                raise ValueError("a latency is no number")
        except (OSError, ValueError, TypeError, AttributeError) as error:
            raise InputError(f"{path}: no table of block latencies ({error})") from None
        return table

    def save(self, path: Path) -> None:
        """Write the table as JSON with a checksum, atomically."""
        write_checksummed(path, asdict(self))

    def missing(self, architectures: Iterable[Architecture]) -> list[Block]:
        """The blocks of some networks that have not been timed, each once."""
        needed = {each.id: each for network in architectures for each in distinct_blocks(network)}
        return [block for name, block in needed.items() if name not in self.blocks_ms]

    def add(
        self,
        wanted: Sequence[Block],
        time_graphs: TimeGraphs,
        report: Progress,
        save: Callable[[], None],
    ) -> None:
        """Time blocks that are :meth:`missing`, a few at once.

        Args:
            wanted: those blocks.
            time_graphs: times ONNX files, on the target and with its settings.
            report: told what is being timed and which part of all is done.
            save: called after each few blocks.

        Raises:
            TrialError: a graph could not be timed.
        """
        with tempfile.TemporaryDirectory(prefix="levit-search-blocks-") as folder:
            if wanted and self.run_ms is None:
                path = Path(folder) / f"{NOTHING}.onnx"
                write_nothing(path)
                (self.run_ms,) = _times(time_graphs, [path])
            for start in range(0, len(wanted), _CHUNK):
                chunk = wanted[start : start + _CHUNK]
                last = start + len(chunk)
                report(f"timing blocks {start + 1} to {last} of {len(wanted)}", start / len(wanted))
                paths = [Path(folder) / f"{block.id}.onnx" for block in chunk]
                copies = [
                    write_block(block, self.layout, self.batch_size, path)
                    for block, path in zip(chunk, paths, strict=True)
                ]
                timed = _times(time_graphs, paths)
                for block, count, run_ms in zip(chunk, copies, timed, strict=True):
                    # The smallest of blocks take no longer than the run around them.
                    self.blocks_ms[block.id] = max(0.0, run_ms - (self.run_ms or 0.0)) / count
                for path in paths:
                    path.unlink()
                save()

    def sum_ms(self, architecture: Architecture) -> float:
        """What a network's blocks take together, in one run.

        Raises:
            TrialError: one of them has not been timed.
        """
        found = distinct_blocks(architecture)
        unknown = [block.kind for block in found if block.id not in self.blocks_ms]
        if unknown or self.run_ms is None:
            raise TrialError(
                f"latency cannot be predicted: {len(unknown)} of the network's {len(found)} blocks "
                f"have not been timed ({', '.join(unknown)})"
            )
        return self.run_ms + sum(count * self.blocks_ms[block.id] for block, count in found.items())


def _times(time_graphs: TimeGraphs, paths: Sequence[Path]) -> list[float]:
    found = [float(ms) for ms in time_graphs(paths)]
    if not all(math.isfinite(ms) and ms > 0 for ms in found):
        raise TrialError(f"blocks were timed at {found} ms")
    return found


@dataclass(frozen=True)
class Calibration:
    """A network that was timed whole."""

    network: str
    """Its id."""
    sum_ms: float
    params: int
    measured_ms: float


@dataclass(frozen=True)
class Prediction:
    """A latency and its 95 % prediction interval: where a measurement would lie."""

    latency_ms: float
    low_ms: float
    high_ms: float


class Predictor:
    """Least squares on relative errors; ``scale`` is never negative.

    Args:
        table: of the blocks.
        calibration: networks that were timed whole.

    Raises:
        InputError: they are fewer than ``MIN_NETWORKS``, or one has no latency.
    """

    def __init__(self, table: BlockTable, calibration: Sequence[Calibration]) -> None:
        if len(calibration) < MIN_NETWORKS:
            raise InputError(
                f"latency can be predicted from {MIN_NETWORKS} measured networks or more, not "
                f"from {len(calibration)}"
            )
        for entry in calibration:
            if not (math.isfinite(entry.measured_ms) and entry.measured_ms > 0):
                raise InputError(
                    f"network {entry.network}: {entry.measured_ms} ms is no latency to calibrate on"
                )
        self.table, self.calibration = table, tuple(calibration)
        # Terms of each network in units of its own latency, so that residuals are relative.
        terms = np.array([[c.sum_ms, c.params / 1e6] for c in calibration])
        self._rows = terms / np.array([[c.measured_ms] for c in calibration])
        self._coefficients = _least_squares(self._rows)
        residuals = 1 - self._rows @ self._coefficients
        self.scale, self.ms_per_million_params = map(float, self._coefficients)
        """What the blocks' sum is multiplied by, and what a million parameters cost on top."""
        self._freedom = len(calibration) - len(self._coefficients)
        self._spread = math.sqrt(residuals @ residuals / self._freedom)
        self._inverse = np.linalg.pinv(self._rows.T @ self._rows)

    @classmethod
    def fit(cls, table: BlockTable, measured: Sequence[tuple[Architecture, float]]) -> "Predictor":
        """Calibrate on networks and their measured milliseconds a run.

        Raises:
            InputError: too few networks, or no measurements.
            TrialError: a block has not been timed.
        """
        calibration = [
            Calibration(network.id, table.sum_ms(network), cost(network).params, measured_ms)
            for network, measured_ms in measured
        ]
        return cls(table, calibration)

    @property
    def loo_mape_percent(self) -> float:
        """The mean error of predicting each calibration network from all others."""
        errors = [
            row @ _least_squares(np.delete(self._rows, index, axis=0)) - 1
            for index, row in enumerate(self._rows)
        ]
        return 100 * float(np.mean(np.abs(errors)))

    def predict(self, architecture: Architecture) -> Prediction:
        """A network's latency.

        Raises:
            TrialError: one of its blocks has not been timed, or the network lies so far from the
                calibration's that no time is left for it.
        """
        terms = np.array([self.table.sum_ms(architecture), cost(architecture).params / 1e6])
        latency_ms = float(terms @ self._coefficients)
        if latency_ms <= 0:
            raise TrialError(
                "latency cannot be predicted: the network is too unlike those measured"
            )
        row = terms / latency_ms
        leverage = float(row @ self._inverse @ row)
        away = float(stdtrit(self._freedom, 0.975)) * self._spread * math.sqrt(1 + leverage)
        return Prediction(latency_ms, latency_ms * max(0.0, 1 - away), latency_ms * (1 + away))

    def as_json(self) -> dict[str, object]:
        """What :meth:`from_json` reads, with the figures that people ask for."""
        return {
            "scale": self.scale,
            "ms_per_million_params": self.ms_per_million_params,
            "spread_percent": 100 * self._spread,
            "loo_mape_percent": self.loo_mape_percent,
            "calibration": [asdict(entry) for entry in self.calibration],
        }

    @classmethod
    def from_json(cls, table: BlockTable, data: Mapping[str, Any]) -> "Predictor":
        """The predictor that :meth:`as_json` described, with the table that it was fitted on.

        Raises:
            InputError: ``data`` is no such description.
        """
        try:
            return cls(table, [Calibration(**entry) for entry in data["calibration"]])
        except (TypeError, KeyError, np.linalg.LinAlgError) as error:
            raise InputError(f"no description of a latency predictor ({error})") from None


def _least_squares(rows: "np.ndarray[Any, Any]") -> "np.ndarray[Any, Any]":
    """Coefficients that bring each row nearest to one, the first not below zero."""
    ones = np.ones(len(rows))
    found: np.ndarray[Any, Any] = np.linalg.lstsq(rows, ones, rcond=None)[0]
    if found[0] < 0:
        found = np.array([0.0, *np.linalg.lstsq(rows[:, 1:], ones, rcond=None)[0]])
    return found
