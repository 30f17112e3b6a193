"""Source under what is known of it: what goes, and that all else stays as it is written."""

import pytest

from levit_search.export.partial_evaluation import specialized

CLASS = '''
LIMIT = 3
UNREAD = 4


class Base:
    """Nobody names it."""


class Layer(Module):
    """A layer."""

    note: str | None = None
    """What people read."""
    scale: float

    def __init__(self, wide: bool) -> None:
        super().__init__()
        self.norm = nn.Identity() if not wide else nn.BatchNorm1d(4)
        self.scale = None
        if wide:
            # Wide ones are scaled.
            self.scale = (
                LIMIT if wide else 1
            )
        self.unread = 5
        self.register_buffer("gone", None)

    def forward(self, x: Tensor) -> Tensor:
        assert x.ndim == 2
        rest = cast(Tensor, x)
        if self.is_folded or not wide:
            return self.norm(rest)
        x = self.norm(rest)  # at the end of a line
        for step in steps():
            x = x + step
        return x * self.scale

    def unused(self) -> int:
        return self.unused()
'''

WIDE = '''
LIMIT = 3


class Layer(Module):
    """A layer."""

    scale: float

    def __init__(self, wide: bool) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(4)
        # Wide ones are scaled.
        self.scale = LIMIT

    def forward(self, x: Tensor) -> Tensor:
        rest = x
        x = self.norm(rest)  # at the end of a line
        return x * self.scale
'''

NARROW = '''
class Layer(Module):
    """A layer."""

    def __init__(self, wide: bool) -> None:
        super().__init__()

    def forward(self, x: Tensor) -> Tensor:
        return x
'''


@pytest.mark.parametrize(("wide", "expected"), [(True, WIDE), (False, NARROW)])
def test_branches_that_are_not_taken_go_with_all_that_only_they_read(
    wide: bool, expected: str
) -> None:
    known = {"wide": wide, "self.is_folded": False, "steps()": False}
    assert specialized(CLASS, known, {}, ("Layer",)) == expected.strip()


def test_what_nothing_is_known_of_stays() -> None:
    text = CLASS.strip().replace("assert x.ndim == 2", "print(x)")
    found = specialized(text, {}, {}, ("Layer", "Base"))
    assert "if self.is_folded or not wide:\n            return self.norm(rest)" in found
    assert "LIMIT if wide else 1" in found
    assert found == specialized(found, {}, {}, ("Layer", "Base"))


def test_expressions_have_their_values_and_lines_are_joined_where_they_fit() -> None:
    source = "def f(x: Style) -> int:\n    return call(\n        TABLE[kind],\n        x,\n    )\n"
    values = {"TABLE[kind]": "nn.ReLU", "Style": "Levit"}
    found = specialized(source, {}, values, ("f",))  # a comma at the end keeps items apart
    assert found == source.replace("TABLE[kind]", "nn.ReLU").replace("Style", "Levit").strip()
    source = "def f() -> int:\n    return call(\n        TABLE[kind], 1\n    )\n"
    assert specialized(source, {}, values, ("f",)) == "def f() -> int:\n    return call(nn.ReLU, 1)"
