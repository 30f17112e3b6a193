"""The stand-alone module of a network: read without this package, and as people would write it."""

import ast
import contextlib
import importlib.util
import io
import re
import runpy
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from levit_search.api import read_space
from levit_search.architecture import (
    GRAFTS,
    LEVITS,
    Architecture,
    Graft,
    Levit,
    ResNetStem,
    fitted,
    parse,
    published,
    published_names,
    scaled,
)
from levit_search.cost import cost
from levit_search.errors import InputError
from levit_search.export.module import module_source
from levit_search.model import build, save_weights
from tests.conftest import ROOT
from tests.random_networks import images_for, random_network, randomised, unfilled

BLOCK = {"num_heads": 2, "key_dim": 4}
TWO_STAGES: dict[str, Any] = {
    "image_size": 16,
    "in_channels": 1,
    "num_classes": 10,
    "stem": {"kind": "conv", "layers": 2},
    "stages": [{"depth": 2, "embed_dim": 16, **BLOCK}, {"depth": 1, "embed_dim": 24, **BLOCK}],
    "shrinks": [{**BLOCK, "stride": 3}],
}
ONE_STAGE = {**TWO_STAGES, "stages": TWO_STAGES["stages"][:1], "shrinks": []}
FOUR_STAGES = {
    **TWO_STAGES,
    "image_size": 32,
    "stages": [{"depth": 1, "embed_dim": 8 * index, **BLOCK} for index in range(1, 5)],
    "shrinks": [{**BLOCK, "stride": 2, "attn_ratio": 0.5}] * 3,
}
VIT: dict[str, Any] = {
    "family": "graft",
    "image_size": 16,
    "in_channels": 1,
    "num_classes": 10,
    "donor": {"stages": 0},
    "grid": 4,
    "trunk": {"depth": 2, "embed_dim": 24, "num_heads": 3},
}
GRAFT = {
    **VIT,
    "donor": {"name": "resnet26", "stages": 2, "stem": "small", "width_scale": 0.25},
}
RESNET = {**GRAFT, "donor": {**GRAFT["donor"], "stages": 4}, "trunk": {"depth": 0}, "grid": None}


def under_resnet(
    kind: str,
    layers: int,
    width: int,
    stem: str = "imagenet",
    width_scale: float = 1,
    **changes: object,
) -> dict[str, Any]:
    of_resnet = {"kind": kind, "layers": layers, "stem": stem, "width_scale": width_scale}
    stages = [{"depth": 1, "embed_dim": width, **BLOCK}]
    return {**ONE_STAGE, "image_size": 32, "stem": of_resnet, "stages": stages, **changes}


CORNERS: dict[str, dict[str, Any]] = {
    "two stages": TWO_STAGES,
    "layer norm": {**TWO_STAGES, "norm": "layer"},
    "position embedding": {**TWO_STAGES, "position": "embedding"},
    "both": {**TWO_STAGES, "norm": "layer", "position": "embedding", "activation": "silu"},
    "drop path": {**TWO_STAGES, "drop_path": 0.3, "distillation": False},
    "gelu": {**TWO_STAGES, "activation": "gelu", "attention_activation": "relu"},
    "relu": {**ONE_STAGE, "activation": "relu", "attention_activation": "silu"},
    "none": {**TWO_STAGES, "activation": "silu", "attention_activation": "none"},
    "attention gelu": {**ONE_STAGE, "attention_activation": "gelu", "position": "embedding"},
    "one stage": ONE_STAGE,
    "one convolution": {**ONE_STAGE, "stem": {"kind": "conv", "layers": 1}},
    "four stages": FOUR_STAGES,
    "patches": {**TWO_STAGES, "stem": {"kind": "patch", "patch_size": 4}, "norm": "layer"},
    "two layers of a resnet": under_resnet("resnet18", 2, 64),
    "a block cut open": under_resnet("resnet34", 6, 24),
    "a bottleneck cut open": under_resnet("resnet50", 12, 128, norm="layer"),
    "a bottleneck cut open and projected": under_resnet("resnet26", 12, 24, norm="layer"),
    "a resnet without shortcuts": under_resnet("resnet18", 5, 16),
    "a narrow resnet": under_resnet("resnet18", 9, 24, width_scale=0.25),
    "a narrow resnet cut open on the small stem": under_resnet(
        "resnet26", 11, 32, stem="small", width_scale=0.25, image_size=16
    ),
    "vit": VIT,
    "vit without distillation": {**VIT, "distillation": False, "drop_path": 0.2},
    "vit of pixels": {**VIT, "image_size": 8, "grid": 8},
    "graft": GRAFT,
    "graft without pooling": {**GRAFT, "grid": 8, "drop_path": 0.2},
    "graft without distillation": {**GRAFT, "distillation": False},
    "graft on the large stem": {
        **GRAFT,
        "image_size": 32,
        "donor": {"name": "resnet18", "stages": 1},
        "grid": 4,
    },
    "resnet": RESNET,
    "resnet without distillation": {**RESNET, "distillation": False, "drop_path": 0.2},
}


