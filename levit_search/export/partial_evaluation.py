"""Partial evaluation of Python source: branches that are never taken go, and what nothing uses.

So the classes that train every network become the text of one. All else stays as it is written,
comments and docstrings included, in the layout that ruff gives it.
"""

import ast
import re
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from itertools import accumulate, count
from typing import NamedTuple

LINE_LENGTH = 100

_Definition = ast.FunctionDef | ast.ClassDef
_WithValue = ast.Assign | ast.AnnAssign | ast.AugAssign | ast.Return | ast.Expr


_Edit = tuple[int, int, str]
"""Text in place of that from an offset to another."""


def specialized(
    source: str, conditions: Mapping[str, bool], values: Mapping[str, str], roots: Collection[str]
) -> str:
    """The source of a module under what is known of it.

    Removed are branches and loops whose condition does not hold, statements behind a ``return``,
    ``assert`` and ``cast``, submodules that are ``nn.Identity()``, and then all variables,
    attributes, methods and definitions that are not read any more.

    Args:
        source: in ASCII, as ruff formats it.
        conditions: whether they hold, by their text; of a loop's iterable, whether it has items.
        values: texts that take the place of expressions, by the expression's text.
        roots: the definitions that stay, with what they need.
    """
    assert source.isascii(), "offsets in a tree are of bytes"
    while edits := list(_Pass(source, conditions, values, roots).edits()):
        source = _applied(source, edits)
        # What is gone may leave two blank lines within a class, or three outside.
        source = re.sub(r"\n{3,}(?= )", "\n\n", source)
        source = re.sub(r"\n{4,}", "\n\n\n", source)
    return _applied(source, list(_Pass(source, {}, {}, ()).joined())).strip("\n")


def _applied(source: str, edits: Sequence[_Edit]) -> str:
    for start, end, text in sorted(edits, reverse=True):
        source = source[:start] + text + source[end:]
    return source


class _Scope(NamedTuple):
    """What is read around a statement."""

    variables: Collection[str]
    """Of the function, or of the module."""
    attributes: Collection[str] = ()
    """Of ``self``, in a class."""
    identities: Collection[str] = ()
    """Attributes of ``self`` that are ``nn.Identity()``."""


