"""Trains the rows of a table: every row with several learning rates and seeds, several at once."""

import multiprocessing.connection
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

from torch import nn

from levit_search.architecture import Architecture, fitted, parse, scaled
from levit_search.baseline import Baseline, check_runs, load_network
from levit_search.batches import Batches, noise_batches, open_batches
from levit_search.data import DataInfo, describe, outline
from levit_search.distill import TeacherAnswers, obtain_teacher
from levit_search.engine.local import serve_aside, start_aside
from levit_search.errors import LevitSearchError, TrialError
from levit_search.image_size import size_text
from levit_search.pretrained import check_donor_weights, check_weights_fit, donor_of
from levit_search.progress import StepProgress, clock
from levit_search.recipe import TeacherConfig
from levit_search.reproduce import PaperRow, PaperTable, Run
from levit_search.reproduce.accuracies import chosen_lr, trainings_of
from levit_search.study import StudyConfig
from levit_search.train import (
    Epoch,
    fit,
    fresh_network,
    image_ms,
    seed_torch,
    top1_percent,
    train_network,
)

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

Network = Architecture | Baseline

_TIMED_S = 1.0  # training of a row, to say beforehand what all will take


class Job(NamedTuple):
    """One training of a row."""

    row: str
    seed: int
    lr: float

    def __str__(self) -> str:
        return f"{self.row}, seed {self.seed}, lr {self.lr:g}"


class Setting(NamedTuple):
    """What all trainings of a table have in common, as it is sent to processes."""

    table: PaperTable
    config: StudyConfig
    width_scale: float

    @property
    def teaching(self) -> TeacherConfig | None:
        """The teacher; Table 1 has none: its ends are the published DeiT-Small and ResNet-50."""
        return self.config.teaching if self.table.name != "grafting" else None

    def networks(self) -> dict[str, Network]:
        """What stands for each row; those that cannot be scaled are left out.

        Raises:
            InputError: one cannot be fitted to the images, or starts from weights that are not
                there.
        """
        info, found = describe(self.config.data), dict[str, Network]()
        for row in self.table.built:
            if network := row_network(row, self.table, self.config, info, self.width_scale):
                found[row.name] = network
        built = [each for each in found.values() if not isinstance(each, Baseline)]
        donors = [donor for network in built if (donor := donor_of(network))]
        check_donor_weights(self.config.train.donor_weights, donors)
        check_weights_fit(self.config.train, built)
        return found


def row_network(
    row: PaperRow, table: PaperTable, config: StudyConfig, info: DataInfo, width_scale: float
) -> Network | None:
    """The network that stands for a row on the data; None where it cannot be scaled.

    Raises:
        InputError: it cannot be fitted to the images.
    """
    assert row.network is not None
    network = load_network(row.network)
    size, channels, classes = config.data.size, info.in_channels, info.num_classes
    if isinstance(network, Baseline):
        if width_scale != 1:
            return None
        network = replace(network, image_size=size, in_channels=channels, num_classes=classes)
        check_runs(network, f"{row.name}: takes no images of {size_text(size)} px")
        return network
    if table.name == "ablation":
        # Table 5 counts one head but trains with the distillation head, except for A4.
        data = network.model_dump(mode="json")
        network = parse({**data, "distillation": row.name != "ablation-A4"}, row.name)
    sized = fitted(network, image_size=size, in_channels=channels, num_classes=classes)
    return scaled(sized, width_scale)


def lacking(run: Run, rows: Sequence[str], seeds: Sequence[int], lrs: Sequence[float]) -> list[Job]:
    """Trainings that can be begun now: the first seed with all learning rates, then, of the rows
    whose learning rate is known, the other seeds."""
    done = {Job(row, each["seed"], each["lr"]) for row in rows for each in trainings_of(run, row)}
    jobs = [Job(row, seeds[0], lr) for lr in lrs for row in rows]
    for seed in seeds[1:]:
        for row in rows:
            if (lr := chosen_lr(trainings_of(run, row), lrs, seeds[0])) is not None:
                jobs.append(Job(row, seed, lr))
    return [job for job in jobs if job not in done]


Tell = Callable[[str, float | None], None]


class Trainer:
    """Trains rows one after another, in this process.

    Raises:
        InputError: the data, or a row's network on it.
        TrialError: the teacher could not be trained.
    """

    def __init__(self, setting: Setting, tell: Tell) -> None:
        config = setting.config
        self._config, self._tell = config, tell
        # All rows are looked at before the first is trained: a mistake should not show after hours.
        self._networks = setting.networks()
        self._batches: Batches = open_batches(config.data)
        self._teacher: TeacherAnswers | None = None
        self.teacher_card: Mapping[str, Any] | None = None
        if (teaching := setting.teaching) is not None:
            tell("teacher", 0.0)
            teaching.check_decided()
            report = partial(self._report, "teacher, ", teaching.recipe.epochs)
            seed = config.search.seed
            self._teacher, self.teacher_card = obtain_teacher(
                teaching, config.data, self._batches, config.train, None, seed, report
            )

    def train(self, job: Job) -> Mapping[str, Any]:
        """A training of a row, see :data:`accuracies.Training`."""
        recipe = self._config.train.model_copy(update={"lr": job.lr})
        report = partial(self._report, "", recipe.epochs)
        network, batches = self._networks[job.row], self._batches
        described: str | Mapping[str, Any]
        found: dict[str, Any] = {"seed": job.seed, "lr": job.lr}
        model: nn.Module
        try:
            if isinstance(network, Baseline):
                seed_torch(job.seed, 3)
                model, described = network.build(), network.id
                training = fit(model, batches, recipe, job.seed, report=report)
            else:
                model, training = train_network(
                    network, batches, recipe, job.seed, self._teacher, report
                )
                described = network.model_dump(mode="json")
            percent = top1_percent(model, batches, "test")
        except TrialError as error:
            return {**found, "failed": str(error)}
        figures = training.as_json()
        seconds = figures.pop("seconds")
        found |= {"test_top1_percent": percent, "training_seconds": seconds}
        return {**found, **figures, "network": described}

    def _report(self, what: str, epochs: int, epoch: Epoch) -> None:
        self._tell(f"{what}{epoch.summary()}", epoch.epoch / epochs)


