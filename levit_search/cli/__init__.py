"""The command line: parse, call, print.

Only the standard library and typer are imported here and in the modules of the commands; each
command imports what it needs, so that ``--help`` answers at once and counting never waits for
torch.
"""

import errno
import os
import signal
import sys
import threading
import warnings
from pathlib import Path
from types import FrameType
from typing import Annotated, NoReturn, TextIO

import typer

from levit_search.cli import diagnostics, networks, pretraining, reproducing, searching, studies
from levit_search.cli.printing import say
from levit_search.errors import InputError, LevitSearchError, refused_by_disk
from levit_search.printable import escape_what_streams_lack
from levit_search.version import __version__

app = typer.Typer(
    help="Find the best LeViT-like vision transformer for a data set and a device.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
for _command in (
    searching.run,
    pretraining.supernet,
    searching.front,
    studies.restore,
    studies.report,
    studies.audit,
    studies.export,
    networks.show,
    networks.count,
    networks.probe,
    diagnostics.targets,
    networks.train,
    reproducing.reproduce,
    searching.data,
    searching.space,
    diagnostics.doctor,
):
    app.command()(_command)
app.add_typer(pretraining.teacher, name="teacher")


def main() -> None:
    """Run the command in ``sys.argv``; exit 0 done, 1 failed, 2 wrong input, 130 interrupted."""
    warnings.showwarning = _show_warning
    sys.unraisablehook = _ignore_error
    escape_what_streams_lack()
    try:
        # Whoever ends us this way means what Ctrl-C means, only at once.
        for name in ("SIGTERM", "SIGHUP"):
            number = getattr(signal, name, None)
            if number is not None and signal.getsignal(number) == signal.SIG_DFL:
                signal.signal(number, _interrupt)
        _check_working_directory()
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


def _check_working_directory() -> None:
    try:
        Path.cwd()
    except FileNotFoundError:
        raise InputError("the working directory is gone; change to another one") from None


class _Ended(KeyboardInterrupt):
    """Raised at a signal that asks for an end.

    One that is a plain KeyboardInterrupt, and is raised while text is executed (as named tuples do
    it when they are made), has Python end itself by SIGINT at its exit, though it was caught.
    """


def _interrupt(_number: int, _frame: FrameType | None) -> NoReturn:
    raise _Ended


_ignore_any_error = sys.unraisablehook


def _ignore_error(ignored: "sys.UnraisableHookArgs") -> None:
    """Ask for the end again where Python ignored that, as it does within callbacks of its own."""
    if isinstance(ignored.exc_value, _Ended):
        # From another thread: raised here, it would be ignored like the first one.
        threading.Timer(0.01, os.kill, (os.getpid(), signal.SIGTERM)).start()
    else:
        _ignore_any_error(ignored)


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
