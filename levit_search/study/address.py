"""How the address of a storage is spelt: for Optuna, for a shell, and for people to see."""

import os
import re
from collections.abc import Callable
from shlex import quote as quoted
from typing import TYPE_CHECKING
from urllib.parse import quote

from levit_search.errors import InputError

if TYPE_CHECKING:
    from sqlalchemy import URL


_OURS = "LEVIT_SEARCH_"


def masked(text: str) -> str:
    """A text without the passwords of the addresses in it; ``${NAME}`` may be seen."""
    text = re.sub(r"(://[^:@/\s]*):(?!\$\{\w+\}@)\S*@", r"\1:***@", text)
    return re.sub(r"([?&]\w*passw(?:or)?d=)(?!\$\{\w+\}(?:&|$))[^&\s]*", r"\1***", text)


def filled(text: str, spell: Callable[[str], str]) -> str:
    """The text with environment variables put in, each spelt for where it stands.

    Raises:
        InputError: there is no such variable, or it is none of ours: a study from anybody could
            have any other sent to a server of theirs.
    """

    def value(found: re.Match[str]) -> str:
        name = found[1]
        if not name.startswith(_OURS):
            raise InputError(
                f"storage {masked(text)}: {name} does not begin with {_OURS}, and no other "
                f"variable is put into an address; call it {_OURS}{name}"
            )
        if name not in os.environ:
            raise InputError(f"storage {masked(text)}: the environment has no {name}")
        return spell(os.environ[name])

    return re.sub(r"\$\{(\w+)\}", value, text)


def spelt(url: "URL") -> str:
    return _braced(url.render_as_string(hide_password=False))


def _braced(text: str) -> str:
    """As Optuna takes it, to which braces are places to fill in."""
    return text.replace("{", "{{").replace("}", "}}")


def quoted_but_variables(text: str) -> str:
    """An argument for a shell, which fills in ``${NAME}`` itself.

    What an address could not hold as it stands is masked.
    """
    parts = re.split(r"(\$\{\w+\})", text)
    for place, part in enumerate(parts):
        if place % 2 == 0:
            parts[place] = re.sub(r'([\\"$`])', r"\\\1", _braced(part))
        elif (value := os.environ.get(part[2:-1], "")) != quote(value, safe=""):
            parts[place] = "***"
    return f'"{"".join(parts)}"' if len(parts) > 1 else quoted(_braced(text))
