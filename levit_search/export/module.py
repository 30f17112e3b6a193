"""``model.py``: one network as a file that needs torch alone, from the source of our own classes.

Its tensors have the names of our modules, so that it reads the ``model.safetensors`` beside it.
"""

import ast
import inspect
import re
import textwrap
from collections.abc import Sequence
from functools import lru_cache

from levit_search.architecture import (
    GRAFTS,
    LEVITS,
    Architecture,
    Graft,
    Levit,
    PatchStem,
    ResNetStem,
    published,
)
from levit_search.cost import cost
from levit_search.export.partial_evaluation import LINE_LENGTH, specialized
from levit_search.image_size import image_shape
from levit_search.model import blocks, graft, levit, resnet
from levit_search.model.resnet import ResNetShape, resnet_shape

# What a module reads of a description, as rows of plain values: what is said of each, and its
# fields with their types. A file has the fields that it reads.
_ROWS: dict[str, tuple[str, dict[str, str]]] = {
    "ConvStem": ("Convolutions of stride 2, by their channels.", {"channels": "tuple[int, ...]"}),
    "PatchStem": ("One convolution of patches of so many pixels a side.", {"patch_size": "int"}),
    "Stage": (
        "Pairs of an attention block and an MLP block at one width and resolution.",
        {
            "depth": "int  # pairs",
            "embed_dim": "int  # channels of a token",
            "num_heads": "int",
            "key_dim": "int  # channels of a head's queries and keys",
            "attn_ratio": "float  # of a head's value channels to its key channels",
            "mlp_ratio": "float  # of the MLP's hidden channels to embed_dim",
        },
    ),
    "Shrink": (
        "Attention of every ``stride``-th token of either axis to all, then an MLP block.",
        {
            "num_heads": "int",
            "key_dim": "int",
            "attn_ratio": "float",
            "mlp_ratio": "float",
            "stride": "int",
        },
    ),
    "Levit": (
        "What is built: a stem, then stages of blocks with shrinking blocks between them.",
        {
            "in_channels": "int",
            "num_classes": "int",
            "stem": "",
            "stages": "tuple[Stage, ...]",
            "grids": "tuple[Sides, ...]  # of tokens, by stage",
            "shrinks": "tuple[Shrink, ...]",
            "norm": "str",
            "position": "str",
            "drop_path": "float",
        },
    ),
    "Graft": (
        "What is built: stages of a ResNet, or none, then layers of a DeiT, or none.",
        {
            "in_channels": "int",
            "num_classes": "int",
            "trunk_stage": "Stage",
            "grid_sides": "Sides  # of tokens",
            "patch": "int  # pixels a side that become one token",
            "tokens": "int  # the grid's and those that answer",
            "norm": "str",
            "position": "str",
            "drop_path": "float",
        },
    ),
}

_NETWORK = '''
class Network($model):
    """The network of this file, freshly initialised."""

    def __init__(self) -> None:
        super().__init__(ARCHITECTURE)
'''

_TO_LOAD = """
WEIGHTS = Path(__file__).with_name("model.safetensors")
DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
}
"""

# The imports that a file needs, by what stands in it.
_IMPORTS = {
    "import json": "json.",
    "import math": "math.",
    "from collections import OrderedDict": "OrderedDict",
    "from pathlib import Path": "Path",
    "from typing import NamedTuple": "NamedTuple",
    "\nimport torch": "torch.",
    "import torch.nn.functional as F": " F.",
    "from torch import Tensor, nn": "nn.",
}