NASTY_NAMES = (
    "plain",
    'say "hi"',
    "it's",
    """both ' and \" and \\""",
    """ends in both '\"""",
    '"""',
    "<b>&amp;</b>",
    "\\n is no line, \n is",
    "$taken ${flags} #? batch",
    "ångström 犬 \u202e \x00 \ud800",
    "",
    "long " * 30,
)


def drawn(name: str, count: int, seed: int = 0) -> Iterator[Architecture]:
    """Networks of a space; whatever the space turns down is left out."""
    space, chance = read_space(name).space(), np.random.default_rng(seed)
    while count:
        with contextlib.suppress(InputError):
            yield space.draw(chance)
            count -= 1


def sample() -> dict[str, Architecture]:
    """Corners by name, then random networks, then some of the spaces."""
    found = {name: parse(description) for name, description in CORNERS.items()}
    chance = {f"random {seed}": random_network(seed) for seed in range(24)}
    found |= {name: each for name, each in chance.items() if cost(each).flops < 5e8}
    found |= {f"levit {n}": network for n, network in enumerate(drawn("levit", 4))}
    found |= {f"grafting {n}": network for n, network in enumerate(drawn("grafting", 4))}
    for index, network in enumerate(drawn("levit-imagenet", 2)):
        small = fitted(scaled(network, 0.125), image_size=32, in_channels=3, num_classes=7)
        found[f"imagenet {index}"] = small
    return found


SAMPLE = sample()
NAMES = list(SAMPLE)


def images_of(name: str) -> Tensor:
    """All 64 digits for the corners, two random images for the others."""
    network = SAMPLE[name]
    if name not in CORNERS:
        return images_for(network, 2)
    from sklearn.datasets import load_digits

    digits = torch.tensor(load_digits().images[:64, None] / 8 - 1, dtype=torch.float32)
    return nn.functional.interpolate(digits, size=network.image_size, mode="bicubic")


