"""The text of a stand-alone module: one network in torch alone, as a person would write it down.

Its tensors have the names of our own modules, so that it reads the ``model.safetensors`` beside it.
"""

import math
import textwrap
from collections.abc import Sequence

from levit_search.architecture import (
    GRAFTS,
    LEVITS,
    Architecture,
    ConvStem,
    Graft,
    Levit,
    PatchStem,
    ResNetStem,
    Shrink,
    Stage,
    published,
)
from levit_search.cost import cost
from levit_search.export import module_blocks as blocks
from levit_search.export import module_ends as ends
from levit_search.export.module_resnet import resnet_parts
from levit_search.export.module_text import (
    LINE_LENGTH,
    in_turn,
    indented,
    laid_out,
    part,
    quoted,
)
from levit_search.image_size import Sides, image_shape, sides


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
    flags = _flags(network)
    classes = _graft(network, flags) if isinstance(network, Graft) else _levit(network, flags)
    text = "\n\n\n".join([*classes, part(ends.LOADING, flags)])
    head = [
        _docstring(network, text, bool(class_names)),
        _imports(text),
        _constants(network, class_names),
    ]
    return "\n\n".join(head) + "\n\n\n" + text + "\n"


def _flags(network: Architecture) -> set[str]:
    """What the lines of the texts ask for."""
    stages, shrinks = _blocks(network)
    flags: set[str] = {network.norm, network.position}
    if shrinks:
        flags.add("shrinks")
    if stages and network.drop_path:
        flags.add("drop_path")
    if network.distillation:
        flags.add("distillation")
    if not isinstance(network.image_size, int):
        flags.add("rectangle")
    if isinstance(network, Levit) and network.norm == "layer":
        if not isinstance(network.stem, ResNetStem):
            flags |= {"convs", "biased_convs"}
        elif network.stem.is_projected(stages[0].embed_dim):
            flags |= {"convs", "resnet_convs"}
    return flags


def _blocks(network: Architecture) -> tuple[Sequence[Stage], Sequence[Shrink]]:
    if isinstance(network, Levit):
        return network.stages, network.shrinks
    return [stage for stage in (network.trunk_stage,) if stage is not None], ()


# --- Ahead of the classes.


def _docstring(network: Architecture, text: str, is_named: bool) -> str:
    shape = _shape(*image_shape(network))
    lines = [
        f'"""{_title(network)}: images {shape} to logits [B, {network.num_classes}].',
        "",
        f"    {network.summary()}",
        "",
        "After Graham et al. 2021, https://arxiv.org/abs/2104.01136. Written by levit-search as",
        f"network {network.id}; needs torch alone.",
        "",
        "    from model import load",
        "",
        "    network = load()  # the model.safetensors beside this file, in eval mode",
        "    logits = network(images)",
    ]
    if is_named:
        lines.append("    best = [CLASS_NAMES[index] for index in logits.argmax(dim=1)]")
    letters = "Shapes: B images, C channels"
    if "_bhqk" in text:
        queries = " (Q of them queries where a block shrinks)" if "_bqc" in text else ""
        heads = "H heads, K key channels and V value channels a head"
        letters += f", T tokens{queries}, {heads}"
    lines += ["", *textwrap.wrap(f"{letters}.", LINE_LENGTH - 4)]
    return "\n".join([*lines, '"""'])


def _shape(*sizes: int) -> str:
    """Of a batch, for comments."""
    return f"[B, {', '.join(map(str, sizes))}]"


def _title(network: Architecture) -> str:
    for name in (*LEVITS, *GRAFTS):
        if published(name) == network:
            return name
    if isinstance(network, Levit):
        return "A LeViT"
    if network.donor is None:
        return "A DeiT"
    return "A ResNet" if network.trunk is None else "A graft, ResNet stages under DeiT layers"


def _imports(text: str) -> str:
    return "\n".join(
        [
            "import json",
            *(["from collections import OrderedDict"] if "OrderedDict(" in text else []),
            "from pathlib import Path",
            *(["from typing import NamedTuple"] if "(NamedTuple)" in text else []),
            "",
            "import torch",
            "import torch.nn.functional as F",
            "from torch import Tensor, nn",
        ]
    )


