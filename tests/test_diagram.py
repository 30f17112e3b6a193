"""The block diagram: its figures are the network's, its shapes the model's, its pictures sound."""

import re
from xml.etree import ElementTree

import pytest
import torch
from torch import nn

from levit_search import architecture, cost
from levit_search.architecture import published, published_names
from levit_search.drawing import diagram
from levit_search.drawing.diagram import Block, amount, share
from levit_search.drawing.listing import Listing
from levit_search.drawing.svg import SMALL, WIDTH
from levit_search.image_size import sides
from tests.networks import tiny_description
from tests.random_networks import images_for, random_network, unfilled

SVG = "{http://www.w3.org/2000/svg}"


def stages_of(blocks: list[Block]) -> list[str]:
    return list(dict.fromkeys(block.stage for block in blocks))


@pytest.mark.parametrize("name", [*published_names(), *map(str, range(150))])
def test_the_blocks_add_up_to_the_network(name: str) -> None:
    network = random_network(int(name)) if name.isdigit() else published(name)
    blocks = diagram.blocks(network)
    total = cost.cost(network)
    assert sum(block.params for block in blocks) == total.params
    assert sum(block.flops for block in blocks) == total.flops
    assert sum(block.params_share for block in blocks) == pytest.approx(1)
    assert sum(block.flops_share for block in blocks) == pytest.approx(1)
    rows = diagram.rows(blocks)
    assert sum(row.params for row in rows) == total.params
    assert sum(row.flops for row in rows) == total.flops
    assert sum(row.repeats for row in rows) == len(blocks)


@pytest.mark.parametrize("seed", range(16))
def test_blocks_are_the_models_modules_and_end_with_their_shapes(seed: int) -> None:
    network = random_network(seed)
    model = unfilled(network).eval()
    named = {block.name: block for block in diagram.blocks(network) if block.name}
    seen: dict[str, torch.Size] = {}

    def note(name: str) -> None:
        def hook(_module: nn.Module, _inputs: object, output: torch.Tensor) -> None:
            seen[name] = output.shape[1:]

        model.get_submodule(name).register_forward_hook(hook)

    parameters = {name for name, _ in model.named_parameters()}
    for name in named:
        if name not in parameters:
            note(name)
    with torch.inference_mode():
        model(images_for(network))
    # A ResNet's first convolution is followed by its norm; the map is the same.
    assert set(seen) == set(named) - parameters
    for name, shape in seen.items():
        block = named[name]
        if len(shape) == 3:
            assert block.grid is not None and shape == (block.width, *sides(block.grid)), name
        elif len(shape) == 2:
            assert shape == (block.tokens, block.width), name
        else:
            assert shape == (block.width,) and block.tokens == 1, name


def test_levit_256_is_drawn_as_in_the_papers_figure_4() -> None:
    network = published("LeViT-256")
    blocks = diagram.blocks(network)
    assert stages_of(blocks) == [
        "stem",
        "stage 1",
        "shrink 1",
        "stage 2",
        "shrink 2",
        "stage 3",
        "heads",
    ]
    rows = diagram.rows(blocks)
    assert [(row.title, row.block.shape) for row in rows] == [
        ("convolution", "32×112×112"),
        ("convolution", "64×56×56"),
        ("convolution", "128×28×28"),
        ("convolution", "256×14×14"),
        ("4 × attention", "256×14×14"),
        ("4 × MLP", "256×14×14"),
        ("shrinking attention", "384×7×7"),
        ("MLP", "384×7×7"),
        ("4 × attention", "384×7×7"),
        ("4 × MLP", "384×7×7"),
        ("shrinking attention", "512×4×4"),
        ("MLP", "512×4×4"),
        ("4 × attention", "512×4×4"),
        ("4 × MLP", "512×4×4"),
        ("average pooling", "512"),
        ("class head", "1000"),
        ("distillation head", "1000"),
    ]
    assert rows[4].block.text == "attention, 4 heads, key 32, value 64"
    assert rows[5].block.text == "MLP, 256 → 512 → 256"
    assert rows[6].block.text == "shrinking attention, 8 heads, key 32, value 128"
    assert sum(row.flops for row in rows[:4]) == 184_246_272


def test_a_graft_has_its_donors_stages_pooling_tokens_and_trunk() -> None:
    blocks = diagram.blocks(published("graft-2-6"))
    stages = ["ResNet stem", "ResNet stage 1", "ResNet stage 2", "tokens", "trunk", "heads"]
    assert stages_of(blocks) == stages
    texts = [(row.repeats, row.block.text, row.block.shape) for row in diagram.rows(blocks)]
    assert texts[:6] == [
        (1, "convolution, 7×7, stride 2", "64×112×112"),
        (1, "max pooling, 3×3, stride 2", "64×56×56"),
        (1, "bottleneck block, 1×1 shortcut", "256×56×56"),
        (2, "bottleneck block", "256×56×56"),
        (1, "bottleneck block, stride 2, 1×1 shortcut", "512×28×28"),
        (3, "bottleneck block", "512×28×28"),
    ]
    assert texts[6:11] == [
        (1, "average pooling, 2×2, stride 2", "512×14×14"),
        (1, "projection, 1×1 convolution", "384×14×14"),
        (1, "class token", "384×197"),
        (1, "distillation token", "384×198"),
        (1, "position embedding", "384×198"),
    ]
    assert texts[11] == (6, "attention, 6 heads, key 64, value 64", "384×198")


