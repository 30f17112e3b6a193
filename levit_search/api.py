"""The same from Python: a space, an evaluation and a study in a handful of calls.

    import levit_search as ls

    config = ls.read_space("levit", {"search.trials": 10})
    study = ls.run(config, "studies/mine")
    model = ls.load_model(study, ls.pick(study, "knee"))

Everything a user can cause is a :class:`levit_search.errors.LevitSearchError` with a message that
says what is wrong. Each call imports what it needs, so that ``import levit_search`` takes no time.
"""

import functools
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from levit_search.errors import InputError, writing

if TYPE_CHECKING:
    import pandas

    from levit_search.architecture import Architecture
    from levit_search.cost import Cost
    from levit_search.export import Export, ExportOptions
    from levit_search.model import Model
    from levit_search.progress import Progress
    from levit_search.search.evaluate import Evaluation
    from levit_search.significance import Verdict
    from levit_search.study import BaselineRecord, Record, Study, StudyConfig


def read_space(
    space: str | Path | Mapping[str, Any], changes: Mapping[str, Any] | None = None
) -> "StudyConfig":
    """A space with all that is said about searching it.

    Args:
        space: a space file, the name of an embedded one such as ``levit``, or what such a file
            says as a dict.
        changes: values by dotted key, as with ``--set``: ``{"train.epochs": 3}``.

    Returns:
        The configuration, whose sections are attributes; ``space()`` of it is what networks are
        drawn from and what says how many there are.

    Raises:
        InputError: there is no such file, or it says something wrong; the key, the value and what
            is allowed are named.
    """
    from levit_search.study import config_of, read_config, space_file

    if isinstance(space, Mapping):
        return config_of(space, Path("space"), changes)
    return read_config(space_file(str(space)), changes)


def count(network: "Architecture") -> "Cost":
    """Parameters, FLOPs and activations in closed form; one multiply-add is one FLOP."""
    from levit_search.cost import cost

    return cost(network)


@contextmanager
def evaluation(
    config: "StudyConfig", out: str | Path | None = None, progress: bool = True
) -> "Iterator[Callable[[Architecture], Evaluation]]":
    """Evaluate networks one by one in this process, as a search with the same seed would.

        with ls.evaluation(config) as evaluate:
            found = evaluate(config.space().draw(np.random.default_rng(0)))
        found.values  # {"latency_ms": 0.071, "top1_percent": 95.3}

    On entry the data is loaded, the teacher obtained and the reference network timed. Training sets
    torch's threads to ``train.threads`` and its random state to the study's seed.

    Args:
        config: how to measure and train.
        out: a folder for weights (``checkpoints/ID.safetensors``), raw latencies and the teacher;
            None keeps nothing.
        progress: show on stderr what is being done.

    Returns:
        A context with a function from a network, made for the images of the data, to its
        evaluation. The function raises InputError for a network that is made for others, and
        TrialError where it cannot be measured or trained.

    Raises:
        InputError: data, space, teacher, target or ``out`` is wrong or missing.
    """
    from levit_search.image_size import image_shape
    from levit_search.search import checked_space
    from levit_search.search.evaluate import Evaluator
    from levit_search.search.setup import sample_of
    from levit_search.study import training_file

    config.check_planned()
    if config.teaching is not None:
        config.teaching.check_decided()
    sample = sample_of(checked_space(config))
    with ExitStack() as stack:
        folder = stack.enter_context(_folder(out))
        evaluator = stack.enter_context(closing(Evaluator(config, folder, {})))
        with _shown(progress, "preparation", config.name) as shown:
            evaluator.prepare(sample, shown)

        def evaluate(network: "Architecture") -> "Evaluation":
            made_for, needed = (
                f"images {list(image_shape(each))} of {each.num_classes} classes"
                for each in (network, sample)
            )
            if made_for != needed:
                raise InputError(
                    f"{network.summary()}: is made for {made_for}, the data has {needed} "
                    "(levit_search.architecture.fitted changes that)"
                )
            with _shown(progress, "evaluation", network.id) as shown:
                found = evaluator.evaluate(network, shown)
            training_file(folder, network.id).unlink(missing_ok=True)
            return found

        yield evaluate


