"""Commands around a search: its space, the search itself and its front."""

import re
import sys
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from levit_search.cli.terminal import (
    Interruption,
    Json,
    NewStudyFolder,
    Settings,
    StudyFolder,
    interruptible,
    print_figures,
    print_json,
    print_table,
    say,
    tell,
)
from levit_search.errors import InputError
from levit_search.escaping import quoted

if TYPE_CHECKING:
    from collections.abc import Sequence

    from levit_search.search import Summary
    from levit_search.significance import Verdict
    from levit_search.study import BaselineRecord, Record


def run(
    space: Annotated[str, typer.Argument(metavar="SPACE.yaml", help="What may vary, and how.")],
    study: NewStudyFolder = None,
    trials: Annotated[int | None, typer.Option(help="Networks to train in all.")] = None,
    time: Annotated[
        str | None,
        typer.Option(
            metavar="TIME", help="Start none after 90s, 30m or 1h30; without --trials, any number."
        ),
    ] = None,
    engine: Annotated[
        str | None, typer.Option(help="local (worker processes) or ray (Ray Tune).")
    ] = None,
    jobs: Annotated[int | None, typer.Option(help="Networks to evaluate at once.")] = None,
    address: Annotated[
        str | None, typer.Option(help="Of a running Ray cluster; implies --engine ray.")
    ] = None,
    take_from: Annotated[
        Path | None,
        typer.Option("--from", metavar="STUDY", help="Take over its finished trials that fit."),
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Of the sampler and of training.")] = None,
    tensorboard: Annotated[
        bool, typer.Option("--tensorboard", help="Write its events to STUDY/tensorboard.")
    ] = False,
    anew: Annotated[
        bool,
        typer.Option("--anew", help="Begin the study again; what there is, is kept beside it."),
    ] = False,
    settings: Settings = None,
    as_json: Json = False,
) -> None:
    """Search a space; with a study that is there, go on.

    Ends with 1 where no network is better than guessing; what was found is kept all the same.
    """
    from importlib.util import find_spec

    from levit_search.search import Callback, begin, search
    from levit_search.search.callbacks import SearchProgress
    from levit_search.search.tensorboard import TensorBoardCallback, command, require_tensorboard
    from levit_search.study import parse_settings, read_config, space_file

    if tensorboard:
        require_tensorboard()
    changes = parse_settings(settings or [])
    given = {
        "search.trials": trials,
        "search.time_s": _seconds(time),
        "search.seed": seed,
        "engine.kind": engine or ("ray" if address is not None else None),
        "engine.jobs": jobs,
        "engine.address": address,
    }
    if engine == "local" and address is not None:
        raise InputError(f"--address {address}: is a Ray cluster's; use --engine ray")
    changes |= {key: value for key, value in given.items() if value is not None}
    if time is not None:
        changes.setdefault("search.trials", None)
    path = space_file(space)
    opened = begin(read_config(path, changes), study, sys.argv, take_from, str(path), anew, say)
    missing = "" if find_spec("optuna_dashboard") else "  (pip install 'levit-search[dashboard]')"
    say(f"Live page: {opened.place.dashboard_command()}{missing}")
    if tensorboard:
        say(f"TensorBoard: {command(opened)}")
    goes_on = f". What was finished is in {opened.folder}; the same command goes on."
    with interruptible(goes_on):
        with Interruption() as interruption, SearchProgress(opened) as progress:
            callbacks: list[Callback] = [progress]
            if tensorboard:
                callbacks.append(TensorBoardCallback(opened))
            summary = search(
                opened, callbacks, take_from, is_asked_to_stop=lambda: interruption.is_asked
            )
        from levit_search.report import report_of_run  # draws, which a search does not wait for

        page = report_of_run(opened, say)
        if page is not None:
            say(f"Report: {page}")
    if summary.is_interrupted:
        say(f"Interrupted{goes_on}")
        raise typer.Exit(130)
    if as_json:
        from levit_search import table

        verdict, choice = summary.verdict, summary.teacher_choice
        baselines = [table.baseline_as_json(each, verdict) for each in summary.baselines]
        document = {
            "study": summary.study,
            "trials": summary.trials,
            "seconds": round(summary.seconds, 3),
            "hypervolume": summary.hypervolume,
            "verdict": verdict.as_json(),
            "front": [table.as_json(record, verdict) for record in summary.front],
            **({} if choice is None else {"teacher_choice": choice}),
            **({"baselines": baselines} if baselines else {}),
        }
        print_json(document)
    else:
        _print_summary(summary, opened.config.objectives, page)
    if summary.verdict.kind == "guessing":
        raise typer.Exit(1)


def _print_front(
    study: Path | str,
    best: "list[Record]",
    objectives: Any,
    verdict: "Verdict",
    baselines: "Sequence[BaselineRecord]",
) -> None:
    """What the accuracies are worth if that is little, the table, and what stands beside it."""
    from levit_search import table

    for line in _verdict_lines(verdict):
        tell(line)
    title = f"Pareto front of {study}: {len(best)} network{'' if len(best) == 1 else 's'}"
    print_table(table.terminal(best, objectives, title, verdict, baselines))
    legends = [verdict.legend(), table.latency_legend(best, objectives)]
    for legend in filter(None, [table.beside_baselines(best, baselines, objectives), *legends]):
        tell(textwrap.fill(legend, 100))


def _verdict_lines(verdict: "Verdict") -> list[str]:
    lines = textwrap.wrap(verdict.text, 100)
    if verdict.advice:
        lines.append("What to try, each in another study (--study):")
        lines += [
            textwrap.fill(f"  {each}", 100, subsequent_indent="    ") for each in verdict.advice
        ]
    return [*lines, ""] if lines else []


def _print_summary(summary: "Summary", objectives: Any, page: Path | None) -> None:
    front = summary.front
    _print_front(summary.study, front, objectives, summary.verdict, summary.baselines)
    kinds = {
        "evaluated": "evaluated",
        "stopped": "of them stopped at a rung",
        "failed": "failed",
        "reused": "known already",
        "infeasible": "infeasible",
        "taken": "taken over",
    }
    trials, study = summary.trials, quoted(summary.study)
    counts = ", ".join(f"{trials[key]} {kind}" for key, kind in kinds.items() if trials[key])
    if summary.teacher_choice is not None:
        text = summary.teacher_choice["text"]
        tell("\n" + textwrap.fill(f"{text[0].upper()}{text[1:]}.", 100))
    tell(f"\n{counts} in {summary.seconds:.0f} s; stopped because {summary.stopped_because}.")
    tell(f"Hypervolume {summary.hypervolume:.4f}. Files: {summary.study}/trials.csv, front.csv,")
    report = "report.html, " if page is not None else ""
    tell(f"{report}study.yaml, environment.json, checkpoints/. Next:")
    tell(f"  levit-search front {study}")
    tell(f"  levit-search report {study} --open")
    tell(f"  levit-search export {study} --pick knee")


def data(
    source: Annotated[
        str, typer.Argument(metavar="DIR|NAME", help="A folder of images, or a data set's name.")
    ],
    settings: Settings = None,
    as_json: Json = False,
) -> None:
    """Show what is in a data set and how it is read.

    Pictures, classes, sizes, modes, what cannot be read, and pictures that are there twice.
    """
    from levit_search.configuration import validated
    from levit_search.data import DataConfig, check, survey_of
    from levit_search.study import parse_settings

    is_folder = Path(source).is_dir()
    if not is_folder and (Path(source).exists() or Path(source).parent.is_absolute()):
        raise InputError(f"{source}: is no folder; expected one of images, or a data set's name")
    given = {"name": source}
    if is_folder:
        given = {"name": "folder", "root": str(Path(source).absolute())}
    for key, value in parse_settings(settings or []).items():
        if not key.startswith("data."):
            raise InputError(f"--set {key}: this command knows keys of data alone")
        given[key.removeprefix("data.")] = value
    config = validated(DataConfig, given, "data")
    found = survey_of(config, lambda text, _: say(text))
    if as_json:
        print_json(found.model_dump(mode="json"))
    else:
        tell("\n".join(found.lines()))
    check(found, config)


def front(
    study: StudyFolder,
    format: Annotated[str, typer.Option(help="table, csv, json or markdown.")] = "table",
) -> None:
    """Print a study's Pareto front and how sure it is.

    Networks to compare with come after it, in JSON with null as their trial; csv has none. Where
    the output is for programs the sentences are on standard error; the exit code is 0 either way.
    """
    from levit_search import table
    from levit_search.errors import UnknownNameError
    from levit_search.significance import judged
    from levit_search.study import Study

    formats = ("table", "csv", "json", "markdown")
    if format not in formats:
        raise UnknownNameError("format", format, formats)
    opened = Study.open(study)
    objectives, records = opened.config.objectives, opened.records()
    best = table.front(records, objectives)
    verdict, baselines = judged(records, opened.attributes(), opened.config), opened.baselines()
    beside = textwrap.wrap(table.beside_baselines(best, baselines, objectives), 100)
    for line in [*_verdict_lines(verdict), *beside] if format != "table" else ():
        say(line)
    match format:
        case "csv":
            tell(table.as_csv(best, verdict), end="")
        case "json":
            rows = [table.as_json(record, verdict) for record in best]
            print_json(rows + [table.baseline_as_json(each, verdict) for each in baselines])
        case "markdown":
            tell(table.markdown(best, objectives, verdict, baselines), end="")
        case _:
            _print_front(study, best, objectives, verdict, baselines)


def space(
    space: Annotated[str, typer.Argument(metavar="SPACE.yaml", help="A space file.")],
    sample: Annotated[int, typer.Option(min=1, help="Networks to draw.")] = 2000,
    settings: Settings = None,
    as_json: Json = False,
) -> None:
    """Show what a space holds: slots, size, costs of random networks."""
    from levit_search import architecture
    from levit_search.cost import Cost
    from levit_search.data import describe
    from levit_search.space import quantiles
    from levit_search.study import parse_settings, read_config, space_file

    path = space_file(space)
    config = read_config(path, parse_settings(settings or []))
    if not {"in_channels", "num_classes"} <= config.architecture.keys():
        try:
            describe(config.data)
        except InputError as error:
            say(f"levit-search: {error}; shown for 3 channels and 1000 classes")
    compiled = config.space(str(path))
    survey = compiled.survey(sample)
    columns = zip(*survey.costs, strict=True)  # none where none is feasible
    costs = {name: quantiles(values) for name, values in zip(Cost._fields, columns, strict=False)}
    known = architecture.published_for(**compiled.sizes)
    inside = [name for name, network in known.items() if compiled.encode(network) is not None]
    slots = {slot.name: list(slot.values) for slot in compiled.slots}
    if as_json:
        print_json(
            {
                "name": config.name,
                "slots": slots,
                "size": compiled.size(),
                "samples": sample,
                "feasible_share": survey.feasible / sample,
                "infeasible": survey.reasons,
                "costs": costs,
                "published": inside,
            }
        )
        return
    shown = [(name, ", ".join(map(str, values))) for name, values in slots.items()]
    print_figures(f"{config.name}: {compiled.size():.3g} networks", ["slot", "values"], shown)
    share = 100 * survey.feasible / sample
    tell(f"\n{share:.1f} % of {sample} random networks are valid and within the limits.")
    for reason, times in list(survey.reasons.items())[:5]:
        tell(f"  {100 * times / sample:.1f} %: {reason}")
    if config.limits.latency_ms is not None:
        tell(f"  (latency_ms <= {config.limits.latency_ms:g} is checked by probing, not here)")
    if survey.feasible:
        rows = [
            (name, *(f"{value:,.0f}" for value in found.values())) for name, found in costs.items()
        ]
        print_figures("\nThe feasible ones", ["", "min", "q25", "median", "q75", "max"], rows)
    tell()
    by_id: dict[str, list[str]] = {}  # names of one and the same network stand together
    for name in inside:
        by_id.setdefault(architecture.published(name).id, []).append(name)
    published = ", ".join(" = ".join(equal) for equal in by_id.values()) or "none"
    tell(textwrap.fill(f"Published networks inside: {published}", 100, subsequent_indent="  "))


_WHOLE_TIME = re.compile(r"(?:(\d{1,6})h)?(?:(\d{1,8})m)?(?:(\d{1,9})s)?", re.ASCII)
_PART_OF_TIME = re.compile(r"(\d{1,9}\.\d{1,9})([hms]?)", re.ASCII)


def _seconds(text: str | None) -> float | None:
    """A time such as ``30m``, ``1.5h`` or ``1h30`` (an hour and 30 minutes) in seconds."""
    if text is None:
        return None
    given = text.strip()
    if part := _PART_OF_TIME.fullmatch(given):
        seconds = float(part[1]) * {"h": 3600, "m": 60}.get(part[2], 1)
    else:
        # What the last number leaves out is the unit below the one before it.
        for pattern, unit in ((r"(h[0-5]?\d)", "m"), (r"(m[0-5]?\d|^\d+)", "s")):
            given = re.sub(rf"{pattern}$", rf"\1{unit}", given, flags=re.ASCII)
        whole = _WHOLE_TIME.fullmatch(given)
        hours, minutes, rest = (int(each or 0) for each in whole.groups()) if whole else (0, 0, 0)
        seconds = 3600.0 * hours + 60 * minutes + rest
    if seconds <= 0:
        raise InputError(
            f"--time {text}: expected a time such as 90s, 30m or 2h30m; also 90, 1h30 (an hour and "
            "30 minutes), 2m30 and 1.5h"
        )
    return seconds