_LOADING = '''
def load(path: str | Path = WEIGHTS) -> Network:
    """The trained network, in eval mode.

    Args:
        path: of a safetensors file; left out, ``model.safetensors`` beside this file.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is no safetensors file, or not a whole one.
        RuntimeError: a tensor is missing, unexpected or of another shape.
    """
    network = Network()
    network.load_state_dict(read_safetensors(Path(path)))
    return network.eval()


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """Tensors by name: the file is a header's length, the header as JSON, then their bytes."""
    content = path.read_bytes()
    start = 8 + int.from_bytes(content[:8], "little")
    if len(content) < 8 or len(content) < start:
        raise ValueError(f"{path}: not a safetensors file, or not a whole one")
    header = json.loads(content[8:start])
    header.pop("__metadata__", None)
    tensors = {}
    for name, entry in header.items():
        begin, end = (start + offset for offset in entry["data_offsets"])
        if end > len(content):
            raise ValueError(f"{path}: ends before {name} does")
        values = torch.frombuffer(bytearray(content[begin:end]), dtype=DTYPES[entry["dtype"]])
        tensors[name] = values.reshape(entry["shape"])
    return tensors


def main() -> None:
    """Print the network's size and try it on random images, trained where its weights are."""
    state, network = ("trained", load()) if WEIGHTS.is_file() else ("fresh", Network().eval())
    parameters = sum(parameter.numel() for parameter in network.parameters())
    sides = (IMAGE_SIZE, IMAGE_SIZE) if isinstance(IMAGE_SIZE, int) else IMAGE_SIZE
    images = torch.randn(2, IN_CHANNELS, *sides)
    with torch.inference_mode():
        logits = network(images)
    print(f"{state}, {parameters:,} parameters: {list(images.shape)} to {list(logits.shape)}")
    if parameters != PARAMETERS or not logits.isfinite().all():
        raise SystemExit(f"expected {PARAMETERS:,} parameters and finite logits")


if __name__ == "__main__":
    main()
'''


def module_source(network: Architecture, class_names: Sequence[str] = ()) -> str:
    """A Python file that defines one network, loads its weights and needs torch alone.

    ``Network()`` is freshly initialised as ours is, takes images [B, C, H, W] and gives logits
    [B, num_classes]; with ``distillation`` it gives both heads' logits while training and their
    mean otherwise. ``load(path)`` reads the weights that :func:`levit_search.model.save_weights`
    wrote, strictly, and returns the network in eval mode. The text is formatted as ruff does.

    Args:
        network: of either family.
        class_names: kept as ``CLASS_NAMES``, in the order of the logits; whatever they hold, they
            stay plain strings. None are kept where there are none.
    """
    family, shape = type(network).__name__, _resnet_shape(network)
    known = tuple(_conditions(network, shape).items()), tuple(_values(network).items())
    text = _specialized(family, shape is not None, *known)
    numbers = _assigned("ARCHITECTURE", network, text)
    if shape is not None:
        numbers = f"{_assigned('RESNET', shape, text)}\n{numbers}"
    classes, start, rest = text.partition("class Network(")
    names = ["Stage"] if isinstance(network, Levit) or network.trunk is not None else []
    if isinstance(network, Levit):
        names += ["Shrink"] if network.shrinks else []
        names += [] if isinstance(network.stem, ResNetStem) else [type(network.stem).__name__]
    rows = []
    for name in (*names, family):
        fields = _fields(name, text)
        if "stem" in fields:  # of a LeViT; grafts have none
            fields["stem"] = type(network.stem).__name__  # type: ignore[union-attr]
        lines = [f"    {field}: {kind}" for field, kind in fields.items()]
        rows.append(f'class {name}(NamedTuple):\n    """{_ROWS[name][0]}"""\n\n' + "\n".join(lines))
    text = "\n\n\n".join([*rows, f"{classes}{numbers}", start + rest, _LOADING.strip()])
    head = [
        _docstring(network, text, bool(class_names)),
        "\n".join(line for line, sign in _IMPORTS.items() if sign in text),
        _constants(network, text, class_names),
    ]
    return "\n\n".join(head) + "\n\n\n" + text + "\n"


def _resnet_shape(network: Architecture) -> ResNetShape | None:
    """The ResNet in a network."""
    if isinstance(network, Graft):
        if (donor := network.donor) is not None:
            return resnet_shape(donor.name, donor.cut(network.in_channels), donor.stem)
    elif isinstance(stem := network.stem, ResNetStem):
        return resnet_shape(stem.kind, stem.cut(network.in_channels), stem.stem)
    return None


# --- What is known of a network while its classes are evaluated.

# Activations are tokens alone, and nothing was folded.
_ALWAYS = {
    'self.layout == "tokens"': True,
    'self.layout == "maps"': False,
    "is_map": False,
    "self.bias_hqt is not None": False,
    "self.joined_bnc is not None": False,
}