def train_rows(
    setting: Setting,
    run: Run,
    seeds: Sequence[int],
    jobs: int,
    machine: str,
    save: Callable[[], None],
    progress: StepProgress,
) -> None:
    """Train what a run lacks of all rows, by several processes at once where there are ``jobs``.

    Args:
        setting: what is trained, and how.
        run: is filled, and names the learning rates.
        seeds: the first of them tries all learning rates.
        jobs: processes, of one training each.
        machine: its name, which is kept with each training.
        save: called after each training.
        progress: shows trainings as steps.

    Raises:
        InputError: the data, or a row's network on it.
        TrialError: the teacher could not be trained, or a process ended.
    """
    rows = [row.name for row in setting.table.built if row.name in setting.networks()]

    def left() -> list[Job]:
        return lacking(run, rows, seeds, run.settings["lrs"])

    def noted(job: Job, training: Mapping[str, Any]) -> None:
        row = run.rows.setdefault(job.row, {"trainings": []})
        trainings = [*row["trainings"], {**training, "cpu": machine}]
        failed = [each["failed"] for each in trainings if "failed" in each]
        lost = failed and (job.seed != seeds[0] or len(failed) == len(run.settings["lrs"]))
        run.rows[job.row] = {"trainings": trainings, **({"failed": failed[-1]} if lost else {})}
        save()

    def prepared(card: Mapping[str, Any] | None) -> None:
        if card:
            run.extra["teacher"] = [card]

    if not (lacked := left()):
        return
    undecided = {job.row for job in lacked if job.seed == seeds[0]}  # whose other seeds wait
    count = len(lacked) + len(undecided) * (len(seeds) - 1)
    jobs = min(jobs, count)
    progress.begin("accuracy", count)
    progress.tell(_cost_text(setting, sorted({job.row for job in lacked}), count, jobs))
    if jobs == 1:
        trainer = Trainer(setting, progress.update)
        prepared(trainer.teacher_card)
        while job := next(iter(left()), None):
            progress.step(str(job))
            progress.update("training", 0.0)
            noted(job, trainer.train(job))
        return
    with _processes(setting, jobs) as connections:
        running: dict[Connection, Job] = {}
        free: list[Connection] = []
        while True:
            waiting = [job for job in left() if job not in running.values()]
            while free and waiting:
                job = waiting.pop(0)
                running[free[-1]] = job
                progress.step(str(job))
                free.pop().send(job)
            if len(free) == len(connections) and not waiting:
                return
            for connection in multiprocessing.connection.wait(
                [each for each in connections if each not in free]
            ):
                assert isinstance(connection, multiprocessing.connection.Connection)
                match _received(connection):
                    case (text, fraction):
                        if connection in running:
                            text = f"{running[connection]}: {text}"
                        progress.update(text, fraction)
                    case answer:
                        if connection in running:
                            noted(running.pop(connection), answer)
                        else:
                            prepared(answer)
                        free.append(connection)


def _received(connection: "Connection") -> Any:
    try:
        answer = connection.recv()
    except EOFError:
        raise TrialError("a process that trains rows ended; what was trained is kept") from None
    if isinstance(answer, LevitSearchError):
        raise answer
    return answer


def _cost_text(setting: Setting, rows: Sequence[str], count: int, jobs: int) -> str:
    """What ``count`` trainings will take, by a moment of training of each of the rows, in words."""
    recipe, networks = setting.config.train, setting.networks()
    info, images, _ = outline(setting.config.data)
    batches = noise_batches(info, setting.config.data.size, 4 * recipe.batch_size)
    each_ms = []
    for name in rows:
        network = networks[name]
        if isinstance(network, Baseline):
            model: nn.Module = network.build()
        else:
            model = fresh_network(network, recipe, 0)
        each_ms.append(image_ms(model, batches, recipe, _TIMED_S))
    seconds = count / jobs * statistics.fmean(each_ms) / 1000 * images["train"] * recipe.epochs
    taught = "" if setting.teaching is None else ", and what the teacher takes"
    return (
        f"{count} training{'s' * (count > 1)} of {recipe.epochs} epochs on {images['train']:,} "
        f"images: about {clock(seconds)} with {jobs} job{'s' * (jobs > 1)}{taught}"
    )


@contextmanager
def _processes(setting: Setting, jobs: int) -> Iterator["list[Connection]"]:
    """Processes that train what they are sent, and end with the block.

    Each tells the teacher's card, empty without one, then answers a job by the training; texts with
    fractions come in between, and an error where it gives up.
    """
    children = [start_aside(_serve, (setting,), "levit-search-row", True) for _ in range(jobs)]
    try:
        yield [connection for _, connection in children]
    finally:
        for process, connection in children:
            process.kill()
            process.join()
            connection.close()


def _serve(connection: "Connection", setting: Setting) -> None:
    serve_aside()
    try:
        trainer = Trainer(setting, lambda text, done: connection.send((text, done)))
        connection.send(trainer.teacher_card or {})
        while True:
            connection.send(trainer.train(connection.recv()))
    except LevitSearchError as error:
        connection.send(error)
    except (EOFError, BrokenPipeError):
        pass
