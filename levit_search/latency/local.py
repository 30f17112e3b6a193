"""Probes on this machine's CPU: the worker as a process of its own."""

import json
import os
import queue
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import IO, TYPE_CHECKING, Any

from levit_search import architecture, baseline
from levit_search.architecture import Architecture
from levit_search.baseline import Baseline
from levit_search.errors import InputError, TrialError
from levit_search.latency import worker
from levit_search.latency.protocol import LatencyConfig, Measurement, Pair, measurement

if TYPE_CHECKING:
    from levit_search.model import Layout

# Starting, warming up and building sessions take seconds; a worker silent for longer is stuck.
_GRACE_S = 120


class LocalProbe:
    """Measures networks on this machine's CPU through one worker process kept between jobs.

    Use it as a context manager. ``settled_ms`` holds the settled figure of reference networks by
    their id; a study keeps it, so that all its latencies are multiples of one figure.
    """

    def __init__(self, config: LatencyConfig, settled_ms: dict[str, float] | None = None) -> None:
        self.config = config
        self.settled_ms = dict(settled_ms or {})
        self._folder = tempfile.TemporaryDirectory(prefix="levit-search-probe-")
        self._process: subprocess.Popen[str] | None = None
        self._lines: queue.Queue[str | None] = queue.Queue()
        self._stderr: list[str] = []
        self._stderr_reader = threading.Thread()
        self._device: dict[str, Any] = {}

    def __enter__(self) -> "LocalProbe":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stop()
        self._folder.cleanup()

    def measure(
        self,
        network: Architecture | Baseline,
        reference: Architecture | Baseline | None = None,
    ) -> Measurement:
        """Build ``network`` with fresh weights and time it against a reference.

        Args:
            network: in the layout that the configuration names, where it is ours.
            reference: what to compare with, in the same layout; by default the configuration's,
                fitted to the network's images and always in the layout of tokens.

        Raises:
            TrialError: the worker died, stayed silent or reported an error.
            InputError: the reference does not fit the images.
        """
        layout = self.config.layout
        if reference is None:
            against = self._reference(network)
            graph, settled_ms = self._graph(against, "tokens"), self.settled_ms.get(against.id)
        else:
            graph, settled_ms = self._graph(reference, layout), None
        return self.measure_graphs(self._graph(network, layout), graph, settled_ms)

    def measure_graphs(
        self, candidate: Path, reference: Path, settled_ms: float | None = None
    ) -> Measurement:
        """Time one ONNX file against another; all inputs are filled with random numbers.

        Args:
            candidate: what is measured.
            reference: what it is compared with.
            settled_ms: the reference's own latency where it is known already.

        Raises:
            TrialError: the worker died, stayed silent or reported an error.
        """
        job = {
            "candidate": str(candidate),
            "reference": str(reference),
            "seed": 0,
            **self.config.model_dump(include={"threads", "seconds", "rounds", "interval_percent"}),
        }
        pairs: list[Pair] = []
        for message in self._answers(job):
            if message["event"] == "pairs":
                pairs += message["pairs"]
            else:
                seconds = message["seconds"]
        return measurement(self.config, pairs, seconds, self._device, settled_ms)

    def settle_reference(self, network: Architecture) -> Measurement:
        """Time the reference for ``network``'s images against a copy of itself and keep its figure.

        Its ``ratio_to_reference`` should be 1; how far it is from 1 is this machine's error.
        """
        reference = self._reference(network)
        graph = self._graph(reference, "tokens")
        found = self.measure_graphs(graph, graph)
        self.settled_ms[reference.id] = found.reference_ms
        return found

    def _reference(self, network: Architecture | Baseline) -> Architecture:
        described = self.config.reference
        reference = (
            architecture.load(described)
            if isinstance(described, str)
            else architecture.parse(described, "latency.reference")
        )
        size, classes = network.image_size, network.num_classes or 1  # baselines may have none
        try:
            return architecture.fitted(
                reference,
                image_size=size,
                in_channels=network.in_channels,
                num_classes=classes,
            )
        except InputError:
            if size < 32:
                raise
            # Its stem does not take that size: the nearest that most stems do.
            return architecture.fitted(
                reference,
                image_size=32 * round(size / 32),
                in_channels=network.in_channels,
                num_classes=classes,
            )

    def _graph(self, network: Architecture | Baseline, layout: "Layout") -> Path:
        """The ONNX file of a network; its weights are random, which latency does not mind."""
        from levit_search.model import build, export_onnx

        batch_size = self.config.batch_size
        path = Path(self._folder.name) / f"{network.id}-{layout}-{batch_size}.onnx"
        if path.exists():
            return path
        if isinstance(network, Baseline):
            baseline.export_onnx(network, path, batch_size)
        else:
            export_onnx(build(network, layout), path, batch_size)
        return path

    def _answers(self, job: dict[str, Any]) -> Iterator[dict[str, Any]]:
        process = self._started()
        assert process.stdin is not None
        try:
            process.stdin.write(json.dumps(job) + "\n")
            process.stdin.flush()
        except BrokenPipeError:
            raise self._died() from None
        while True:
            message = self._next_message(self.config.seconds + _GRACE_S)
            if message["event"] == "error":
                raise TrialError(f"probe on {self.config.target}: {message['message']}")
            yield message
            if message["event"] == "done":
                return

    def _started(self) -> subprocess.Popen[str]:
        if self._process is not None and self._process.poll() is None:
            return self._process
        self._stop()
        # Threads are the session's business; a pool of numpy's or OpenMP's would only disturb it.
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
        self._process = subprocess.Popen(
            [sys.executable, worker.__file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
            start_new_session=True,
        )
        self._lines, self._stderr = queue.Queue(), []
        assert self._process.stdout is not None and self._process.stderr is not None
        lines, errors = self._lines, self._stderr
        _in_background(_forward, self._process.stdout, lines)
        self._stderr_reader = _in_background(errors.extend, self._process.stderr)
        self._device = self._next_message(_GRACE_S)["device"]
        return self._process

    def _next_message(self, patience_s: float) -> dict[str, Any]:
        try:
            line = self._lines.get(timeout=patience_s)
        except queue.Empty:
            self._stop()
            raise TrialError(
                f"probe on {self.config.target}: no answer for {patience_s:.0f} s, stopped"
            ) from None
        if line is None:
            raise self._died()
        try:
            message = json.loads(line)
        except ValueError:
            message = None
        if not isinstance(message, dict) or "event" not in message:
            self._stop()
            raise TrialError(f"probe on {self.config.target}: not an answer: {line[:80]!r}")
        return message

    def _died(self) -> TrialError:
        assert self._process is not None
        code = self._process.wait()
        self._stderr_reader.join(timeout=5)  # its last words may still be on their way
        last = next((line.strip() for line in reversed(self._stderr) if line.strip()), "no message")
        return TrialError(f"probe on {self.config.target}: the worker ended with {code} ({last})")

    def _stop(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None


def _in_background(function: Any, *arguments: Any) -> threading.Thread:
    thread = threading.Thread(target=function, args=arguments, daemon=True)
    thread.start()
    return thread


def _forward(stream: IO[str], lines: "queue.Queue[str | None]") -> None:
    for line in stream:
        lines.put(line)
    lines.put(None)