def _conditions(network: Architecture, shape: ResNetShape | None) -> dict[str, bool]:
    """Conditions in the source of our classes."""
    found = {
        "batch_norm": network.norm == "batch",
        'architecture.norm == "layer"': network.norm == "layer",
        "isinstance(self.norm, nn.BatchNorm1d)": network.norm == "batch",
        "isinstance(self.norm, nn.Identity)": network.norm == "layer",
        "self.has_bias": network.position == "bias",
        "architecture.distillation": network.distillation,
        "self.head_dist is None": not network.distillation,
    }
    if shape is not None:
        found["shape.is_small"] = shape.is_small
        found["shape.is_bottleneck"] = shape.is_bottleneck
        if not any(stage.begun for stage in shape.stages):
            found["stage.begun"] = False
    if isinstance(network, Graft):
        return found | {
            "architecture.donor is None": network.donor is None,
            "architecture.donor is not None": network.donor is not None,
            "self.donor is None": network.donor is None,
            "architecture.trunk_stage is not None": network.trunk is not None,
            "self.trunk is None": network.trunk is None,
            "patch > 1": network.trunk is not None and network.patch > 1,
        }
    stem = network.stem
    if isinstance(stem, ResNetStem):
        found["is_projected"] = stem.is_projected(network.stages[0].embed_dim)
    if not network.shrinks:
        found["enumerate(architecture.shrinks)"] = found["isinstance(block, Shrink)"] = False
    return found | {
        "isinstance(architecture.stem, ResNetStem)": isinstance(stem, ResNetStem),
        "isinstance(stem, PatchStem)": isinstance(stem, PatchStem),
        'architecture.position == "embedding"': network.position == "embedding",
        'self.architecture.position == "embedding"': network.position == "embedding",
    }


def _values(network: Architecture) -> dict[str, str]:
    """Expressions in the source of our classes, and what stands in their place."""
    attention, other = (
        f"nn.{blocks.ACTIVATIONS[name].__name__}"
        for name in (network.attention_activation, network.activation)
    )
    found = {
        "ACTIVATIONS[style.attention_activation]": attention,
        "ACTIVATIONS[style.activation]": other,
        "ACTIVATIONS[architecture.activation]": other,
    }
    if not network.drop_path:
        found["DropPath(style.drop_path)"] = "nn.Identity()"
    if isinstance(network, Graft) or not network.shrinks:
        found["Stage | Shrink"] = "Stage"
        found["block.stride if isinstance(block, Shrink) else 1"] = "1"
    if isinstance(network, Graft):
        found["resnet_shape(donor.name, donor.cut(channels), donor.stem)"] = "RESNET"
    elif isinstance(network.stem, ResNetStem):
        width = network.stages[0].embed_dim
        found["resnet_shape(stem.kind, stem.cut(architecture.in_channels), stem.stem)"] = "RESNET"
        found["stem.is_projected(width)"] = str(network.stem.is_projected(width))
    return found


@lru_cache(maxsize=256)
def _specialized(
    family: str,
    has_resnet: bool,
    conditions: tuple[tuple[str, bool], ...],
    values: tuple[tuple[str, str], ...],
) -> str:
    """The classes of networks of which so much is the same, and ``Network`` itself."""
    modules = [*([resnet] if has_resnet else []), blocks, graft if family == "Graft" else levit]
    is_ahead = (ast.Expr, ast.Import, ast.ImportFrom)  # the docstring and imports of a module
    parts = []
    for text in map(inspect.getsource, modules):
        first = next(each for each in ast.parse(text).body if not isinstance(each, is_ahead))
        parts.append("".join(text.splitlines(keepends=True)[first.lineno - 1 :]).strip())
    source = "\n\n\n".join(parts).replace("(LaidOut, ", "(")
    source += "\n\n" + _NETWORK.replace("$model", f"{family}Model")
    known = {**_ALWAYS, **dict(conditions)}
    return specialized(source, known, {"Style": family, **dict(values)}, ("Network",))


# --- The description as rows of values.


def _fields(name: str, text: str) -> dict[str, str]:
    """The fields of a row that a text reads, with their types."""
    fields = _ROWS[name][1]
    return {f: kind for f, kind in fields.items() if re.search(rf"(?<!\bself)\.{f}\b", text)}


def _assigned(name: str, value: object, text: str) -> str:
    """``NAME = value``, as :func:`_literal` has the value."""
    return f"{name} = {_literal(value, text, ahead=len(f'{name} = '))}"