def _constants(network: Architecture, class_names: Sequence[str]) -> str:
    sizes = f"{network.image_size}, {network.in_channels}, {network.num_classes}"
    lines = [
        f"IMAGE_SIZE, IN_CHANNELS, NUM_CLASSES = {sizes}",
        f"PARAMETERS = {cost(network).params:_}",
    ]
    if "drop_path" in _flags(network):
        lines.append(f"DROP_PATH = {network.drop_path}")
    if class_names:
        names = [quoted(name) for name in class_names]
        lines += laid_out("CLASS_NAMES = [", names, "]")
    lines += [
        "",
        'WEIGHTS = Path(__file__).with_name("model.safetensors")',
        "DTYPES = {",
        '    "F64": torch.float64,',
        '    "F32": torch.float32,',
        '    "F16": torch.float16,',
        '    "BF16": torch.bfloat16,',
        '    "I64": torch.int64,',
        "}",
    ]
    return "\n".join(lines)


# --- What both families are made of.


def _block_parts(network: Architecture, flags: set[str]) -> list[str]:
    """From the tables of shapes to the class of a block, shrinking ones included."""
    core = "self.core(q, k, v)" if "bias" in flags else "attend(q, k, v)"
    kind = network.attention_activation
    taken = core if kind == "none" else f"F.{kind}({core})"
    return [
        part(blocks.LINEAR_NORM if "batch" in flags else blocks.NAMED_LINEAR, flags),
        *([part(blocks.INIT_WEIGHTS, flags)] if "layer" in flags else []),
        part(blocks.SPLIT_HEADS, flags),
        part(blocks.BIASED_CORE if "bias" in flags else blocks.PLAIN_CORE, flags),
        part(blocks.ATTENTION, flags, taken=taken, stride=", 1" if "shrinks" in flags else ""),
        *([part(blocks.SHRINK_ATTENTION, flags, taken=taken)] if "shrinks" in flags else []),
        part(blocks.MLP, flags, activation=network.activation),
        *([part(blocks.DROP_PATH, flags)] if "drop_path" in flags else []),
        part(blocks.BLOCK, flags),
        *([part(blocks.SHRINK_BLOCK, flags)] if "shrinks" in flags else []),
    ]


def _stage_items(stage: Stage, grid: Sides, flags: set[str]) -> list[str]:
    return [
        f"depth={stage.depth}",
        *([f"grid={grid}"] if "bias" in flags else []),
        f"embed_dim={stage.embed_dim}",
        *_widths(stage),
        f"mlp_dim={int(stage.embed_dim * stage.mlp_ratio)}",
    ]


def _widths(block: Stage | Shrink) -> list[str]:
    value_dim = int(block.attn_ratio * block.key_dim)
    return [f"num_heads={block.num_heads}", f"key_dim={block.key_dim}", f"value_dim={value_dim}"]


def _ending(flags: set[str], first: str, second: str) -> list[str]:
    """The heads' answers from the expressions that they read."""
    if "distillation" not in flags:
        return [f"return self.head({first})  # [B, NUM_CLASSES]"]
    return [
        f"by_class, by_teacher = self.head({first}), self.head_dist({second})",
        "if self.training:",
        "    return by_class, by_teacher",
        "return (by_class + by_teacher) / 2  # [B, NUM_CLASSES]",
    ]


def _network(flags: set[str], modules: list[str], steps: list[str]) -> str:
    returned = "Tensor | tuple[Tensor, Tensor]" if "distillation" in flags else "Tensor"
    return part(
        ends.NETWORK,
        flags,
        modules=indented(modules, 8),
        steps=indented(steps, 8),
        returned=returned,
    )


# --- The LeViT family.


