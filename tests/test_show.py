"""The command ``show``, and SVG as PNG."""

import json
import sys
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

from levit_search import architecture, cost
from levit_search.drawing.diagram import NetworkView
from levit_search.drawing.svg import Svg, document, png
from levit_search.drawing.weight_maps import BiasMaps
from levit_search.errors import LevitSearchError
from levit_search.model import build
from levit_search.model.weights import save_weights
from levit_search.search import driver
from levit_search.study import Study
from tests.conftest import Cli
from tests.engines import StubEngine, run
from tests.networks import tiny_description
from tests.random_networks import randomised


@pytest.fixture
def study(
    tmp_path: Path, space_file: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> Study:
    """Two trials; the first one's network has weights."""
    monkeypatch.setattr(driver, "make_engine", StubEngine)
    _, searched = run(space_file(), tmp_path / "s", **{"search.trials": 2})
    first = searched.records()[0].architecture
    assert first is not None
    searched.checkpoints.mkdir(exist_ok=True)
    save_weights(randomised(build(first)), searched.checkpoints / f"{first.id}.safetensors")
    return searched


def test_the_terminal_shows_every_block_with_its_share(cli: Cli) -> None:
    done = cli("show", "LeViT-256")
    assert done.returncode == 0 and not done.stderr
    lines = done.stdout.splitlines()
    assert lines[0].strip() == "LeViT-256: 1.13 G FLOPs, 18.9 M parameters"
    row = next(line for line in lines if "4 × attention  6 heads" in line)
    assert "384×7×7" in row and "92.3 M" in row and "8.2" in row and "█" in row


def test_json_has_the_figures_of_every_block(cli: Cli) -> None:
    document = json.loads(cli("show", "graft-1-9", "--format", "json").stdout)
    total = cost.cost(architecture.published("graft-1-9"))
    assert {name: document[name] for name in total._fields} == total._asdict()
    assert sum(block["flops"] for block in document["blocks"]) == total.flops
    assert {"stage", "name", "kind", "title", "detail", "grid", "tokens"} <= set(
        document["blocks"][0]
    )
    assert document["attention_biases"] == []


def test_what_is_no_number_is_null_in_json() -> None:
    values = np.array([[[0.25, np.nan], [np.inf, -1]]], dtype=np.float32)
    network = architecture.parse(tiny_description())
    drawn = NetworkView(network, "tiny", [BiasMaps("stages.0.blocks.0", "", values)], None)
    assert drawn.as_json()["attention_biases"][0]["values"] == [[[0.25, None], [None, -1.0]]]


def test_a_trial_is_drawn_with_the_maps_of_its_weights(cli: Cli, study: Study) -> None:
    done = cli("show", "s#0", "--format", "svg")
    assert done.returncode == 0 and not done.stderr
    texts = [element.text for element in ElementTree.fromstring(done.stdout).iter()]
    assert "trial 0 of s" in texts and "Attention biases" in texts
    network = study.records()[0].architecture
    biases = json.loads(cli("show", "s#0", "--format", "json").stdout)["attention_biases"]
    assert network is not None
    assert len(biases) == len(network.stages) + len(network.shrinks)  # type: ignore[union-attr]
    other = study.records()[1].architecture
    if other != network:
        done = cli("show", "s#1", "--format", "svg")
        assert done.returncode == 0 and "no trained weights are there" in done.stderr
        assert "Attention biases" not in done.stdout
    assert cli("show", "s#0").stderr == "", "the terminal needs no weights"
    missing = cli("show", "s#7", "--format", "svg")
    assert missing.returncode == 2 and "no finished trial '7'" in missing.stderr


def test_weights_of_any_network_are_drawn_from_a_file(cli: Cli, tmp_path: Path) -> None:
    network = architecture.parse(tiny_description())
    (tmp_path / "mine.yaml").write_text(network.to_yaml())
    save_weights(randomised(build(network)), tmp_path / "w.safetensors")
    done = cli("show", "mine.yaml", "--weights", "w.safetensors", "--out", "mine.svg")
    assert done.returncode == 0 and not done.stdout
    text = (tmp_path / "mine.svg").read_text()
    assert "Attention biases" in text and "Block diagram of mine<" in text
    done = cli("show", "graft-4-0", "--weights", "w.safetensors", "--format", "svg")
    assert done.returncode == 0 and "neither attention biases nor filters" in done.stderr
    done = cli("show", "LeViT-256", "--weights", "w.safetensors", "--format", "svg")
    assert done.returncode == 2 and not done.stdout
    assert "w.safetensors: stages.0.blocks.0.attention.core.attention_bias has shape" in done.stderr
    done = cli("show", "mine.yaml", "--weights", "none.safetensors", "--format", "svg")
    assert done.returncode == 2 and "none.safetensors: no such file" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["LeViT-257"], "unknown architecture 'LeViT-257'; did you mean 'LeViT-256'?"),
        (["timm/resnet18"], "takes our own networks only"),
        (["LeViT-256", "--format", "svgz"], "unknown --format 'svgz'; did you mean 'svg'?"),
        (
            ["LeViT-256", "--out", "a.gif"],
            "no format is known by .gif; give --format terminal, svg",
        ),
        (["LeViT-256", "--out", "no/such/a.svg"], "no/such/a.svg: cannot be written (No such file"),
        (["LeViT-256", "--weights", "w"], "the terminal shows no maps; give --format svg"),
    ],
)
def test_wrong_input_is_told_in_a_line(cli: Cli, arguments: list[str], message: str) -> None:
    done = cli("show", *arguments)
    assert done.returncode == 2 and not done.stdout
    assert message in done.stderr and done.stderr.count("\n") == 1


def test_the_file_s_name_gives_the_format(cli: Cli, tmp_path: Path) -> None:
    for name, start in {
        "a.svg": b"<svg",
        "a.png": b"\x89PNG",
        "a.json": b"{",
        "a.txt": b"LeV",
    }.items():
        assert cli("show", "LeViT-128S", "--out", name).returncode == 0
        assert (tmp_path / name).read_bytes().startswith(start)
    assert cli("show", "LeViT-128S", "--out", "b.svg", "--format", "json").returncode == 0
    assert (tmp_path / "b.svg").read_bytes().startswith(b"{")


def drawn(picture: bytes) -> np.ndarray:
    """[height, width, RGB]"""
    return np.asarray(Image.open(BytesIO(picture)).convert("RGB")).astype(int)


def test_a_png_has_text_in_it_and_is_of_the_light_theme() -> None:
    pytest.importorskip("resvg_py", reason="resvg-py is not installed")
    part = Svg()
    part.text(4, 30, "Hello × →", 20, bold=True)
    part.height = 40
    with_text = drawn(png(document([part], "", ""), scale=1))
    assert with_text.shape == (40, 384, 3)
    assert (with_text == 255).all(axis=2).mean() > 0.8, "a light background"
    dark = (with_text < 80).all(axis=2)
    assert dark[10:32, 4:180].sum() > 300, "dark letters"
    assert not dark[:, 180:].any()
    twice = drawn(png(document([part], "", "")))
    assert twice.shape == (80, 768, 3)


def test_what_is_no_svg_cannot_be_a_png() -> None:
    pytest.importorskip("resvg_py", reason="resvg-py is not installed")
    with pytest.raises(LevitSearchError, match="cannot be drawn as PNG"):
        png("<svg")


def test_without_resvg_png_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "resvg_py", None)
    with pytest.raises(LevitSearchError, match="pip install resvg-py"):
        png("<svg/>")