def test_a_stem_that_ends_inside_a_resnets_block_says_so() -> None:
    stage = {"depth": 1, "embed_dim": 128, "num_heads": 1, "key_dim": 8}
    description = tiny_description(
        image_size=32, stem={"kind": "resnet18", "layers": 6}, stages=[stage]
    )
    blocks = diagram.blocks(architecture.parse(description))
    part = next(block for block in blocks if block.stage == "ResNet stage 2")
    assert part.text == "basic block, 1 of 2 convolutions, stride 2"
    assert part.shape == "128×4×4"


@pytest.mark.parametrize("name", [*published_names(), *map(str, range(30))])
def test_the_svg_is_sound_and_readable_on_a_phone(name: str) -> None:
    network = random_network(int(name)) if name.isdigit() else published(name)
    title = '<b>bold</b> & "quoted"'
    for is_embedded in (False, True):
        text = diagram.svg(network, title, embedded=is_embedded)
        root = ElementTree.fromstring(text)
        assert root.attrib["role"] == "img"
        assert [element.tag for element in root[:2]] == [f"{SVG}title", f"{SVG}desc"]
        assert root[0].text == f"Block diagram of {title}"
        assert "heads: class head" in (root[1].text or "")
        assert "url(" not in text and 'id="' not in text
        assert text.count("http") == 1, "nothing but the namespace names another place"
        assert root.attrib["viewBox"].startswith(f"0 0 {WIDTH} ")
        sizes = [float(element.attrib["font-size"]) for element in root.iter(f"{SVG}text")]
        assert min(sizes) >= SMALL
        assert ("var(--ink" in text) == is_embedded
        assert ("prefers-color-scheme" in text) != is_embedded
        height = float(root.attrib["viewBox"].split()[3])
        for box in root.iter(f"{SVG}rect"):
            if box.attrib.get("width") != "100%":
                x, y, w, h = (float(box.attrib[key]) for key in ("x", "y", "width", "height"))
                assert x >= 0 and x + w <= WIDTH + 0.01 and y + h <= height


def test_bars_are_in_proportion_and_the_longest_is_the_full_one() -> None:
    network = published("LeViT-256")
    rows = [row for row in diagram.rows(diagram.blocks(network)) if row.params]
    root = ElementTree.fromstring(diagram.svg(network))

    def lengths(look: str) -> list[float]:
        found = [box for box in root.iter(f"{SVG}rect") if box.attrib["class"] == f"drawing-{look}"]
        return [float(box.attrib["width"]) for box in found]

    shares = {
        "flops": [row.flops_share for row in rows],
        "params": [row.params_share for row in rows],
    }
    full = max(*shares["flops"], *shares["params"])
    longest = max(*lengths("flops"), *lengths("params"))
    for look, parts in shares.items():
        for length, part in zip(lengths(look), parts, strict=True):
            assert length == pytest.approx(max(1, longest * part / full), abs=0.01)


@pytest.mark.parametrize("name", ["LeViT-384", "graft-1-9", "graft-4-0", "ablation-A5"])
@pytest.mark.parametrize("width", [80, 100, 160])
def test_the_terminals_diagram_keeps_its_columns(name: str, width: int) -> None:
    text = Listing(published(name), name).text(width)
    lines = text.splitlines()
    assert max(map(len, lines)) <= width
    assert lines[0].startswith(f"{name}: ")
    rows = diagram.rows(diagram.blocks(published(name)))
    assert (
        sum(" K " in line or " M " in line or " G " in line for line in lines[2:]) >= len(rows) // 2
    )
    assert all(row.block.shape in text for row in rows)
    assert text.count("█") > 10


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (999, "999"),
        (1000, "1.00 K"),
        (38_420, "38.4 K"),
        (99_960, "100 K"),
        (999_600, "1.00 M"),
        (184_246_272, "184 M"),
        (1_128_024_056, "1.13 G"),
    ],
)
def test_amounts_have_three_digits(value: int, text: str) -> None:
    assert amount(value) == text


def test_a_small_share_is_not_none() -> None:
    assert [share(value) for value in (0, 0.001, 0.006, 0.164, 1)] == [
        "0 %",
        "<1 %",
        "1 %",
        "16 %",
        "100 %",
    ]


def test_lengths_and_sizes_are_plain_numbers() -> None:
    text = diagram.svg(random_network(4))
    assert not re.search(r'"-?\d+e|nan|inf"', text)
