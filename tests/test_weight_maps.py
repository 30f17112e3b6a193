"""Attention biases and patch filters: they are the model's, and their pictures show them."""

import base64
import re
import subprocess
import sys
from io import BytesIO
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from PIL import Image

from levit_search import architecture
from levit_search.architecture import Architecture, Graft
from levit_search.drawing import weight_maps
from levit_search.drawing.weight_maps import BiasMaps, PatchFilters
from levit_search.errors import InputError
from levit_search.model import Model, build
from levit_search.model.weights import save_weights
from tests.networks import tiny_description
from tests.random_networks import random_levit, randomised, unfilled

SVG = "{http://www.w3.org/2000/svg}"


def vit(channels: int = 3, **changes: object) -> Architecture:
    """A small ViT whose heads have few enough channels for all filters to be shown."""
    description = {
        "family": "graft",
        "image_size": 16,
        "in_channels": channels,
        "num_classes": 10,
        "donor": None,
        "grid": 4,
        "trunk": {"depth": 1, "embed_dim": 24, "num_heads": 3},
        **changes,
    }
    return architecture.parse(description)


def with_patches(norm: str, position: str = "bias") -> Architecture:
    stage = {"depth": 2, "embed_dim": 20, "num_heads": 2, "key_dim": 6, "attn_ratio": 1.5}
    return architecture.parse(
        tiny_description(
            stem={"kind": "patch", "patch_size": 4}, stages=[stage], norm=norm, position=position
        )
    )


def graft(**donor: object) -> Architecture:
    donor = {"name": "resnet18", "stages": 1, "stem": "small", "width_scale": 0.25, **donor}
    return vit(1, image_size=32, donor=donor, grid=8)


def arrays(model: Model) -> dict[str, Any]:
    return {name: tensor.numpy() for name, tensor in model.state_dict().items()}


@pytest.mark.parametrize("seed", range(40))
def test_a_map_holds_the_bias_of_every_query_and_key(seed: int) -> None:
    network = random_levit(seed)
    if network.position == "embedding":
        assert weight_maps.attention_biases(network, {}) == []
        return
    model = randomised(unfilled(network))
    found = weight_maps.attention_biases(network, arrays(model))
    blocks = [
        n.removesuffix(".attention.core") for n, _ in model.named_modules() if n.endswith(".core")
    ]
    assert sorted(maps.block for maps in found) == sorted(blocks)
    for maps in found:
        core = model.get_submodule(f"{maps.block}.attention.core")
        heads, *grid = maps.values.shape
        stride = 1
        if maps.block.startswith("shrinks"):
            stride = network.shrinks[int(maps.block.split(".")[1])].stride
        gathered = core.gathered_bias().detach().numpy()  # type: ignore[operator]
        queries = [(y, x) for y in range(0, grid[0], stride) for x in range(0, grid[1], stride)]
        for q, (y, x) in enumerate(queries):
            rows, columns = np.abs(np.arange(grid[0]) - y), np.abs(np.arange(grid[1]) - x)
            expected = maps.values[:, rows[:, None], columns].reshape(heads, -1)
            assert np.array_equal(gathered[:, q], expected)


def test_blocks_are_told_in_the_order_of_the_network() -> None:
    network = architecture.published("LeViT-128S")
    shapes = {
        f"{name}.attention.core.attention_bias": (heads, grid * grid)
        for name, heads, grid in [
            *((f"stages.0.blocks.{i}", 4, 14) for i in range(2)),
            ("shrinks.0", 8, 14),
            *((f"stages.1.blocks.{i}", 6, 7) for i in range(3)),
            ("shrinks.1", 16, 7),
            *((f"stages.2.blocks.{i}", 8, 4) for i in range(4)),
        ]
    }
    weights = {name: np.zeros(shape, dtype=np.float32) for name, shape in shapes.items()}
    found = weight_maps.attention_biases(network, weights)
    assert [f"{maps.block}.attention.core.attention_bias" for maps in found] == list(shapes)
    assert [maps.text for maps in found][:4] == [
        "stage 1, block 1",
        "stage 1, block 2",
        "shrink 1",
        "stage 2, block 1",
    ]


@torch.no_grad()
def seen_by_the_first_block(model: Model) -> torch.Tensor:
    """How the first block's projection answers to each weight of a patch alone: [outputs, weights].

    The division of a layer norm is undone, since it depends on the whole token.
    """
    network = model.architecture
    if isinstance(network, Graft):
        projection, first = model.get_submodule("trunk.projection"), "trunk.blocks.0.attention"
    else:
        projection, first = model.get_submodule("stem.convs.0"), "stages.0.blocks.0.attention"
    model.eval()
    _, channels, side, _ = projection.conv.weight.shape
    count = channels * side * side
    patches = torch.cat([torch.zeros(1, count), torch.eye(count)])
    tokens = projection(patches.view(-1, channels, side, side)).flatten(1)
    tokens = tokens[1:] - tokens[:1]
    if network.norm == "layer":
        norm = model.get_submodule(f"{first}.norm")
        deviation = (tokens.var(dim=1, unbiased=False, keepdim=True) + norm.eps).sqrt()
        tokens = (norm(tokens) - norm.bias) * deviation
    qkv = model.get_submodule(f"{first}.qkv")
    tokens = torch.cat([torch.zeros(1, tokens.shape[1]), tokens])
    answers = qkv(tokens[None])[0]
    return (answers[1:] - answers[:1]).T


