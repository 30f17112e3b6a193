"""What comes before a search: everything is checked that can be without work of its own."""

from collections.abc import Callable
from pathlib import Path

from levit_search import data
from levit_search.errors import InputError
from levit_search.latency.ray_connection import knock
from levit_search.search.preparation import start_values
from levit_search.search.takeover import check_source
from levit_search.space import Space, envelope_of
from levit_search.study import Study, StudyConfig


def begin(
    config: StudyConfig,
    folder: Path | None,
    command: list[str],
    take_from: Path | None = None,
    where: str = "space",
    anew: bool = False,
    told: Callable[[str], None] = lambda _: None,
) -> Study:
    """The study to search: a new one, or the one in ``folder`` that is to go on.

    Args:
        config: what to search.
        folder: of the study; None is ``studies/NAME``.
        command: that asked for it, to be noted.
        take_from: the folder of another study, whose finished trials are to be taken over.
        where: the space file, for messages.
        anew: begin the study again; what is there is kept beside it.
        told: told what is being done, where it takes long.

    Raises:
        InputError: the data, the space, the other study or the folder is not fit for it. Nothing
            was written.
    """
    found = data.looked_at(config.data, told)
    config = config.model_copy(update={"data": found})
    checked_space(config, where)
    folder = folder or Path("studies") / config.name
    if take_from is not None:
        check_source(take_from, Study(folder, config))
    if config.engine.kind == "ray" and config.engine.address is not None:
        check_address(config.engine.address)
    if anew:
        Study.put_aside(folder)
    study = Study.create(folder, config, command)
    if found.is_looked_at or found.name in ("digits", "fashion-mnist"):
        study.keep_survey(data.survey(found, told))
    return study


def check_address(address: str) -> None:
    """Make sure that something listens where a Ray cluster should be.

    Raises:
        InputError: nothing does.
    """
    try:
        knock(address)
    except OSError as error:
        raise InputError(f"no Ray cluster at {address!r} ({error.strerror or error})") from None


def checked_space(config: StudyConfig, where: str = "space") -> Space:
    """The space of a configuration, whose data is there.

    Raises:
        InputError: the data is missing or has other sizes, the template is malformed, no network of
            the space keeps its limits, its networks cannot share weights as they are to, or those
            to try first are none of them.
    """
    config.check_data(where)
    space = config.space(where)
    space.check_feasible()
    if config.inherits:
        envelope_of(space, where)
    start_values(config, space, where)
    return space