def _literal(value: object, text: str, indent: int = 0, ahead: int = 0) -> str:
    """A value as Python has it, in one line where it fits, else item by item.

    Args:
        value: a number, string or tuple, a description or a named tuple.
        text: whose fields of descriptions are wanted.
        indent: columns of the line that it begins in.
        ahead: columns that stand before it in that line.
    """
    kind = type(value).__name__
    opening, closing = f"{kind}(", ")"
    names = _fields(kind, text) if kind in _ROWS else getattr(value, "_fields", None)
    if names is not None:
        items = [(f"{name}=", getattr(value, name)) for name in names]
    elif isinstance(value, tuple | list):
        opening, closing = "()" if isinstance(value, tuple) else "[]"
        items = [("", item) for item in value]
    else:
        return _quoted(value) if isinstance(value, str) else repr(value)
    parts = [name + _literal(item, text) for name, item in items]
    if opening == "(" and len(parts) == 1:
        parts[0] += ","
    line = f"{opening}{', '.join(parts)}{closing}"
    if "\n" not in line and ahead + len(line) <= LINE_LENGTH - bool(indent):  # a comma may follow
        return line
    inner = indent + 4
    parts = [name + _literal(item, text, inner, inner + len(name)) for name, item in items]
    lines = [opening, *[f"{' ' * inner}{part}," for part in parts], " " * indent + closing]
    return "\n".join(lines)


def _quoted(text: str) -> str:
    """A string literal of one line, in double quotes unless that takes more backslashes."""
    escaped = repr("'" + text)  # an apostrophe makes repr choose double quotes where it can
    if escaped[0] == '"':
        return '"' + escaped[2:]
    inside = escaped[3:-1].replace("\\'", "'")  # without the apostrophe put first, and its escape
    if text.count('"') > text.count("'"):
        return "'" + inside.replace("'", "\\'") + "'"
    return '"' + inside.replace('"', '\\"') + '"'


# --- Ahead of the classes.


def _docstring(network: Architecture, text: str, is_named: bool) -> str:
    shape = ", ".join(map(str, image_shape(network)))
    lines = [
        f'"""{_title(network)}: images [B, {shape}] to logits [B, {network.num_classes}].',
        "",
        f"    {network.summary()}",
        "",
        "After Graham et al. 2021, https://arxiv.org/abs/2104.01136. Written by levit-search, from",
        f"the classes that it trains, as network {network.id}; needs torch alone. The code stands",
        "under levit-search's licence, Apache 2.0.",
        "",
        "    from model import load",
        "",
        "    network = load()  # the model.safetensors beside this file, in eval mode",
        "    logits = network(images)",
    ]
    if is_named:
        lines.append("    best = [CLASS_NAMES[index] for index in logits.argmax(dim=1)]")
    letters = "Shapes: B images, C channels"
    if "class AttentionCore(" in text:
        queries = " (Q of them queries where a block shrinks)" if "class Shrink(" in text else ""
        heads = "H heads, K key channels and V value channels a head"
        letters += f", T tokens{queries}, {heads}. What is said of maps [B, C, R, S] is of another "
        letters += "layout of tokens, which levit-search has and this file has not"
    lines += ["", *textwrap.wrap(f"{letters}.", LINE_LENGTH - 4), '"""', ""]
    lines += [
        "# The classes are those of other networks, too: of this one some arguments are unused."
    ]
    return "\n".join([*lines, "# ruff: noqa: ARG002"])


def _title(network: Architecture) -> str:
    for name in (*LEVITS, *GRAFTS):
        if published(name) == network:
            return name
    if isinstance(network, Levit):
        return "A LeViT"
    if network.donor is None:
        return "A DeiT"
    return "A ResNet" if network.trunk is None else "A graft, ResNet stages under DeiT layers"


def _constants(network: Architecture, text: str, class_names: Sequence[str]) -> str:
    sizes = f"{network.image_size}, {network.in_channels}, {network.num_classes}"
    lines = [
        f"IMAGE_SIZE, IN_CHANNELS, NUM_CLASSES = {sizes}",
        f"PARAMETERS = {cost(network).params:_}",
    ]
    if class_names:
        lines.append(_assigned("CLASS_NAMES", list(class_names), ""))
    lines += ["", _TO_LOAD.strip()]
    if re.search(r"\bSides\b", text):
        lines += ["", "Sides = tuple[int, int]  # rows and columns"]
    return "\n".join(lines)
