"""How fast a space's networks train here, timed in processes of its own: a search imports no torch.

As many processes as a search has jobs train at once, since they share memory and cores, or a GPU.
"""

import math
import multiprocessing
import multiprocessing.connection
import signal
import statistics
import sys
import time
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from levit_search import architecture as architectures
from levit_search import data as datasets
from levit_search.architecture import Architecture
from levit_search.baseline import Baseline
from levit_search.configuration import validated
from levit_search.cost import cost
from levit_search.engine.local import start_aside, usable_cores
from levit_search.errors import BudgetError, InputError, LevitSearchError
from levit_search.latency.process_pipe import exit_name
from levit_search.space import Space
from levit_search.study import StudyConfig

if TYPE_CHECKING:
    from torch import nn

    from levit_search.batches import Batches
    from levit_search.recipe import Recipe

_DRAWN = 100  # networks that stand for a space
_EACH_S = 1.5  # for each network that is timed
_MOST_STEPS = 20
_NOISE_BATCHES = 4  # of images held in memory; which ones does not matter to the time
_LIMIT_S = 1800.0  # for anything that a process is waited for, such as a stream that is counted


class TrainingSpeed(NamedTuple):
    """What training takes an image, while all jobs train."""

    flops: tuple[int, ...]
    """Of networks that stand for the space, ascending."""
    image_ms: tuple[float, ...]
    """With each of them."""
    baselines_ms: tuple[float, ...] = ()
    """With each network to compare with, in the configuration's order."""


def training_speed(config: StudyConfig, space: Space) -> TrainingSpeed:
    """Time training by the recipe of ``config``, teacher aside.

    Networks of the fewest FLOPs, the median and the most are timed; for others it is in proportion.
    Those to compare with are timed as well.

    Raises:
        InputError: the data cannot be read, or the device is not there.
        BudgetError: a process ended, or did nothing for minutes.
    """
    networks, flops = _drawn(space)
    chosen = [networks[place] for place in (0, len(networks) // 2, -1)]
    jobs = min(config.engine.jobs, max(1, len(usable_cores()) // config.train.threads))
    baselines = [each.network(**space.sizes) for each in config.compare]
    children = [_Child(config, chosen, baselines) for _ in range(jobs)]
    try:
        for child in children:
            child.told()  # that it is ready
        for child in children:
            child.send("go")
        timed = np.array([child.told() for child in children]).mean(axis=0)
    finally:
        for child in children:
            child.end()
    # Jobs beyond the cores wait for each other.
    timed *= config.engine.jobs / jobs
    at = [flops[networks.index(network)] for network in chosen]
    ascending = np.maximum.accumulate(timed[: len(chosen)])
    image_ms = np.interp(flops, at, ascending).tolist()
    return TrainingSpeed(tuple(flops), tuple(image_ms), tuple(timed[len(chosen) :].tolist()))


def _drawn(space: Space) -> tuple[list[Architecture], list[int]]:
    """Networks of a space within its limits by FLOPs, and their FLOPs."""
    rng = np.random.default_rng(0)
    found: dict[str, tuple[int, Architecture]] = {}
    for _ in range(20 * _DRAWN):
        try:
            network = space.draw(rng)
        except InputError:
            continue
        costs = cost(network)
        if all(excess <= 0 for excess in space.limits.excess(costs).values()):
            found[network.id] = costs.flops, network
        if len(found) == _DRAWN:
            break
    ordered = sorted(found.values(), key=lambda each: (each[0], each[1].id))
    return [network for _, network in ordered], [flops for flops, _ in ordered]


class _Child:
    """A process that trains each of ``networks``, and of ``baselines``, for a moment."""

    def __init__(
        self, config: StudyConfig, networks: list[Architecture], baselines: list[Baseline]
    ) -> None:
        context = multiprocessing.get_context("spawn")
        self._connection, far_end = context.Pipe()
        described = [network.model_dump(mode="json") for network in networks]
        self._process = context.Process(
            target=_serve,
            args=(far_end, config.model_dump(mode="json"), described, baselines),
            name="levit-search-speed",
            daemon=True,
        )
        start_aside(self._process)
        far_end.close()

    def send(self, message: str) -> None:
        self._connection.send(message)

    def told(self) -> Any:
        """What the process says next."""
        if not self._connection.poll(_LIMIT_S):
            raise BudgetError(f"timing training took longer than {_LIMIT_S:.0f} s")
        try:
            answer = self._connection.recv()
        except EOFError:
            self._process.join(1)
            how = exit_name(self._process.exitcode)
            raise BudgetError(f"timing training: the process ended with {how}") from None
        if isinstance(answer, LevitSearchError):
            raise answer
        return answer

    def end(self) -> None:
        self._process.kill()
        self._process.join()
        self._connection.close()


def _serve(
    connection: "multiprocessing.connection.Connection",
    config: dict[str, Any],
    networks: list[dict[str, Any]],
    baselines: list[Baseline],
) -> None:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    from levit_search.train import fresh_network

    # Pictures are read by processes of our own, which a daemon may not have; they end with us.
    multiprocessing.current_process()._config["daemon"] = False  # type: ignore[attr-defined]
    try:
        settings = validated(StudyConfig, config, "plan")
        batches = _opened(settings)
        connection.send("ready")
        connection.recv()
        recipe, each_ms = settings.train, []
        for network in networks:
            model: nn.Module = fresh_network(architectures.parse(network), recipe, 0)
            each_ms.append(_image_ms(model, batches, recipe))
        for baseline in baselines:
            try:
                each_ms.append(_image_ms(baseline.build_as_timm_does(), batches, recipe))
            except (LevitSearchError, RuntimeError):  # its own training tells why
                each_ms.append(math.nan)
        connection.send(each_ms)
    except LevitSearchError as error:
        connection.send(error)


def _opened(config: StudyConfig) -> "Batches":
    """Pictures on disk as they are; where the images are held in memory, noise does as well."""
    from levit_search.batches import noise_batches, open_batches

    info, images, are_held = datasets.outline(config.data)
    if not are_held:
        return open_batches(config.data)
    count = min(images["train"], _NOISE_BATCHES * config.train.batch_size)
    return noise_batches(info, config.data.size, count)


def _image_ms(model: "nn.Module", batches: "Batches", recipe: "Recipe") -> float:
    """The median over steps; the first one, in which everything is made, does not count."""
    from levit_search.train import step_seconds

    seconds: list[float] = []
    begun = time.perf_counter()
    for step_s in step_seconds(model, batches, recipe):
        seconds.append(step_s)
        is_late = time.perf_counter() - begun > _EACH_S
        if len(seconds) == _MOST_STEPS or (is_late and len(seconds) > 1):
            break
    return 1000 * statistics.median(seconds[1:]) / batches.batch_size(recipe)