@pytest.mark.parametrize(
    "network",
    [vit(3), vit(1, distillation=False), with_patches("batch"), with_patches("layer"), graft()],
    ids=["vit", "grey vit", "patches, batch norm", "patches, layer norm", "donor"],
)
def test_filters_are_what_the_first_block_answers_to(network: Architecture) -> None:
    model = randomised(build(network))
    found = weight_maps.patch_filters(network, arrays(model))
    assert found is not None
    is_donor = isinstance(network, Graft) and network.donor is not None
    assert found.over == ("channels" if is_donor else "pixels")
    expected = seen_by_the_first_block(model).numpy()
    heads, keys = found.values["query"].shape[:2]
    by_head = expected.reshape(heads, -1, expected.shape[1])
    parts = dict(
        zip(("query", "key", "value"), np.split(by_head, [keys, 2 * keys], axis=1), strict=True)
    )
    for part, filters in found.values.items():
        assert filters.shape[1] == parts[part].shape[1] <= 12
        for head in range(heads):
            wanted = parts[part][head]
            order = np.argsort(-np.linalg.norm(wanted, axis=1))
            given = filters[head].reshape(len(order), -1)
            np.testing.assert_allclose(given, wanted[order], rtol=1e-3, atol=1e-4)


def test_the_twelve_largest_filters_are_shown_and_four_of_large_ones() -> None:
    network = vit(3, trunk={"depth": 1, "embed_dim": 32, "num_heads": 2})
    found = weight_maps.patch_filters(network, arrays(randomised(build(network))))
    assert found is not None
    assert found.values["value"].shape == (2, 12, 3, 4, 4)
    norms = np.linalg.norm(found.values["value"].reshape(2, 12, -1), axis=2)
    assert (np.diff(norms, axis=1) <= 0).all()
    large = vit(3, image_size=64, grid=2, trunk={"depth": 1, "embed_dim": 32, "num_heads": 2})
    found = weight_maps.patch_filters(large, arrays(randomised(build(large))))
    assert found is not None and found.values["key"].shape == (2, 4, 3, 32, 32)


@pytest.mark.parametrize("name", ["LeViT-256", "ablation-A3", "graft-4-0"])
def test_networks_whose_first_block_sees_no_patches_have_no_filters(name: str) -> None:
    assert weight_maps.patch_filters(architecture.published(name), {}) is None


def test_missing_and_misshapen_tensors_are_wrong_input() -> None:
    network = with_patches("batch")
    weights = arrays(build(network))
    bias = "stages.0.blocks.1.attention.core.attention_bias"
    with pytest.raises(InputError, match=rf"^w\.st: {bias} has shape \[2, 9\], .* has \[2, 16\]"):
        weight_maps.attention_biases(network, {**weights, bias: np.zeros((2, 9))}, "w.st")
    del weights[bias]
    with pytest.raises(InputError, match=f"^weights: {bias} is missing; expected"):
        weight_maps.attention_biases(network, weights)
    patch = "stem.convs.0.conv.weight"
    with pytest.raises(InputError, match=rf"{patch} has shape \[20, 1, 2, 2\], .*\[20, 1, 4, 4\]"):
        weight_maps.patch_filters(network, {**weights, patch: np.zeros((20, 1, 2, 2))})