def run(
    config: "StudyConfig",
    folder: str | Path | None = None,
    take_from: str | Path | None = None,
    progress: bool = True,
    tensorboard: bool = False,
) -> "Study":
    """Search a space until its budget is used up, then measure its front again; in the folder of a
    study, go on with it.

        study = ls.run(ls.read_space("levit", {"search.trials": 10}), "studies/mine")
        study = ls.run(ls.read_space("levit", {"search.trials": 30}), "studies/mine")  # 20 more

    It works in processes of its own, which a script need not guard against, and is called in the
    main thread. Interrupted, as by a notebook's stop button, it raises KeyboardInterrupt, and the
    same call goes on. Either way it leaves ``report.html`` in the folder once a trial is complete.
    It warns where no network is better than guessing (:func:`verdict`).

    Args:
        config: what to search, and how.
        folder: of the study; None is ``studies/NAME``.
        take_from: the folder of another study, whose finished trials are taken over where they fit.
        progress: show on stderr what happens.
        tensorboard: write TensorBoard's events into the study's folder ``tensorboard``; what went
            before is filled in.

    Raises:
        InputError: something in the configuration or the folder is wrong, another search is at
            work on the study, or TensorBoard is asked for and not installed.
        BudgetError: ten networks in a row, or all, failed, or nothing could be evaluated at all.
    """
    from levit_search.report import report_of_run
    from levit_search.search import Callback, begin, search
    from levit_search.search.callbacks import SearchProgress
    from levit_search.search.tensorboard import TensorBoardCallback, require_tensorboard

    if tensorboard:
        require_tensorboard()
    source = None if take_from is None else Path(take_from)
    say = functools.partial(print, file=sys.stderr) if progress else lambda _: None
    study = begin(config, None if folder is None else Path(folder), sys.argv, source, say=say)
    callbacks: list[Callback] = []
    try:
        with ExitStack() as stack:
            if progress:
                callbacks.append(stack.enter_context(SearchProgress(study)))
            if tensorboard:
                callbacks.append(TensorBoardCallback(study))
            found = search(study, callbacks, source)
    except KeyboardInterrupt:
        report_of_run(study, _warn)
        raise
    report_of_run(study, _warn)
    if found.verdict.kind == "guessing":
        _warn(found.verdict.text)
    return study


def open_study(folder: str | Path, data: str | Path | None = None) -> "Study":
    """A study that there is, to read from, also while a search is at work on it.

    Args:
        folder: of the study.
        data: the folder where its data lies now; None: where it was.

    Raises:
        InputError: there is none, or it cannot be read, or there is no folder ``data``.
    """
    from levit_search.study import Study

    return Study.open(Path(folder)).with_data(None if data is None else Path(data))


def front(study: "Study") -> "list[Record]":
    """The Pareto front, the cheapest network first; a record has ``architecture`` and ``values``.

    Raises:
        InputError: the study's storage cannot be read.
    """
    from levit_search import table

    return table.front(study.records(), study.config.objectives)


def verdict(study: "Study") -> "Verdict":
    """What the accuracies of a study are worth: whether any network is better than guessing, each
    one's interval, and which are not told apart from the best.

        found = ls.verdict(study)
        print(found.kind, found.text, found.advice)

    Raises:
        InputError: the study's storage cannot be read.
    """
    from levit_search.significance import judged

    return judged(study.records(), study.attributes(), study.config)


def baselines(study: "Study") -> "list[BaselineRecord]":
    """The networks of timm that the study is compared with, in the order of ``compare``.

    Returns:
        Records with ``summary`` (such as ``timm/resnet10t``), ``values`` as those of a trial, empty
        where the network is not trained yet or failed, and then ``reason``.

    Raises:
        InputError: the study's storage cannot be read.
    """
    return study.baselines()


