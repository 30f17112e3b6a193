"""A network as a checkpoint of timm: who has one, and what timm makes of it."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from levit_search.architecture import parse, published
from levit_search.data.sources import center_cropped
from levit_search.errors import InputError
from levit_search.export.timm_checkpoint import timm_checkpoint
from levit_search.image_size import Sides
from levit_search.model import Model
from tests.random_networks import randomised, unfilled

STAGES = [
    {"depth": 2, "embed_dim": 16, "num_heads": 3, "key_dim": 8},
    {"depth": 1, "embed_dim": 24, "num_heads": 2, "key_dim": 8},
    {"depth": 3, "embed_dim": 32, "num_heads": 5, "key_dim": 8},
]
LEVIT: dict[str, Any] = {
    "image_size": 32,
    "in_channels": 1,
    "num_classes": 10,
    "stem": {"kind": "conv", "layers": 3},
    "stages": STAGES,
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
RESNET: dict[str, Any] = {
    **VIT,
    "image_size": 32,
    "donor": {"name": "resnet26", "stages": 4, "width_scale": 0.25},
    "grid": None,
    "trunk": {"depth": 0},
    "distillation": False,
}

# Of ten digits, as the export writes it.
PREPROCESSING = {
    "image_size": 32,
    "fit": "square-then-resize",
    "interpolation": "bicubic",
    "mean": [0.25],
    "std": [0.5],
    "class_names": [f"digit {label}" for label in range(10)],
}

EXPRESSIBLE: dict[str, dict[str, Any]] = {
    "levit": LEVIT,
    "stem of stride 16": {**LEVIT, "image_size": 64, "stem": {"kind": "conv", "layers": 4}},
    "odd widths": {
        **LEVIT,
        "stages": [{**STAGES[0], "embed_dim": 22}, {**STAGES[1], "embed_dim": 37}],
        "shrinks": [{"num_heads": 2, "key_dim": 8}],
    },
    "one stage": {**LEVIT, "stages": STAGES[:1], "distillation": False},
    "four stages": {**LEVIT, "image_size": 72, "stages": [*STAGES, {**STAGES[2], "embed_dim": 40}]},
    "ratios by stage": {
        **LEVIT,
        "stages": [
            {**stage, "attn_ratio": ratio, "mlp_ratio": 4 - ratio}
            for stage, ratio in zip(STAGES, (1, 1.5, 3), strict=True)
        ],
    },
    "gelu": {**LEVIT, "activation": "gelu", "attention_activation": "hardswish"},
    "silu": {**LEVIT, "activation": "silu", "attention_activation": "relu", "drop_path": 0.2},
    "no attention activation": {**LEVIT, "attention_activation": "none", "distillation": False},
    "vit": VIT,
    "vit without distillation": {**VIT, "distillation": False, "drop_path": 0.1},
    "wide vit": {**VIT, "trunk": {"depth": 1, "embed_dim": 192, "num_heads": 3, "mlp_ratio": 2}},
    "rectangular levit": {**LEVIT, "image_size": [48, 72]},
    "rectangular vit": {**VIT, "image_size": [16, 24]},
    "rectangular resnet": {**RESNET, "image_size": [64, 32]},
    "resnet": RESNET,
    "resnet of basic blocks": {**RESNET, "donor": {**RESNET["donor"], "name": "resnet18"}},
}


def model_of(description: dict[str, Any]) -> Model:
    return randomised(unfilled(parse(description))).eval()


def digits(size: int | Sides) -> Tensor:
    from sklearn.datasets import load_digits

    images = torch.tensor(load_digits().images[:64, None] / 8 - 1, dtype=torch.float32)
    return nn.functional.interpolate(images, size=size, mode="bicubic")


@pytest.mark.parametrize("name", EXPRESSIBLE)
@torch.inference_mode()
def test_timm_gives_our_logits_from_the_folder_and_by_name(name: str, tmp_path: Path) -> None:
    model = model_of(EXPRESSIBLE[name])
    checkpoint = timm_checkpoint(model, PREPROCESSING)
    checkpoint.write(tmp_path / "timm")
    from_folder = timm.create_model(f"local-dir:{tmp_path / 'timm'}", pretrained=True)
    weights = tmp_path / "timm" / "model.safetensors"
    by_name = timm.create_model(checkpoint.name, checkpoint_path=weights, **checkpoint.arguments)
    images = digits(model.architecture.image_size)
    expected = model(images)
    assert (expected[0] - expected[1]).std() > 1e-3
    for theirs in (from_folder, by_name):
        assert theirs.state_dict().keys() == checkpoint.tensors.keys()
        torch.testing.assert_close(theirs.eval()(images), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("name", "timm_name", "arguments"),
    [
        ("LeViT-128S", "levit_128s", {}),
        ("LeViT-256", "levit_256", {}),
        ("LeViT-384", "levit_384", {"drop_path_rate": 0.1}),
        ("graft-0-12", "deit_small_patch16_224", {}),
        ("graft-4-0", "resnet50", {}),
        ("ablation-base", "levit_128s", {"distilled": False}),
        ("ablation-A7", "levit_128s", {"attn_act_layer": "identity", "distilled": False}),
    ],
)
def test_published_networks_need_no_arguments_but_what_differs(
    name: str, timm_name: str, arguments: dict[str, Any]
) -> None:
    checkpoint = timm_checkpoint(unfilled(published(name)), PREPROCESSING)
    assert (checkpoint.name, checkpoint.arguments) == (timm_name, arguments)
    with torch.device("meta"):
        if not timm_name.startswith("deit"):
            theirs = timm.create_model(timm_name, **arguments).state_dict()
            shapes = {key: tensor.shape for key, tensor in checkpoint.tensors.items()}
            assert {key: tensor.shape for key, tensor in theirs.items()} == shapes


def test_the_name_is_the_most_alike_of_timms() -> None:
    wide = [
        {**stage, "embed_dim": 2 * width}
        for stage, width in zip(STAGES, (250, 380, 500), strict=True)
    ]
    assert timm_checkpoint(model_of({**LEVIT, "stages": wide[:1]}), PREPROCESSING).name == (
        "levit_384"
    )
    assert timm_checkpoint(model_of(LEVIT), PREPROCESSING).name == "levit_128s"
    assert timm_checkpoint(model_of(VIT), PREPROCESSING).name == ("deit_tiny_distilled_patch16_224")


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"norm": "layer"}, "batch norm only"),
        ({"position": "embedding"}, "no position embedding"),
        ({"stem": {"kind": "patch", "patch_size": 8}}, "no patch stem"),
        ({"stem": {"kind": "resnet18", "stages": 1}}, "no resnet18 stem"),
        ({"stem": {"kind": "conv", "layers": 2}}, "3 or 4 convolutions, not 2"),
        ({"stem": {"kind": "conv", "channels": [4, 9, 16]}}, "4, 8, 16"),
        ({"stages": [STAGES[0], {**STAGES[1], "key_dim": 12}]}, "one key_dim.*8, 12"),
        (
            {"stages": STAGES[:2], "shrinks": [{"num_heads": 2, "key_dim": 8, "stride": 3}]},
            "shrinking block 0 has stride 2, not 3",
        ),
        (
            {"stages": STAGES[:2], "shrinks": [{"num_heads": 3, "key_dim": 8}]},
            "num_heads 2, not 3",
        ),
        (
            {
                "stages": STAGES[:2],
                "shrinks": [{"num_heads": 2, "key_dim": 8, "attn_ratio": 2, "mlp_ratio": 1.5}],
            },
            "attn_ratio 4, not 2; .*mlp_ratio 2, not 1.5",
        ),
    ],
)
def test_what_timms_levits_lack_is_told(changes: dict[str, Any], told: str) -> None:
    with pytest.raises(InputError, match=f"timm has no such network: .*{told}"):
        timm_checkpoint(unfilled(parse({**LEVIT, **changes})), PREPROCESSING)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"distillation": True}, "no second head"),
        ({"donor": {**RESNET["donor"], "stem": "small"}}, "no small stem"),
        ({"donor": {**RESNET["donor"], "stages": 2}}, "four stages, not 2"),
        ({"trunk": VIT["trunk"], "grid": 1}, "no grafts"),
    ],
)
def test_what_timms_resnets_lack_is_told(changes: dict[str, Any], told: str) -> None:
    with pytest.raises(InputError, match=told):
        timm_checkpoint(unfilled(parse({**RESNET, **changes})), PREPROCESSING)


@pytest.mark.parametrize("description", [LEVIT, VIT, RESNET], ids=["levit", "vit", "resnet"])
def test_loading_is_strict(description: dict[str, Any], tmp_path: Path) -> None:
    checkpoint = timm_checkpoint(model_of(description), PREPROCESSING)
    checkpoint.write(tmp_path)
    path = tmp_path / "model.safetensors"
    weights = load_file(path)
    weights.pop(next(name for name in weights if name.endswith("bias")))
    save_file(weights, path)
    with pytest.raises(RuntimeError, match="Missing key"):
        timm.create_model(f"local-dir:{tmp_path}", pretrained=True)
    with pytest.raises(RuntimeError, match="Missing key"):
        timm.create_model(checkpoint.name, checkpoint_path=path, **checkpoint.arguments)


def test_timm_makes_inputs_of_images_as_the_export_says(tmp_path: Path) -> None:
    from PIL import Image

    values = {"in_channels": 3, "image_size": 32}
    said = {**PREPROCESSING, "mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6]}
    timm_checkpoint(model_of({**LEVIT, **values}), said).write(tmp_path)
    network = timm.create_model(f"local-dir:{tmp_path}", pretrained=True)
    assert list(network.pretrained_cfg["label_names"]) == said["class_names"]
    config = timm.data.resolve_model_data_config(network)
    assert config["input_size"] == (3, 32, 32)
    picture = Image.fromarray(
        np.random.default_rng(0).integers(0, 256, (40, 60, 3)).astype(np.uint8)
    )
    found = timm.data.create_transform(**config)(picture)
    pixels = torch.tensor(center_cropped(picture, 32)) / 255
    expected = (pixels - torch.tensor(said["mean"])[:, None, None]) / torch.tensor(said["std"])[
        :, None, None
    ]
    torch.testing.assert_close(found, expected, atol=2 / 255 / 0.4, rtol=0)


def test_timm_makes_rectangular_inputs_of_images_as_the_export_says(tmp_path: Path) -> None:
    from PIL import Image

    said = {**PREPROCESSING, "fit": "crop-then-resize", "image_size": [32, 48]}
    timm_checkpoint(model_of({**LEVIT, "image_size": [32, 48]}), said).write(tmp_path)
    network = timm.create_model(f"local-dir:{tmp_path}", pretrained=True)
    config = timm.data.resolve_model_data_config(network)
    assert config["input_size"] == (1, 32, 48)
    pixels = np.random.default_rng(0).integers(0, 256, (10, 15)).astype(np.uint8)
    picture = Image.fromarray(pixels).resize((60, 60), Image.Resampling.BICUBIC)
    found = timm.data.create_transform(**config)(picture)
    expected = (torch.tensor(center_cropped(picture, (32, 48))) / 255 - 0.25) / 0.5
    torch.testing.assert_close(found, expected, atol=2 / 255 / 0.5, rtol=0)


@pytest.mark.parametrize(("size", "side"), [([136, 200], [155, 228]), ([24, 136], [24, 136])])
def test_the_sides_before_the_crop_are_what_timm_computes(size: list[int], side: list[int]) -> None:
    said = {"image_size": size, "fit": "resize-then-crop", "resize": side}
    checkpoint = timm_checkpoint(model_of(VIT), {**PREPROCESSING, **said})
    share = checkpoint.config["pretrained_cfg"]["crop_pct"]
    assert [int(each / share) for each in size] == side


@pytest.mark.parametrize(("size", "side"), [(224, 256), (160, 182), (97, 97), (100, 129)])
def test_the_side_before_the_crop_is_what_timm_computes(size: int, side: int) -> None:
    said = {"image_size": size, "fit": "resize-then-crop", "resize": side}
    checkpoint = timm_checkpoint(model_of(VIT), {**PREPROCESSING, **said})
    share = checkpoint.config["pretrained_cfg"]["crop_pct"]
    assert int(size / share) == side
