"""The command line: parse, call, print.

Only the standard library and typer are imported here and in the modules of the commands; each
command imports what it needs, so that ``--help`` answers at once and counting never waits for
torch.
"""

import errno
import os
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, TextIO

import typer
from typer.core import TyperGroup

from levit_search.cli import networks, searching, studies, training
from levit_search.cli.terminal import end_at_signals, say
from levit_search.errors import InputError, LevitSearchError, refused_by_disk
from levit_search.escaping import escape_what_streams_lack
from levit_search.version import __version__


class _InOrder(TyperGroup):
    """Lists commands in the order in which people need them, that of :data:`_COMMANDS`."""

    def list_commands(self, ctx: Any) -> list[str]:
        del ctx
        return [name for name in _COMMANDS if name in self.commands]


app = typer.Typer(
    help="Find the best LeViT-like vision transformer for a data set and a device.",
    cls=_InOrder,
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
_COMMANDS: "dict[str, Callable[..., None] | typer.Typer]" = {
    "run": searching.run,
    "front": searching.front,
    "report": studies.report,
    "export": studies.export,
    "audit": studies.audit,
    "count": networks.count,
    "show": networks.show,
    "probe": networks.probe,
    "targets": networks.targets,
    "train": training.train,
    "teacher": training.teacher,
    "supernet": training.supernet,
    "reproduce": training.reproduce,
    "space": searching.space,
    "data": searching.data,
    "doctor": studies.doctor,
    "restore": studies.restore,
}
for _name, _command in _COMMANDS.items():
    if isinstance(_command, typer.Typer):
        app.add_typer(_command, name=_name)
    else:
        app.command(_name)(_command)


def main() -> None:
    """Run the command in ``sys.argv``; exit 0 done, 1 failed, 2 wrong input, 130 interrupted."""
    warnings.showwarning = _show_warning
    escape_what_streams_lack()
    try:
        end_at_signals()
        try:
            Path.cwd()
        except FileNotFoundError:
            raise InputError("the working directory is gone; change to another one") from None
        code = app(standalone_mode=False) or 0
        sys.stdout.flush()
    except LevitSearchError as error:
        if "--debug" in sys.argv:
            raise
        say(f"levit-search: {error}")
        code = error.exit_code
    except typer.TyperException as error:
        say(f"levit-search: {error.format_message()}")
        code = 2
    except (typer.Abort, KeyboardInterrupt):
        say("levit-search: interrupted")
        code = 130
    except BrokenPipeError:  # whoever read our output has enough of it
        code = _deaf()
    except OSError as error:
        refusal = refused_by_disk(error)
        is_wrong_path = error.errno in _WRONG_PATHS and error.filename is not None
        if (refusal is None and not is_wrong_path) or "--debug" in sys.argv:
            raise
        say(f"levit-search: {refusal or f'{error.filename}: {error.strerror}'}")
        code = 2 if is_wrong_path else _deaf() if error.filename is None else 1
    except UnicodeEncodeError as error:  # a path, and a library that takes none but in UTF-8
        if error.reason != "surrogates not allowed" or "--debug" in sys.argv:
            raise
        say(f"levit-search: {error.object[:500]}: is no UTF-8; rename it, or name it by a link")
        code = 2
    sys.exit(code)


_WRONG_PATHS = {errno.ENAMETOOLONG, errno.ELOOP, errno.ENOTDIR, errno.EISDIR, errno.EILSEQ}


def _deaf() -> int:
    """End without another try to write what standard output refused."""
    with open(os.devnull, "w") as nothing:
        os.dup2(nothing.fileno(), sys.stdout.fileno())
    return 1


_show_any_warning = warnings.showwarning


def _show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    """Ours are meant for the user and need no place in the code."""
    if Path(filename).is_relative_to(Path(__file__).parents[1]):
        say(f"levit-search: {message}")
    else:
        _show_any_warning(message, category, filename, lineno, file, line)


@app.callback()
def _options(
    debug: Annotated[bool, typer.Option(help="Show a traceback on errors.")] = False,
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    del debug  # read by main, which catches the errors
    if version:
        print(__version__)
        raise typer.Exit