class _Pass:
    """The edits of one pass, none within another; those that only become possible come later."""

    def __init__(
        self,
        source: str,
        conditions: Mapping[str, bool],
        values: Mapping[str, str],
        roots: Collection[str],
    ) -> None:
        self.source, self.conditions, self.values = source, conditions, values
        self.roots, self.tree = roots, ast.parse(source)
        self.lines = source.splitlines(keepends=True)
        self.offsets = [0, *accumulate(map(len, self.lines))]
        self.walked: dict[ast.AST, list[ast.AST]] = {}
        self.names = Counter(n.id for n in self._nodes(self.tree) if isinstance(n, ast.Name))
        self.attributes = self._attributes(self.tree, own=False)

    # --- Statements.

    def edits(self) -> Iterator[_Edit]:
        return self._block(self.tree.body, _Scope(self._loaded(self.tree)))

    def _block(self, block: Sequence[ast.stmt], scope: _Scope) -> Iterator[_Edit]:
        is_reached = True
        for index, statement in enumerate(block):
            variable, attribute = _stored_name(statement), _stored_attribute(statement)
            value = _value(statement)
            if (
                not is_reached
                or isinstance(statement, ast.Assert)
                or (isinstance(statement, _Definition) and not self._is_used(statement))
                or (variable and (variable not in scope.variables or _is_name(value, variable)))
                or (attribute and attribute not in scope.attributes)
                # A placeholder of what is known to be set below.
                or (
                    attribute
                    and isinstance(value, ast.Constant)
                    and attribute in map(_stored_attribute, block[index + 1 :])
                )
            ):
                yield self._removal(statement)
                continue
            match block[index + 1 :]:
                case [ast.Return(ast.Name(name)) as after, *_] if value and name == variable:
                    end = self._span(after)[1]
                    yield self._span(statement)[0], end, f"return {self._segment(value)}"
                    return
            yield from self._statement(statement, scope)
            is_reached = is_reached and not isinstance(statement, ast.Return)

    def _is_used(self, definition: _Definition) -> bool:
        """Whether it is a root, or its name stands anywhere outside of itself."""
        own = sum(_is_name(node, definition.name) for node in self._nodes(definition))
        return definition.name in self.roots or self.names[definition.name] > own

    def _statement(self, statement: ast.stmt, scope: _Scope) -> Iterator[_Edit]:
        match statement:
            case ast.ClassDef():
                yield from self._class(statement)
            case ast.FunctionDef():
                yield from self._expressions(statement.args, scope)
                if statement.returns is not None:
                    yield from self._expressions(statement.returns, scope)
                inner = scope._replace(variables=self._loaded(statement))
                yield from self._block(statement.body, inner)
            case ast.If() if (holds := self._holds(statement.test)) is not None:
                yield self._branch(statement, holds)
            case ast.If():
                yield from self._expressions(statement.test, scope)
                yield from self._block(statement.body, scope)
                yield from self._block(statement.orelse, scope)
            case ast.For() if self.conditions.get(self._segment(statement.iter)) is False:
                yield self._removal(statement)
            case ast.For():
                yield from self._expressions(statement.iter, scope)
                yield from self._block(statement.body, scope)
            case _:
                yield from self._expressions(statement, scope)

    def _class(self, definition: ast.ClassDef) -> Iterator[_Edit]:
        # Attributes that are set to nn.Identity() and to nothing else.
        is_identity: dict[str, bool] = {}
        for node in self._nodes(definition):
            if isinstance(node, ast.stmt) and (name := _stored_attribute(node)) is not None:
                value = _value(node)
                is_one = value is not None and ast.unparse(value) == "nn.Identity()"
                is_identity[name] = is_identity.get(name, True) and is_one
        identities = {name for name, is_one in is_identity.items() if is_one}
        own = self._attributes(definition, own=True)
        scope = _Scope((), own.keys() | (self.attributes.keys() - identities), identities)
        is_row = any(_is_name(base, "NamedTuple") for base in definition.bases)
        for statement, after in zip(definition.body, [*definition.body[1:], None], strict=True):
            name = _stored_name(statement)
            if isinstance(statement, ast.FunctionDef):
                name = statement.name
                reads = own - self._attributes(statement, own=True)
                reads += self.attributes - self._attributes(statement, own=False)
                if name in {*reads, "forward"} or name.startswith("__"):
                    yield from self._statement(statement, scope)
                else:
                    yield self._removal(statement)
            elif name is not None and not is_row and name not in scope.attributes:
                yield self._removal(statement)
                if isinstance(after, ast.Expr):  # what is said of it
                    yield self._removal(after)
            else:
                yield from self._expressions(statement, scope)

    def _branch(self, statement: ast.If, holds: bool) -> _Edit:
        """A branch in place of the whole statement."""
        block = statement.body if holds else statement.orelse
        if not block:
            return self._removal(statement)
        first = statement.test.end_lineno or 0
        if not holds:
            ends = statement.body[-1].end_lineno or 0
            first = next(n for n in count(ends) if self.lines[n].strip() == "else:") + 1
        lines = self.lines[first : block[-1].end_lineno]
        start, end = self.offsets[statement.lineno - 1], self.offsets[statement.end_lineno or 0]
        return start, end, "".join(line.removeprefix("    ") for line in lines)

    def _removal(self, statement: ast.stmt) -> _Edit:
        """Of whole lines, with the comment above, and the blank lines above a definition."""
        first = statement.lineno - 1
        if isinstance(statement, _Definition) and statement.decorator_list:
            first = statement.decorator_list[0].lineno - 1
        while self.lines[first - 1].lstrip().startswith("#"):
            first -= 1
        while isinstance(statement, _Definition) and first and not self.lines[first - 1].strip():
            first -= 1
        return self.offsets[first], self.offsets[statement.end_lineno or 0], ""

    # --- Expressions.

    def _holds(self, test: ast.expr) -> bool | None:
        """Whether a condition holds; None where that is not known."""
        known = self.conditions.get(self._segment(test))
        if known is not None:
            return known
        if isinstance(test, ast.UnaryOp) and isinstance(test.op, ast.Not):
            inner = self._holds(test.operand)
            return None if inner is None else not inner
        if isinstance(test, ast.BoolOp):
            parts = [self._holds(part) for part in test.values]
            decisive = isinstance(test.op, ast.Or)  # one true part decides, else one false one
            return decisive if decisive in parts else None if None in parts else not decisive
        return None

    def _expressions(self, node: ast.AST, scope: _Scope) -> Iterator[_Edit]:
        """Edits of the outermost expressions that something is known of."""
        found = self._replacement(node, scope) if isinstance(node, ast.expr | ast.arg) else None
        if found is not None:
            yield found
            return
        for child in ast.iter_child_nodes(node):
            yield from self._expressions(child, scope)

    def _replacement(self, node: ast.expr | ast.arg, scope: _Scope) -> _Edit | None:
        start, end = self._span(node)
        text = self.source[start:end]
        taken: ast.expr | None = None
        match node:
            case ast.IfExp():
                holds = self._holds(node.test)
                taken = None if holds is None else node.body if holds else node.orelse
            case ast.Call(func=ast.Name(id="cast"), args=[_, inner]):
                taken = inner
            case ast.Call(func=ast.Attribute(attr=attribute) as function, args=[inner]):
                taken = inner if _is_own(function) and attribute in scope.identities else None
        if taken is not None:
            if self.source[:start].endswith("(\n" + " " * node.col_offset):
                # Parentheses around the whole value of a statement.
                before = self.source[:start].rstrip()[:-1]
                after = end + len(self.source[end:]) - len(self.source[end:].lstrip())
                if before.endswith(("= ", "return ")) and self.source[after] == ")":
                    start, end = len(before), after + 1
            return start, end, self._segment(taken)
        value = self.values.get(text, text)
        return None if value == text else (start, end, value)

    # --- Layout.

    def joined(self) -> Iterator[_Edit]:
        """Statements in one line where they have come to fit in."""
        for node in ast.walk(self.tree):
            if not isinstance(node, _WithValue) or isinstance(node.value, ast.Constant):
                continue
            start, end = self._span(node)
            text = self.source[start:end]
            # Nothing stands for a line's end beside a bracket, else a blank.
            line = re.sub(r"(?<=[(\[])\s*\n\s*|\s*\n\s*(?=[)\]])", "", text)
            line = re.sub(r"\s*\n\s*", " ", line)
            has_comma = re.search(r",\s*\n\s*[)\]]", text)  # ruff leaves such calls item by item
            fits = "#" not in text and node.col_offset + len(line) <= LINE_LENGTH
            if line != text and fits and not has_comma:
                yield start, end, line

    # --- What is where.

    def _span(self, node: ast.stmt | ast.expr | ast.arg) -> tuple[int, int]:
        assert node.end_lineno is not None and node.end_col_offset is not None
        start = self.offsets[node.lineno - 1] + node.col_offset
        return start, self.offsets[node.end_lineno - 1] + node.end_col_offset

    def _segment(self, node: ast.expr) -> str:
        start, end = self._span(node)
        return self.source[start:end]

    def _nodes(self, node: ast.AST) -> list[ast.AST]:
        """A node and all within it."""
        if node not in self.walked:
            self.walked[node] = list(ast.walk(node))
        return self.walked[node]

    def _loaded(self, node: ast.AST) -> set[str]:
        """Names that are read within a node."""
        return {
            each.id
            for each in self._nodes(node)
            if isinstance(each, ast.Name) and isinstance(each.ctx, ast.Load)
        }

    def _attributes(self, node: ast.AST, own: bool) -> Counter[str]:
        """How often each attribute of ``self``, or of anything else, is read within a node."""
        return Counter(
            each.attr
            for each in self._nodes(node)
            if isinstance(each, ast.Attribute)
            and isinstance(each.ctx, ast.Load)
            and _is_own(each) == own
        )


