"""YAML read as plain data and nothing else: of bounded size, depth and expansion.

A file may come from anybody. Only what JSON has too is read (mappings by text, lists, texts,
numbers, true, false, null); a date, or a key such as 7, is the text that was written. A key that
stands twice is an error, since one of the two would be lost without a word.
"""

import re
from typing import Any, NoReturn

import yaml
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from levit_search.errors import InputError

LARGEST = 1 << 20
"""Bytes of a file, and characters of a text, that are read; studies have some thousands."""

_DEEPEST = 40  # levels; a space file has about six
_MOST_NODES = 100_000  # an alias counts as all that it stands for
_MOST_BITS = 64  # of a whole number
_LONGEST_REASON = 300
# But for the bytes of a path that is no UTF-8, as os.fsdecode gives them: U+DC80 to U+DCFF.
_HALF = re.compile("[\ud800-\udc7f\udd00-\udfff]")


def parse_yaml(text: str, where: str) -> Any:
    """The value that a YAML text stands for; only plain data, never objects.

    Raises:
        InputError: the text is not valid YAML, is too large or nested too deeply, stands for too
            much by its aliases, or has a key twice.
    """
    if len(text) > LARGEST:
        raise InputError(f"{where}: larger than {LARGEST >> 20} MiB, which no file of ours is")
    try:
        return _Loader(text).get_single_data()
    except _RefusedError as refused:
        raise InputError(f"{where}: {refused}") from None
    except yaml.YAMLError as error:
        reason = " ".join(str(error).replace('in "<unicode string>", ', "at ").split())
    except (ValueError, TypeError, AttributeError, LookupError, OverflowError) as error:
        # What PyYAML's constructors of numbers raise at such as `!!int large`.
        reason = f"{type(error).__name__}: {error}"
    raise InputError(f"{where}: not valid YAML: {_cut(reason)}")


def _cut(text: str) -> str:
    return text if len(text) <= _LONGEST_REASON else f"{text[: _LONGEST_REASON - 3]}..."


class _RefusedError(Exception):
    """Valid YAML that is not taken; the message is the reason."""


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader without its dates, sets and binaries, and with bounds."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._depth = 0

    def compose_node(self, parent: Node | None, index: Any) -> Node | None:
        self._depth += 1
        if self._depth > _DEEPEST:
            raise _RefusedError(f"nested too deeply (more than {_DEEPEST} levels)")
        try:
            node: Node | None = super().compose_node(parent, index)
        finally:
            self._depth -= 1
        return node

    def construct_document(self, node: Node) -> Any:
        _check_expansion(node)
        return super().construct_document(node)

    def compose_mapping_node(self, anchor: Any) -> MappingNode:
        node: MappingNode = super().compose_mapping_node(anchor)
        _check_keys(node)  # now, since later there is also what a merge (`<<`) brings
        node.value = [(_as_text(key), value) for key, value in node.value]
        return node


def _text(loader: _Loader, node: ScalarNode) -> str:
    text: str = loader.construct_yaml_str(node)
    if _HALF.search(text):
        raise _RefusedError(f"half of a character, as no file can hold it{_line(node)}")
    return text


def _int(loader: _Loader, node: ScalarNode) -> int:
    value: int = loader.construct_yaml_int(node)
    if value.bit_length() > _MOST_BITS:
        raise _RefusedError(
            f"a whole number of more than {_MOST_BITS} bits{_line(node)}: {node.value[:40]}..."
        )
    return value


def _no_plain_data(_loader: _Loader, node: Node) -> NoReturn:
    raise _RefusedError(f"!!{node.tag.rpartition(':')[2]} is not taken{_line(node)}")


_Loader.add_constructor("tag:yaml.org,2002:str", _text)
_Loader.add_constructor("tag:yaml.org,2002:int", _int)
for _tag in ("timestamp", "binary", "set", "omap", "pairs"):
    _Loader.add_constructor(f"tag:yaml.org,2002:{_tag}", _no_plain_data)
# In place of the shared table, so that other loaders go on reading dates.
_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in known if not tag.endswith(":timestamp")]
    for first, known in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


def _check_keys(node: MappingNode) -> None:
    """Make sure that each key stands there once."""
    seen: set[str] = set()
    for key, _ in node.value:
        if not isinstance(key, ScalarNode):
            continue  # PyYAML refuses it, with its place
        if key.value in seen:
            raise _RefusedError(f"the key {key.value!r} stands there twice{_line(key)}")
        seen.add(key.value)


_PLAIN_KEYS = ("null", "bool", "int", "float", "value")


def _as_text(key: Node) -> Node:
    """A key such as ``7`` or ``on`` is the text that was written, as in JSON."""
    if not isinstance(key, ScalarNode) or key.tag.rpartition(":")[2] not in _PLAIN_KEYS:
        return key
    # A node of its own: an alias may stand for the same one as a value.
    return ScalarNode("tag:yaml.org,2002:str", key.value, key.start_mark, key.end_mark, key.style)


def _check_expansion(root: Node) -> None:
    """Make sure that a document without its aliases would be of a size that anybody writes."""
    sizes: dict[int, int | None] = {}

    def size(node: Node) -> int:
        known = sizes.get(id(node), 0)
        if known is None:
            raise _RefusedError(f"an alias stands for what it is part of{_line(node)}")
        if known:
            return known
        sizes[id(node)] = None
        total = 1
        if isinstance(node, SequenceNode):
            total += sum(size(child) for child in node.value)
        elif isinstance(node, MappingNode):
            total += sum(size(key) + size(value) for key, value in node.value)
        if total > _MOST_NODES:
            raise _RefusedError(
                f"stands for more than {_MOST_NODES:,} values, its aliases written out"
            )
        sizes[id(node)] = total
        return total

    size(root)


def _line(node: Node) -> str:
    return f" (line {node.start_mark.line + 1})"