def _levit(network: Levit, flags: set[str]) -> list[str]:
    stages, shrinks, grids = network.stages, network.shrinks, network.grids
    width = stages[-1].embed_dim
    tables = [blocks.GRID] if {"bias", "shrinks"} & flags else []
    tables.append(part(blocks.STAGE_SHAPE, flags))
    items = [_stage_items(s, grid, flags) for s, grid in zip(stages, grids, strict=True)]
    rows = _table("STAGES", "StageShape", items)
    if shrinks:
        tables.append(part(blocks.SHRINK_SHAPE, flags))
        items = [_shrink_items(network, index) for index in range(len(shrinks))]
        rows += _table("SHRINKS", "ShrinkShape", items)
    tables.append("\n".join(rows))

    modules = ["self.stem = Stem()"]
    first = stages[0].embed_dim
    steps = [
        f"x_bchw = self.stem(images)  # {_shape(first, *grids[0])}",
        f"x_btc = x_bchw.flatten(2).transpose(1, 2)  # {_shape(math.prod(grids[0]), first)}",
    ]
    if network.position == "embedding":
        tokens = f"1, {math.prod(grids[0])}, {first}"
        modules += [
            f"self.position_embedding = nn.Parameter(torch.empty({tokens}))",
            "nn.init.trunc_normal_(self.position_embedding, std=0.02)",
        ]
        steps.append("x_btc = x_btc + self.position_embedding")
    modules.append("self.stages = nn.ModuleList(Stage(shape) for shape in STAGES)")
    if shrinks:
        modules.append("self.shrinks = nn.ModuleList(ShrinkBlock(shape) for shape in SHRINKS)")
    for index, stage in enumerate(stages):
        shape = _shape(math.prod(grids[index]), stage.embed_dim)
        if index:
            steps.append(f"x_btc = self.shrinks[{index - 1}](x_btc)  # {shape}")
        steps.append(f"x_btc = self.stages[{index}](x_btc)  # {shape}")
    steps.append(f"x_bc = x_btc.mean(dim=1)  # [B, {width}]")
    heads = ["self.head", *(["self.head_dist"] if network.distillation else [])]
    modules += [f"{head} = NormLinear({width})" for head in heads]
    if "layer" in flags:
        modules.append("self.apply(init_weights)")
    return [
        *tables,
        *_stem_parts(network, flags),
        *_block_parts(network, flags),
        part(blocks.STAGE, flags),
        part(ends.NORM_LINEAR, flags),
        _network(flags, modules, [*steps, *_ending(flags, "x_bc", "x_bc")]),
    ]


def _table(name: str, row: str, items: Sequence[Sequence[str]]) -> list[str]:
    """The assignment of a list of rows, each with its own items."""
    calls = [laid_out(f"{row}(", of_row, "),", indent=4) for of_row in items]
    return [f"{name} = [", *[f"    {line}" for call in calls for line in call], "]"]


def _shrink_items(network: Levit, index: int) -> list[str]:
    shrink, width = network.shrinks[index], network.stages[index + 1].embed_dim
    return [
        f"stride={shrink.stride}",
        f"grid={network.grids[index]}",
        f"in_dim={network.stages[index].embed_dim}",
        f"embed_dim={width}",
        *_widths(shrink),
        f"mlp_dim={int(width * shrink.mlp_ratio)}",
    ]