def _is_name(node: ast.AST | None, name: str) -> bool:
    return isinstance(node, ast.Name) and node.id == name


def _is_own(node: ast.AST) -> bool:
    """Whether a node is an attribute of ``self``."""
    return isinstance(node, ast.Attribute) and _is_name(node.value, "self")


def _target(statement: ast.stmt) -> ast.expr | None:
    """The one target of an assignment."""
    if isinstance(statement, ast.Assign) and len(statement.targets) == 1:
        return statement.targets[0]
    return statement.target if isinstance(statement, ast.AnnAssign) else None


def _stored_name(statement: ast.stmt) -> str | None:
    """The variable that a statement sets."""
    target = _target(statement)
    return target.id if isinstance(target, ast.Name) else None


def _stored_attribute(statement: ast.stmt) -> str | None:
    """The attribute of ``self`` that a statement sets, be it a buffer."""
    match statement:
        case ast.Expr(
            ast.Call(func=ast.Attribute(attr="register_buffer"), args=[ast.Constant(str(name)), *_])
        ):
            return name
    target = _target(statement)
    return target.attr if isinstance(target, ast.Attribute) and _is_own(target) else None


def _value(statement: ast.stmt) -> ast.expr | None:
    """What an assignment assigns."""
    return statement.value if isinstance(statement, ast.Assign | ast.AnnAssign) else None