# Another process reads all modules: it refuses to import anything of ours and what we build on.
READER = """
import sys

REFUSED = {"levit_search", "timm", "numpy", "safetensors", "torchvision", "pydantic", "yaml"}


class Refusing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in REFUSED:
            raise ModuleNotFoundError(f"{name} is not to be had here", name=name)


sys.meta_path.insert(0, Refusing())

import importlib.util
from pathlib import Path

import torch

torch.set_num_threads(1)
for folder in sorted(Path(sys.argv[1]).iterdir()):
    spec = importlib.util.spec_from_file_location(f"model_{folder.name}", folder / "model.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    network, images = module.load(), torch.load(folder / "images.pt")
    assert not network.training
    with torch.inference_mode():
        answer = {"logits": network(images)}
    torch.manual_seed(1)
    outputs = network.train()(images[:3])
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    sum(logits.square().sum() for logits in outputs).backward()
    answer["training"] = [logits.detach() for logits in outputs]
    answer["gradients"] = {
        name: parameter.grad is not None and bool(parameter.grad.isfinite().all())
        for name, parameter in network.named_parameters()
    }
    torch.save(answer, folder / "answer.pt")
assert not REFUSED & set(sys.modules), REFUSED & set(sys.modules)
"""


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, dict[str, Any]]]:
    """What our networks and their modules in the other process answer, by name."""
    folder = tmp_path_factory.mktemp("modules")
    ours: dict[str, dict[str, Any]] = {}
    with torch.random.fork_rng():
        for index, (name, network) in enumerate(SAMPLE.items()):
            torch.manual_seed(index)
            place = folder / f"{index:03d}"
            place.mkdir()
            model = randomised(unfilled(network)).eval()
            images = images_of(name)
            save_weights(model, place / "model.safetensors")
            (place / "model.py").write_text(module_source(network))
            torch.save(images, place / "images.pt")
            with torch.inference_mode():
                logits = model(images)
                torch.manual_seed(1)
                outputs = model.train()(images[:3])
            outputs = outputs if isinstance(outputs, tuple) else (outputs,)
            ours[name] = {"logits": logits, "training": outputs, "place": place}
    done = subprocess.run(
        [sys.executable, "-I", "-c", READER, str(folder)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return {
        name: {"ours": answer, "theirs": torch.load(answer["place"] / "answer.pt")}
        for name, answer in ours.items()
    }


def test_the_sample_reaches_every_kind_of_network() -> None:
    networks = list(SAMPLE.values())
    levits = [network for network in networks if isinstance(network, Levit)]
    grafts = [network for network in networks if isinstance(network, Graft)]
    stems = [network.stem for network in levits if isinstance(network.stem, ResNetStem)]
    assert {stem.kind for stem in stems} == {"resnet18", "resnet26", "resnet34", "resnet50"}
    assert {stem.cut(1).inside_block for stem in stems} == {True, False}
    scaled_stems = {(stem.stem, stem.width_scale < 1) for stem in stems}
    assert scaled_stems >= {("imagenet", False), ("imagenet", True), ("small", True)}
    kinds = {(bool(network.donor), bool(network.trunk)) for network in grafts}
    assert kinds == {(True, True), (True, False), (False, True)}
    assert {len(network.stages) for network in levits} == {1, 2, 3, 4}


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_logits_are_ours_where_this_package_cannot_be_imported(name: str, answers: Any) -> None:
    ours, theirs = answers[name]["ours"]["logits"], answers[name]["theirs"]["logits"]
    assert ours.shape == (len(ours), SAMPLE[name].num_classes)
    assert (ours[0] - ours[1]).std() > 1e-4, "the images must matter to mean much"
    torch.testing.assert_close(theirs, ours, atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", NAMES)
def test_training_gives_our_outputs_and_reaches_every_parameter(name: str, answers: Any) -> None:
    ours, theirs = answers[name]["ours"]["training"], answers[name]["theirs"]["training"]
    assert len(theirs) == 1 + SAMPLE[name].distillation
    for mine, their in zip(ours, theirs, strict=True):
        torch.testing.assert_close(their, mine, atol=1e-4, rtol=1e-4)
    unreached = [n for n, reached in answers[name]["theirs"]["gradients"].items() if not reached]
    assert not unreached


def module_of(network: Architecture, folder: Path) -> ModuleType:
    """The stand-alone module, imported here."""
    path = folder / "model.py"
    path.write_text(module_source(network))
    spec = importlib.util.spec_from_file_location("stand_alone", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", published_names())
def test_published_networks_have_their_parameters_and_names(name: str, tmp_path: Path) -> None:
    network = published(name)
    module = module_of(network, tmp_path)
    with torch.device("meta"):
        theirs = module.Network().state_dict()
        ours = build(network).state_dict() if isinstance(network, Levit) else None
    counted = [tensor for key, tensor in theirs.items() if "running" not in key]
    counted = [tensor for tensor in counted if tensor.ndim]
    assert sum(map(torch.numel, counted)) == module.PARAMETERS == cost(network).params
    if ours is not None:
        assert {n: t.shape for n, t in theirs.items()} == {n: t.shape for n, t in ours.items()}
    if name in LEVITS + GRAFTS:
        assert (module.__doc__ or "").startswith(name)


@pytest.mark.parametrize(
    "name",
    ["two stages", "both", "patches", "a bottleneck cut open and projected", "vit", "graft"],
)
def test_a_fresh_network_starts_as_ours_does(name: str, tmp_path: Path) -> None:
    network = SAMPLE[name]
    ours = build(network).state_dict()
    theirs = module_of(network, tmp_path).Network().state_dict()
    assert ours.keys() == theirs.keys()
    for key, tensor in ours.items():
        found = theirs[key]
        if tensor.numel() < 2 or tensor.std() == 0:
            torch.testing.assert_close(found, tensor, msg=key)
        elif tensor.numel() >= 200:
            assert found.std() / tensor.std() == pytest.approx(1, abs=0.2), key
            # Uniform or normal: the largest of a uniform distribution is 1.73 deviations away.
            is_uniform = [bool(t.abs().max() / t.std() < 1.9) for t in (tensor, found)]
            assert is_uniform[0] == is_uniform[1], key


def test_texts_compile_without_warnings_and_stand_as_ruff_has_them(tmp_path: Path) -> None:
    pytest.importorskip("ruff")
    for index, network in enumerate([*SAMPLE.values(), *map(published, published_names())]):
        text = module_source(network, NASTY_NAMES[: index % len(NASTY_NAMES)])
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            compile(text, "model.py", "exec")
        (tmp_path / f"network_{index}.py").write_text(text)
    settings = ["--config", str(ROOT / "pyproject.toml"), "--no-cache", str(tmp_path)]
    for command in (["check"], ["format", "--check", "--line-length", "100"]):
        done = subprocess.run(
            [sys.executable, "-m", "ruff", *command, *settings], capture_output=True, text=True
        )
        assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("name", NAMES)
def test_nothing_stands_in_a_text_that_its_network_does_not_use(name: str) -> None:
    network, text = SAMPLE[name], module_source(SAMPLE[name])
    has_attention = isinstance(network, Levit) or network.trunk is not None
    assert ("LayerNorm" in text) == (has_attention and network.norm == "layer")
    assert ("DropPath" in text) == (has_attention and network.drop_path > 0)
    assert ("Shrink" in text) == (isinstance(network, Levit) and len(network.stages) > 1)
    assert ("attention_bias" in text) == (network.position == "bias")
    assert ("head_dist" in text) == ("by_teacher" in text) == network.distillation
    defined = [
        node.name
        for node in ast.parse(text).body
        if isinstance(node, ast.ClassDef | ast.FunctionDef) and node.name != "load"
    ]
    assert not [each for each in defined if len(re.findall(rf"\b{each}\b", text)) < 2]


def test_class_names_stay_strings_whatever_they_hold(tiny: Architecture, tmp_path: Path) -> None:
    assert "CLASS_NAMES" not in module_source(tiny)
    text = module_source(tiny, NASTY_NAMES)
    found: dict[str, Any] = {"__name__": "stand_alone", "__file__": str(tmp_path / "model.py")}
    exec(compile(text.encode(), "model.py", "exec"), found)
    assert found["CLASS_NAMES"] == list(NASTY_NAMES)


def test_a_file_of_weights_that_does_not_fit_is_refused(tiny: Architecture, tmp_path: Path) -> None:
    module, path = module_of(tiny, tmp_path), tmp_path / "model.safetensors"
    with pytest.raises(FileNotFoundError):
        module.load()
    save_weights(build(tiny), path)
    assert not module.load().training
    content = path.read_bytes()
    for cut in (content[:-1], content[:100], content[:5], b""):
        (tmp_path / "cut").write_bytes(cut)
        with pytest.raises(ValueError, match="cut"):
            module.load(str(tmp_path / "cut"))
    (tmp_path / "other").write_bytes(b"no safetensors file, by no means")
    with pytest.raises(ValueError, match="other"):
        module.load(tmp_path / "other")

    weights = load_file(path)
    bias = weights.pop("head.linear.bias")
    save_file(weights, path)
    with pytest.raises(RuntimeError, match=r"Missing.*head\.linear\.bias"):
        module.load()
    save_file({**weights, "head.linear.bias": bias[:-1]}, path)
    with pytest.raises(RuntimeError, match="size mismatch"):
        module.load()
    save_file({**weights, "head.linear.bias": bias, "more": bias.clone()}, path)
    with pytest.raises(RuntimeError, match=r"Unexpected.*more"):
        module.load()


def test_the_file_on_its_own_tells_its_size_and_tries_itself(
    tiny: Architecture, tmp_path: Path
) -> None:
    path = tmp_path / "model.py"
    path.write_text(module_source(tiny))
    for state in ("fresh", "trained"):
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            runpy.run_path(str(path), run_name="__main__")
        params = f"{cost(tiny).params:,} parameters"
        assert printed.getvalue() == f"{state}, {params}: [2, 1, 16, 16] to [2, 10]\n"
        save_weights(build(tiny), tmp_path / "model.safetensors")
    path.write_text(module_source(tiny).replace("PARAMETERS = ", "PARAMETERS = 1 + "))
    with pytest.raises(SystemExit, match="expected"):
        runpy.run_path(str(path), run_name="__main__")