def test_files_are_read_and_others_are_wrong_input(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    model = randomised(build(with_patches("batch")))
    save_weights(model, tmp_path / "w.safetensors")
    read = weight_maps.read_weights(tmp_path / "w.safetensors")
    assert "head.linear.weight" not in read
    for name, array in read.items():
        assert np.array_equal(array, model.state_dict()[name].float().numpy())
    with pytest.raises(InputError, match="absent: no such file"):
        weight_maps.read_weights(tmp_path / "absent")
    (tmp_path / "text").write_text("no tensors in here, only words")
    with pytest.raises(InputError, match=r"text: damaged .*or no safetensors file"):
        weight_maps.read_weights(tmp_path / "text")
    bias = {"stages.0.blocks.0.attention.core.attention_bias": torch.zeros(1, 4)}
    save_file({k: v.half() for k, v in bias.items()}, tmp_path / "half")
    assert next(iter(weight_maps.read_weights(tmp_path / "half").values())).dtype == np.float32


def pictures(svg: str) -> list[np.ndarray]:
    """All pictures in an SVG as [height, width, RGBA]."""
    found = []
    for raw in re.findall(r'href="data:image/png;base64,([^"]+)"', svg):
        image = Image.open(BytesIO(base64.b64decode(raw))).convert("RGBA")
        found.append(np.asarray(image).astype(int))
    return found


def test_zero_is_white_and_both_signs_have_colours_of_their_own() -> None:
    values = np.array([[[2, 0], [-2, np.nan]], [[1, -1], [0, 0]]], dtype=np.float32)
    svg = weight_maps.svg([BiasMaps("stages.0.blocks.0", "stage 1, block 1", values)], None)
    legend, first, second = pictures(svg)
    assert legend.shape[0] == 1
    assert (first[0, 1] == (247, 247, 247, 255)).all()
    assert (first[0, 0] == legend[0, -1]).all() and (first[1, 0] == legend[0, 0]).all()
    assert first[0, 0, 0] > first[0, 0, 2] + 50, "orange"
    assert first[1, 0, 2] > first[1, 0, 0] + 50, "blue"
    assert first[1, 1, 3] == 0, "no number is clear"
    assert (second[1] == first[0, 1]).all()
    texts = [element.text for element in ElementTree.fromstring(svg).iter(f"{SVG}text")]
    assert {"\N{MINUS SIGN}2", "0", "+2", "head 1", "head 2", "stage 1, block 1"} <= set(texts)


def test_untrained_biases_are_white() -> None:
    network = architecture.parse(tiny_description())
    svg = weight_maps.svg(weight_maps.attention_biases(network, arrays(build(network))), None)
    assert all((picture == (247, 247, 247, 255)).all() for picture in pictures(svg)[1:])


def test_filters_of_colours_are_coloured_and_those_of_grey_are_grey() -> None:
    for channels in (3, 1):
        network = vit(channels)
        filters = weight_maps.patch_filters(network, arrays(randomised(build(network))))
        found = pictures(weight_maps.svg([], filters))
        assert len(found) == 3 * 3
        for picture in found:
            assert picture.shape == (2 * 4 + 1, 4 * 4 + 3, 4)
            assert (picture[4, :, 3] == 0).all() and (picture[:, 4, 3] == 0).all()
            tile = picture[:4, :4]
            assert (tile[..., 3] == 255).all()
            is_grey = (tile[..., 0] == tile[..., 1]).all() and (tile[..., 1] == tile[..., 2]).all()
            assert is_grey == (channels == 1)
            assert tile[..., :3].max() == 252 or tile[..., :3].min() == 4


def test_zero_filters_are_even_grey() -> None:
    filters = {
        part: np.zeros((1, 2, 3, 4, 4), dtype=np.float32) for part in ("query", "key", "value")
    }
    for picture in pictures(weight_maps.svg([], PatchFilters("pixels", filters))):
        shown = picture[..., :3][picture[..., 3] == 255]
        assert shown.min() == shown.max()


def test_channels_of_a_donor_fill_a_square() -> None:
    network = graft(width_scale=0.3)  # 19 channels
    filters = weight_maps.patch_filters(network, arrays(randomised(unfilled(network))))
    assert filters is not None and filters.values["key"].shape == (3, 8, 19, 1, 1)
    for picture in pictures(weight_maps.svg([], filters)):
        assert picture.shape == (2 * 5 + 1, 4 * 5 + 3, 4)
        assert (picture[:5, :5, 3] == 255).sum() == 19


def test_the_svg_is_sound_and_says_what_it_shows() -> None:
    network = with_patches("layer")
    weights = arrays(randomised(build(network)))
    biases = weight_maps.attention_biases(network, weights)
    filters = weight_maps.patch_filters(network, weights)
    for is_embedded in (False, True):
        svg = weight_maps.svg(biases, filters, "<i>this</i>", is_embedded)
        root = ElementTree.fromstring(svg)
        assert root[0].text == "Weights of <i>this</i>"
        assert "Attention biases of stage 1, block 2: 2 heads, from" in (root[1].text or "")
        assert "Patch filters of 2 heads, 6 each, over pixels" in (root[1].text or "")
        height = float(root.attrib["viewBox"].split()[3])
        for image in root.iter(f"{SVG}image"):
            assert float(image.attrib["y"]) + float(image.attrib["height"]) <= height
        assert 'id="' not in svg and "image-rendering: pixelated" in svg


def test_drawing_imports_neither_torch_nor_matplotlib(tmp_path: Path) -> None:
    network = with_patches("batch")
    save_weights(build(network), tmp_path / "w.safetensors")
    (tmp_path / "a.yaml").write_text(network.to_yaml())
    code = (
        "import sys; from pathlib import Path; from levit_search import architecture\n"
        "from levit_search.drawing.diagram import network_view\n"
        f"folder = Path({str(tmp_path)!r})\n"
        "network = architecture.load(str(folder / 'a.yaml'))\n"
        "assert network_view(network, 'a', folder / 'w.safetensors').has_maps\n"
        "network_view(network, 'a', folder / 'w.safetensors').svg()\n"
        "print([name for name in ('torch', 'matplotlib', 'optuna', 'timm') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "[]", done.stderr
