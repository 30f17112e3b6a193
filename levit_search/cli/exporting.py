"""The command that hands a network over."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from levit_search.cli.options import DataFolder, Json, StudyFolder
from levit_search.cli.printing import print_json, say, tell
from levit_search.errors import InputError
from levit_search.printable import quoted

if TYPE_CHECKING:
    from levit_search.export import Export, Retraining


def export(
    study: StudyFolder,
    pick: Annotated[
        str,
        typer.Option(
            help="knee, accurate, fastest, trial=N, or bounds: 'latency_ms<=5,flops<=1G'."
        ),
    ] = "knee",
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Where to [default: STUDY/export/ID].")
    ] = None,
    retrain: Annotated[
        bool, typer.Option("--retrain", help="Train it again from scratch first, for --epochs.")
    ] = False,
    epochs: Annotated[int | None, typer.Option(min=1, help="Epochs to train it again.")] = None,
    seeds: Annotated[
        int | None, typer.Option(min=1, max=100, help="Times to train it again [default: 1].")
    ] = None,
    recipe: Annotated[
        str | None, typer.Option(help="short or levit, to train again by [default: the study's].")
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="KEY=VALUE", help="Of data, train or teacher, to train again by."
        ),
    ] = None,
    also: Annotated[
        list[str] | None,
        typer.Option("--also", metavar="FILE", help="openvino or torch-export (repeatable)."),
    ] = None,
    probe: Annotated[
        bool, typer.Option("--probe/--no-probe", help="Time model.onnx again on the targets.")
    ] = True,
    force: Annotated[bool, typer.Option("--force", help="Write over what is in DIR.")] = False,
    data: DataFolder = None,
    as_json: Json = False,
) -> None:
    """Write a chosen network as a folder that runs without this package.

    A readable torch module, ONNX, weights, a timm checkpoint where timm can express it, a script
    that classifies images, and a model card. Each file is read in a process of its own and compared
    with the trained network on real images, and model.onnx is timed again.
    """
    from levit_search import export as exports
    from levit_search.progress import StepProgress
    from levit_search.study import Study, parse_settings

    asked = _retraining(retrain, epochs, seeds, recipe, parse_settings(settings or []))
    opened = Study.open(study).with_data(data)
    record = exports.pick(opened, pick)
    network = record.architecture
    assert network is not None
    wishes = exports.Wishes(asked, tuple(also or ()), probe, force)
    folder = out or exports.default_folder(opened, record, wishes)
    try:
        with opened.reading_data(), StepProgress() as progress:
            progress.begin("export", 1)
            progress.step(f"trial {record.trial}")
            written = exports.export(opened, record, folder, pick, wishes, progress.update)
    except KeyboardInterrupt:
        goes_on = "; the same command goes on" if retrain else ""
        say(f"\nInterrupted; {folder} was not written{goes_on}.")
        raise typer.Exit(130) from None
    if as_json:
        print_json(written.as_json())
    else:
        _print_export(written, f"Trial {record.trial} ({network.summary()})")


def _retraining(
    retrain: bool,
    epochs: int | None,
    seeds: int | None,
    recipe: str | None,
    changes: dict[str, Any],
) -> "Retraining | None":
    if retrain:
        if epochs is None:
            raise InputError("--retrain: needs --epochs N")
        from levit_search.export import Retraining

        return Retraining(epochs, seeds or 1, recipe, changes)
    given = {"--epochs": epochs, "--seeds": seeds, "--recipe": recipe, "--set": changes or None}
    for option, value in given.items():
        if value is not None:
            raise InputError(f"{option}: is for --retrain")
    return None


def _print_export(written: "Export", network: str) -> None:
    from levit_search.proportion import accuracy_text

    tell(f"{network} written to {written.dir}:")
    for name in written.files:
        found = written.parity.get(name.rstrip("/"))
        note = "" if found is None else f"logits within {found:.1e}" if found else "same logits"
        tell(f"  {name:22}{note}".rstrip())
    figures = written.as_json()
    accuracies = [
        f"{split} {accuracy_text(figures[f'{split}_top1_percent'], figures[f'{split}_images'])}"
        for split in ("val", "test")
    ]
    tell(f"top-1: {', '.join(accuracies)}")
    for again in written.probed_again:
        if again["now"] is None:
            tell(f"{again['figure']}: not measured again ({again['reason']})")
            continue
        now = f"{again['now']['latency_ms']:.4g}, {again['compared']}"
        tell(f"{again['figure']} of {again['timed']}: {now}")
    if written.retrained is not None and len(written.retrained["seeds"]) > 1:
        percents = ", ".join(f"{each:.2f}" for each in written.retrained["test_top1_percent"])
        tell(
            f"test by seed: {percents}; the weights are those of seed "
            f"{written.retrained['seed']}, the best on val"
        )
    tell(f"Next: python {quoted(str(Path(written.dir) / 'predict.py'))} IMAGE")