def _stem_parts(network: Levit, flags: set[str]) -> list[str]:
    """The class ``Stem`` and what it needs."""
    stem, width, size = network.stem, network.stages[0].embed_dim, sides(network.image_size)
    layer = "ConvNorm" if "batch" in flags else "convolution"
    layers = part(blocks.CONV_NORM if "batch" in flags else blocks.NAMED_CONV, flags)
    if isinstance(stem, ResNetStem):
        cut, is_projected = stem.cut(network.in_channels), stem.is_projected(width)
        resnet = resnet_parts(stem.kind, cut, size, stem.width_scale, is_projected)
        if not is_projected:
            title = "The head of a ResNet, which has the first stage's width."
            modules, steps = ["self.resnet = ResNet()"], ["return self.resnet(images)"]
            return [*resnet, _stem(flags, title, modules, steps)]
        title = "The head of a ResNet and a 1x1 convolution to the first stage's width."
        projection = f"{layer}({cut.channels}, {width}, kernel=1, stride=1, padding=0)"
        modules = ["self.resnet = ResNet()", f"self.projection = {projection}"]
        steps = ["return self.projection(self.resnet(images))"]
        return [layers, *resnet, _stem(flags, title, modules, steps)]
    if isinstance(stem, PatchStem):
        patch = stem.patch_size
        title = f"One convolution whose kernel and stride are a patch of {patch} x {patch} pixels."
        call = f"{layer}({network.in_channels}, {width}, kernel={patch}, stride={patch}, padding=0)"
        modules = [f"self.convs = nn.ModuleList([{call}])"]
        return [layers, _stem(flags, title, modules, ["return self.convs[0](images)"])]
    assert isinstance(stem, ConvStem)
    title = "3x3 convolutions of stride 2 with the activation between them."
    inputs = network.in_channels
    calls, steps = [], []
    for index, outputs in enumerate(stem.channels):
        calls.append(f"{layer}({inputs}, {outputs}, kernel=3, stride=2, padding=1)")
        size, inputs = (size[0] // 2, size[1] // 2), outputs
        read = f"F.{network.activation}(x_bchw)" if index else "images"
        steps.append(f"self.convs[{index}]({read})  # {_shape(outputs, *size)}")
    items = laid_out("[", calls, "]", indent=12)
    modules = ["self.convs = nn.ModuleList(", *[f"    {line}" for line in items], ")"]
    if len(calls) == 1:
        modules = [f"self.convs = nn.ModuleList([{calls[0]}])"]
    return [layers, _stem(flags, title, modules, in_turn(steps))]


def _stem(flags: set[str], title: str, modules: list[str], steps: list[str]) -> str:
    values = {"title": title, "modules": indented(modules, 8), "steps": indented(steps, 8)}
    return part(ends.STEM, flags, **values)


# --- The graft family.


def _graft(network: Graft, flags: set[str]) -> list[str]:
    classes, modules, steps = [], [], []
    channels, source = network.in_channels, "images"
    if network.donor is not None:
        donor, cut = network.donor, network.donor.cut(network.in_channels)
        classes += resnet_parts(donor.name, cut, sides(network.image_size), donor.width_scale)
        channels, source = cut.channels, "x_bchw"
        modules.append("self.donor = ResNet()")
        steps.append(f"x_bchw = self.donor(images)  # {_shape(channels, *network.map_sides)}")
    stage = network.trunk_stage
    if stage is None:
        steps.append(f"x_bc = x_bchw.mean(dim=(2, 3))  # [B, {channels}]")
        steps += _ending(flags, "x_bc", "x_bc")
    else:
        extra = 1 + network.distillation
        shape = laid_out("TRUNK = StageShape(", _stage_items(stage, network.grid_sides, flags), ")")
        classes += [
            part(blocks.STAGE_SHAPE, flags),
            "\n".join(shape),
            *_block_parts(network, flags),
            _trunk(network, stage, channels, flags),
        ]
        channels = stage.embed_dim
        modules.append("self.trunk = Trunk()")
        steps.append(f"x_bnc = self.trunk({source})  # [B, {extra}, {channels}]")
        steps += _ending(flags, "x_bnc[:, 0]", "x_bnc[:, 1]")
    heads = ["self.head", *(["self.head_dist"] if network.distillation else [])]
    modules += [f"{head} = classifier({channels})" for head in heads]
    return [*classes, part(ends.CLASSIFIER, flags), _network(flags, modules, steps)]


def _trunk(network: Graft, stage: Stage, channels: int, flags: set[str]) -> str:
    grid, width, patch = network.grid_sides, stage.embed_dim, network.patch
    tokens = math.prod(grid)
    steps, kernel = [], "1"
    source = "x_bchw"
    if network.donor is None:
        kernel = f"{patch}, stride={patch}" if patch > 1 else "1"
    elif patch > 1:
        steps.append(f"x_bchw = F.avg_pool2d(x_bchw, {patch})  # {_shape(channels, *grid)}")
    steps.append(f"x_bchw = self.projection({source})  # {_shape(width, *grid)}")
    steps.append(f"x_btc = x_bchw.flatten(2).transpose(1, 2)  # {_shape(tokens, width)}")
    answering = f"class token [B, 1, {width}]"
    if network.distillation:
        answering = f"class token and distillation token [B, 2, {width}]"
    return part(
        ends.TRUNK,
        flags,
        answering=answering,
        channels=channels,
        read=_shape(channels, *network.map_sides),
        kernel=kernel,
        width=width,
        tokens=network.tokens,
        steps=indented(steps, 8),
    )
