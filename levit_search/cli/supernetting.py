"""The command that trains the weights that a space's networks share."""

import sys
import textwrap
from typing import TYPE_CHECKING, Annotated, Any

import typer

from levit_search.cli.options import Json, NewStudyFolder, Settings
from levit_search.cli.printing import figures_table, print_json, print_table, say, tell
from levit_search.printable import quoted

if TYPE_CHECKING:
    from levit_search.progress import StepProgress
    from levit_search.study import Study


def supernet(
    space: Annotated[str, typer.Argument(metavar="SPACE.yaml", help="Of the family levit.")],
    study: NewStudyFolder = None,
    epochs: Annotated[
        int | None,
        typer.Option(min=1, max=10**6, help="How many [default: a candidate's]."),
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Of the weights, the views and draws.")] = None,
    settings: Settings = None,
    as_json: Json = False,
) -> None:
    """Train one set of weights for all networks of a space; on one that is begun, go on.

    It is kept in the study folder, where `run` with `--set accuracy=supernet` takes the accuracy of
    its candidates from it.
    """
    from levit_search.progress import StepProgress
    from levit_search.search import begin
    from levit_search.study import parse_settings, read_config, space_file
    from levit_search.supernet import supernet_folder

    given = {"supernet.epochs": epochs, "search.seed": seed}
    changes = {"accuracy": "supernet", **parse_settings(settings or [])}
    changes |= {key: value for key, value in given.items() if value is not None}
    path = space_file(space)
    opened = begin(read_config(path, changes), study, sys.argv, None, str(path), say=say)
    try:
        with opened.lock(), StepProgress() as shown:
            card = _trained(opened, shown)
    except KeyboardInterrupt:
        say(f"\nInterrupted. Finished epochs are in {opened.folder}; the same command goes on.")
        raise typer.Exit(130) from None
    if as_json:
        print_json({"dir": str(supernet_folder(opened.folder)), **card})
    else:
        _print(card, opened, space)


def _trained(study: "Study", shown: "StepProgress") -> dict[str, Any]:
    from levit_search.batches import open_batches
    from levit_search.distill import TeacherAnswers, obtain_teacher
    from levit_search.supernet import SupernetEpoch, obtain_supernet
    from levit_search.train import Epoch

    config = study.config
    batches = open_batches(config.data)
    epochs = config.supernet.recipe(config.train).epochs

    def teacher() -> TeacherAnswers | None:
        teaching = config.teaching
        if teaching is None:
            return None
        shown.begin("teacher", 1)
        shown.step(teaching.name)

        def told(epoch: Epoch) -> None:
            text = f"trained, val {epoch.val_top1_percent:.1f} %"
            shown.told(text, epoch.epoch / teaching.recipe.epochs)

        answers, _ = obtain_teacher(
            teaching,
            config.data,
            batches,
            config.train,
            study.folder / "teacher",
            config.search.seed,
            told,
            say,
        )
        shown.begin("supernet", 1)
        shown.step(config.name)
        return answers.lasting(epochs)

    text = ""

    def report(epoch: Epoch) -> None:
        nonlocal text
        assert isinstance(epoch, SupernetEpoch)
        text = f"epoch {epoch.epoch} of {epochs}, {epoch.told()}"
        shown.told(text, epoch.epoch / epochs)

    shown.begin("supernet", 1)
    shown.step(config.name)
    return obtain_supernet(
        config, batches, teacher, study.folder, report, lambda done: shown.told(text, done)
    ).card


def _print(card: dict[str, Any], study: "Study", space: str) -> None:
    title = f"Supernet of {study.config.name}: {card['params']:,} weights"
    table = figures_table(title, ["", "inherited % of val", "MFLOPs", "params M", "architecture"])
    last = card["curve"][-1]
    for name, key in (("largest", "val_top1_percent"), ("smallest", "smallest_top1_percent")):
        network = card[name]
        figures = (
            f"{last[key]:.2f}",
            f"{network['flops'] / 1e6:.4g}",
            f"{network['params'] / 1e6:.3g}",
        )
        table.add_row(name, *figures, network["summary"])
    print_table(table)
    tell(
        f"\n{card['epochs']} epochs, {1 + 1 + card['members']} networks a batch, "
        f"{card['seconds']:.0f} s. Files: {study.folder}/supernet. Next:"
    )
    command = f"levit-search run {quoted(space)} --study {quoted(str(study.folder))}"
    tell(textwrap.indent(f"{command} --set accuracy=supernet --trials 1000", "  "))
