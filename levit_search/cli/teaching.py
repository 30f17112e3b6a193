"""The commands on teachers: what one is worth, and its answers ahead of time."""

import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from levit_search.cli.options import Json, Settings
from levit_search.cli.printing import print_json, say, tell
from levit_search.errors import InputError

if TYPE_CHECKING:
    from levit_search.progress import StepProgress
    from levit_search.recipe import TeacherConfig
    from levit_search.study import StudyConfig
    from levit_search.train import Epoch

teacher = typer.Typer(help="Ask the teacher of a space ahead of time.", no_args_is_help=True)

SpaceFile = Annotated[str, typer.Argument(metavar="SPACE.yaml", help="With a teacher and data.")]


@teacher.command()
def fill(
    space: SpaceFile,
    epochs: Annotated[
        int | None, typer.Option(min=1, max=10**6, help="How many [default: the recipe's].")
    ] = None,
    settings: Settings = None,
    as_json: Json = False,
) -> None:
    """Keep the teacher's answers for all views of a recipe; training then only looks them up.

    Only what is missing is asked for: an interrupted command goes on when it is given again, and
    several may run at once.
    """
    from levit_search.batches import open_batches
    from levit_search.distill import fill as fill_store
    from levit_search.distill import obtain_teacher
    from levit_search.distill.disk import megabytes
    from levit_search.progress import StepProgress, within

    config, chosen = _configured(space, settings)
    if not chosen.cache:
        raise InputError("teacher.cache: is false, so that no answers are kept; set it to true")
    recipe, seed = config.train, config.search.seed
    count = epochs or recipe.epochs
    try:
        batches = open_batches(config.data)
        with StepProgress() as shown:
            shown.begin("teacher", 1)
            shown.step(chosen.name)
            report = _reported(shown, chosen.recipe.epochs)
            answers, card = obtain_teacher(
                *(chosen, config.data, batches, recipe, None, seed, report, say),
                progress=within("features", shown.update),
            )
            store = answers.store(seed)
            assert store is not None
            planned, missing = store.planned_bytes(count), store.missing_bytes(count)
            say(f"{count} epochs: {megabytes(planned)} in {store.folder}, {megabytes(missing)} new")
            shown.begin("epoch", count)

            def progress(text: str, fraction: float | None) -> None:
                if fraction == 0.0:
                    shown.step(text)
                else:
                    shown.update(text, fraction)

            filled = fill_store(answers, batches, recipe, seed, count, progress)
    except KeyboardInterrupt:
        say("\nInterrupted. What was answered is kept; the same command goes on.")
        raise typer.Exit(130) from None
    if as_json:
        print_json({"teacher": card, **filled.as_json()})
        return
    tell(_told(card))
    tell(
        f"{filled.epochs} epochs, {filled.views:,} views, {megabytes(filled.bytes)} in "
        f"{filled.folder}"
    )
    speed = f", {filled.images_per_second:.0f} images/s" if filled.new_views else ""
    tell(f"{filled.new_views:,} views were new: {filled.seconds:.1f} s{speed}")


def _configured(space: str, settings: list[str] | None) -> "tuple[StudyConfig, TeacherConfig]":
    from levit_search.study import parse_settings, read_config, space_file

    path = space_file(space)
    config = read_config(path, parse_settings(settings or []))
    config.check_planned()
    if config.teacher is None:
        raise InputError(f"{path}: has no teacher; --set teacher.name=NAME gives it one")
    if config.train.distillation == "none":
        raise InputError(
            f"{path}: train.distillation is none; --set train.distillation=hard, or soft, has a "
            "use for a teacher"
        )
    return config, config.teacher


def _reported(shown: "StepProgress", epochs: int) -> Any:
    def report(epoch: "Epoch") -> None:
        shown.update(f"trained, {epoch.summary()}", epoch.epoch / epochs)

    return report


@teacher.command()
def show(space: SpaceFile, settings: Settings = None, as_json: Json = False) -> None:
    """Show the teacher's card, and which of its answers are kept; nothing is trained or asked."""
    from levit_search.batches import open_batches
    from levit_search.distill import kept_card, kept_store

    config, chosen = _configured(space, settings)
    recipe, seed = config.train, config.search.seed
    batches = open_batches(config.data)
    card = kept_card(chosen, batches, seed)
    store = None
    if card is not None and chosen.cache:
        store = kept_store(card["id"], chosen, config.data, batches, recipe, seed)
    state = store.state(recipe.epochs) if store is not None else None
    if as_json:
        print_json({"teacher": card, "answers": state})
        return
    if card is None:
        tell(
            f"{chosen.name} (weights: {chosen.weights}) is not there yet; `teacher fill` or a "
            "search makes it."
        )
        return
    tell(_told(card))
    tell(_told_answers(state) if state is not None else "Its answers are not kept.")


def _told_answers(state: dict[str, Any]) -> str:
    from levit_search.distill.disk import megabytes

    whole = sum(kept == state["steps"] for kept in state["batches_kept"])
    begun = sum(0 < kept < state["steps"] for kept in state["batches_kept"])
    missing = megabytes(state["missing_bytes"])
    lines = (
        f"Its {state['distillation']} answers: {whole} of {state['epochs']} epochs are complete, "
        f"{begun} begun; all take {megabytes(state['planned_bytes'])}, {missing} of them not yet "
        "on the disk."
    )
    return f"{textwrap.fill(lines, 100)}\n{state['folder']}"


def _told(card: dict[str, Any]) -> str:
    """A card in a line or two."""
    from levit_search.image_size import size_text

    how = {"train": "trained here", "pretrained": "pretrained"}.get(
        card["weights"], f"from {Path(card['weights']).name}"
    )
    enlarged = ""
    if "adapt" in card:
        what = {
            "head": "a new head",
            "all": "a new head, all of it finetuned",
            "own": "its own classes",
        }
        how += f" with {what[card['adapt']]}"
        enlarged = f", shown to it at {size_text(card['image_size'])} px"
    reached = card["val_top1_percent"]
    accuracy = "no accuracy" if reached is None else f"{reached:.2f} %"
    lines = (
        f"Teacher {card['name']} ({card['id']}), {how}, {card['params']:,} parameters: "
        f"{accuracy} on val of {card['data']['name']} at "
        f"{size_text(card['data']['image_size'])} px{enlarged}."
    )
    return textwrap.fill(lines, 100, break_long_words=False, break_on_hyphens=False)