def trials(study: "Study") -> "pandas.DataFrame":
    """All finished trials, one a row by trial number, with the columns of ``trials.csv``.

    Figures are in plain units (``latency_ms``, ``top1_percent``, FLOPs, parameters); what was not
    measured is NaN. ``architecture`` reads ``width  depth  heads  key dimension``; the network
    itself and its learning curve are in ``study.records()``.

    Raises:
        InputError: the study's storage cannot be read.
    """
    import pandas

    from levit_search import table

    columns = table.columns(study.records(), verdict(study))
    texts = ("state", "id", "vs_best", "reason", "architecture")
    kinds: dict[str, object] = {name: float for name in columns if name not in texts}
    kinds |= {"trial": int, "reused_from": "Int64", "resumes": "Int64"}
    return pandas.DataFrame(columns).astype(kinds).set_index("trial")


def write_report(study: "Study", picked: Sequence[str] = ()) -> Path:
    """Write ``report.html`` into the study's folder: one page that opens offline.

    Args:
        study: may be in the middle of its search.
        picked: further networks to show in detail, each as :func:`pick` takes it.

    Returns:
        The file.

    Raises:
        InputError: no trial is complete, a pick is none, or the file cannot be written.
    """
    from levit_search import report

    return report.write_report(study, picked)


def pick(study: "Study", choice: str) -> "Record":
    """One record of a study: ``knee``, ``accurate``, ``fastest``, ``trial=N`` or
    ``latency_ms<=5``, the most accurate network within that bound.

    Raises:
        InputError: the choice is none of these, nothing satisfies it, or the knee is asked for of a
            study without a reference.
    """
    from levit_search.picking import pick as picked

    return picked(study, choice)


def write_export(
    study: "Study",
    choice: str = "knee",
    out: str | Path | None = None,
    options: "ExportOptions | None" = None,
) -> "Export":
    """Write a chosen network as a folder that runs without this package, and check it.

    Args:
        study: with the trained weights.
        choice: as :func:`pick` takes it.
        out: a folder that is not there, or empty; None is ``export/ID`` in the study's.
        options: what else is asked for, as with ``levit-search export``: training it again, further
            files, int8, no timing (:class:`levit_search.export.ExportOptions`).

    Returns:
        What was written, how far each file's logits are from the trained network's, its accuracy
        on ``val`` and ``test``, its latency measured again, and all that of its int8 form.

    Raises:
        InputError: the choice or an option is wrong, ``out`` is not empty, or the weights are gone.
        LevitSearchError: a written file is not the trained network, or cannot be quantized, and
            nothing was written; or its latency is not that of the study, or int8 loses more
            accuracy than is allowed, and all is there.
    """
    from levit_search import export

    record = export.pick(study, choice)
    options = options or export.ExportOptions()
    folder = export.default_folder(study, record, options) if out is None else Path(out)
    return export.export(study, record, folder, choice, options)


def load_model(study: "Study", record: "Record") -> "Model":
    """The network of a record with its trained weights, on the CPU, ready for inference.

    Returns:
        A module from images [B, C, H, W], as the data's ``val`` split has them, to logits
        [B, num_classes].

    Raises:
        InputError: the trial was not trained to its end, or its weights are gone.
    """
    from levit_search.model import build, load_weights

    weights = study.weights_of(record)
    assert record.architecture is not None
    model = build(record.architecture)
    load_weights(model, weights)
    return model.eval()


def _warn(message: str) -> None:
    warnings.warn(message, stacklevel=4)


@contextmanager
def _folder(out: str | Path | None) -> Iterator[Path]:
    """A folder to keep things in, or one that is removed afterwards."""
    import tempfile

    if out is None:
        with tempfile.TemporaryDirectory(prefix="levit-search-") as temporary:
            yield Path(temporary)
        return
    folder = Path(out)
    if (folder / "study.yaml").exists():
        raise InputError(f"{folder}: is a study, which only a search writes to; choose another out")
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    yield folder


@contextmanager
def _shown(is_shown: bool, group: str, name: str) -> "Iterator[Progress]":
    """Progress of one step on stderr, or nowhere."""
    from levit_search.progress import StepProgress, no_progress

    if not is_shown:
        yield no_progress
        return
    with StepProgress() as progress:
        progress.begin(group, 1)
        progress.step(name)
        yield progress.update
