"""Descriptions of the graft family, the published names, fitting and scaling."""

import copy
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from levit_search import architecture as architectures
from levit_search.architecture import Donor, Graft, Levit, ResNetStem, Trunk, parse, published
from levit_search.errors import InputError

GRAFT: dict[str, Any] = {
    "family": "graft",
    "image_size": 64,
    "in_channels": 1,
    "num_classes": 5,
    "donor": {"name": "resnet18", "stages": 2},
    "trunk": {"depth": 2, "embed_dim": 24, "num_heads": 3},
}


def changed(changes: dict[str, Any], data: dict[str, Any] = GRAFT) -> dict[str, Any]:
    """``data`` with values put at dotted paths; ``...`` takes a key away."""
    data = copy.deepcopy(data)
    for path, value in changes.items():
        *parents, last = path.split(".")
        node = data
        for part in parents:
            node = node[part]
        if value is ...:
            del node[last]
        else:
            node[last] = value
    return data


def graft(**changes: object) -> Graft:
    network = parse({**GRAFT, **changes})
    assert isinstance(network, Graft)
    return network


# What is written, and the message it gets; "..." stands for any words between.
REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "family": ({"family": "grafts"}, "family: unknown value 'grafts'; did you mean 'graft'?"),
    "family of another kind": ({"family": ["graft"]}, "family: unknown value ['graft']"),
    "donor": (
        {"donor.name": "resnet51"},
        "donor.name: unknown value 'resnet51'; did you mean 'resnet50'?",
    ),
    "no such stage": ({"donor.stages": 5}, "donor.stages: ...4, not 5"),
    "stage below zero": ({"donor.stages": -1}, "donor.stages: ...0, not -1"),
    "stages left out": ({"donor.stages": ...}, "donor.stages: is required"),
    "stem": ({"donor.stem": "tiny"}, "donor.stem: unknown value 'tiny'; Known: imagenet, small"),
    "no width": ({"donor.width_scale": 0}, "donor.width_scale: ...not 0"),
    "unknown key": ({"doner": {}}, "unknown key 'doner'; did you mean 'donor'?"),
    "unknown key of the donor": ({"donor.stage": 2}, "donor: unknown key 'stage'; ...'stages'"),
    "unknown key of the trunk": ({"trunk.width": 2}, "trunk: unknown key 'width'"),
    "no donor": ({"donor": ...}, "donor: is required"),
    "no trunk": ({"trunk": ...}, "trunk: is required"),
    "a list for a donor": ({"donor": ["resnet18"]}, "donor: ...not ['resnet18']"),
    "nothing left": (
        {"donor.stages": 0, "trunk.depth": 0},
        "donor.stages 0 and trunk.depth 0 leave nothing of a network",
    ),
    "nothing given": (
        {"donor": None, "trunk": None},
        "donor.stages 0 and trunk.depth 0 ...nothing",
    ),
    "heads": ({"trunk.num_heads": 5}, "trunk: num_heads: 5 heads do not divide the width 24"),
    "no hidden channel": ({"trunk.mlp_ratio": 0.01}, "trunk: mlp_ratio: 0.01 x width 24 leaves no"),
    "negative depth": ({"trunk.depth": -1}, "trunk.depth: ...not -1"),
    "bool for a depth": ({"trunk.depth": True}, "trunk.depth: ...not True"),
    "no whole tokens": (
        {"image_size": 60},
        "image_size: 60 px does not come out at whole pixels: tokens are 16 px wide",
    ),
    "no whole tokens of a small stem": (
        {"image_size": 30, "donor.stem": "small"},
        "image_size: 30 px ...whole pixels: tokens are 4 px wide",
    ),
    "no whole pixels after the donor": (
        {"image_size": 100, "grid": 5},
        "image_size: 100 px does not come out at whole pixels: resnet18 has a stride of 8 after "
        "stage 2",
    ),
    "no whole pixels without a trunk": (
        {"image_size": 48, "donor.stages": 4, "trunk.depth": 0},
        "image_size: 48 px ...whole pixels: resnet18 has a stride of 32 after stage 4",
    ),
    "grid finer than the map": (
        {"grid": 16},
        "grid: average pooling cannot bring a map of 8x8 to 16x16; possible are 1, 2, 4, 8",
    ),
    "uneven pooling": ({"grid": 3}, "grid: average pooling ...8x8 to 3x3; possible are 1, 2, 4, 8"),
    "uneven patches": (
        {"donor.stages": 0, "grid": 7},
        "grid: patches of whole pixels cannot bring a map of 64x64 to 7x7; possible are 1, 2, 4, "
        "8, 16, 32, 64",
    ),
    "tokens that are no squares": (
        {"image_size": [64, 96], "donor.stages": 0, "grid": [4, 4]},
        "grid: patches ...64x96 to 4x4; possible are 2x3, 4x6, 8x12, 16x24, 32x48",
    ),
    "a grid that no number of rows goes with": (
        {"image_size": [64, 96], "grid": 3},
        "grid: average pooling ...8x12 to 3x3; possible are 2x3, 4x6, 8x12",
    ),
    "no whole tokens along a side": (
        {"image_size": [64, 100]},
        "image_size: 64x100 px does not come out at whole pixels: tokens are 16 px wide",
    ),
    "no whole pixels along a side after the donor": (
        {"image_size": [64, 100], "grid": [4, 6]},
        "image_size: 64x100 px does not come out at whole pixels: resnet18 has a stride of 8",
    ),
    "no grid": ({"grid": 0}, "grid: ...not 0"),
    "drop_path": ({"drop_path": 1}, "drop_path: ...not 1"),
    # Looking through all divisors of a large map would take minutes.
    "a huge image": (
        {"image_size": 10**9, "donor.stages": 0, "grid": 3},
        "grid: patches ...possible are 1, 2, 4, 5, 8",
    ),
    "an image of no size": ({"image_size": 0}, "image_size: ...not 0"),
    "a key of the other family": ({"stages": []}, "unknown key 'stages'"),
}


@pytest.mark.parametrize(("changes", "message"), REFUSED.values(), ids=REFUSED)
def test_a_mistake_is_one_line_with_its_field_and_value(
    changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError) as raised:
        parse(changed(changes), "net.yaml")
    pattern = ".*".join(re.escape(part) for part in message.split("..."))
    assert re.match(rf"net\.yaml: {pattern}", str(raised.value)), raised.value
    assert "\n" not in str(raised.value)


ROUND_TRIPS: dict[str, dict[str, Any]] = {
    "graft": {},
    "small": {"donor.stem": "small", "donor.width_scale": 0.25, "image_size": 32},
    "fractions": {"donor.width_scale": 1 / 3, "trunk.mlp_ratio": 2.7, "drop_path": 1e-7},
    "deit": {"donor.stages": 0},
    "resnet": {"trunk.depth": 0},
    "grid": {"grid": 2, "distillation": False},
}


@pytest.mark.parametrize("changes", ROUND_TRIPS.values(), ids=ROUND_TRIPS)
def test_yaml_reads_back_to_the_same_network(tmp_path: Path, changes: dict[str, Any]) -> None:
    network = parse(changed(changes))
    path = tmp_path / "network.yaml"
    path.write_text(network.to_yaml(), encoding="utf-8")
    read = architectures.load(str(path))
    assert isinstance(read, Graft)
    assert (read, read.id, read.to_yaml()) == (network, network.id, network.to_yaml())


@pytest.mark.parametrize("name", architectures.published_names())
def test_published_networks_load_by_name_and_from_their_yaml(name: str, tmp_path: Path) -> None:
    network = architectures.load(name)
    path = tmp_path / "network.yaml"
    path.write_text(network.to_yaml(), encoding="utf-8")
    assert architectures.load(str(path)) == network == published(name)
    assert isinstance(network, Graft if name in architectures.GRAFTS else Levit)
    assert (network.image_size, network.in_channels, network.num_classes) == (224, 3, 1000)


def test_published_names_stand_for_networks_of_their_own() -> None:
    names = architectures.LEVITS + architectures.GRAFTS + architectures.ABLATIONS
    assert architectures.published_names() == names
    assert [name for name in names if name.startswith("ablation")] == [
        "ablation-base",
        *(f"ablation-A{number}" for number in range(1, 8)),
    ]
    # A4 has no teacher, which is no matter of the network.
    assert published("ablation-A4") == published("ablation-base")
    ids = {published(name).id for name in names if name != "ablation-A4"}
    assert len(ids) == len(names) - 1


def test_published_grafts_have_the_structure_of_table_1() -> None:
    for name in architectures.GRAFTS:
        network = published(name)
        assert isinstance(network, Graft)
        stages, depth = map(int, name.split("-")[1:])
        donor, trunk = network.donor, network.trunk
        assert donor == (Donor(name="resnet50", stages=stages) if stages else None)
        assert trunk == (
            Trunk(depth=depth, embed_dim=384, num_heads=6, mlp_ratio=4) if depth else None
        )
        assert network.grid == (14 if depth else None)
        assert network.distillation == (0 < stages < 4)


# What makes no difference, by what is spelt out beside the plain network.
SAME: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "defaults": ({}, {"grid": 4, "trunk.mlp_ratio": 4.0, "donor.stem": "imagenet", "drop_path": 0}),
    "whole scale": ({}, {"donor.width_scale": 1.0}),
    "no donor": ({"donor": None}, {"donor.stages": 0}),
    "donor of no stages": ({"donor": None}, {"donor.stages": 0, "donor.name": "resnet34"}),
    "scale of no stages": ({"donor": None}, {"donor.stages": 0, "donor.width_scale": 0.5}),
    "no trunk": ({"trunk": None}, {"trunk.depth": 0}),
    "trunk of no layers": (
        {"trunk": None},
        {"trunk": {"depth": 0, "embed_dim": 9, "num_heads": 3}},
    ),
    "grid of no trunk": ({"trunk": None}, {"trunk.depth": 0, "grid": 8}),
    "models": (
        {"donor.stem": "small", "grid": 16},
        {"donor": Donor(name="resnet18", stages=2, stem="small")},
    ),
    "models without layers": ({"trunk": None}, {"trunk": Trunk(depth=0), "grid": 8}),
}


@pytest.mark.parametrize(("plain", "spelt"), SAME.values(), ids=SAME)
def test_what_does_not_matter_makes_no_other_network(
    plain: dict[str, Any], spelt: dict[str, Any]
) -> None:
    one, other = parse(changed(plain)), parse(changed(spelt))
    assert one == other
    assert one.id == other.id


def test_ends_have_no_donor_or_no_trunk() -> None:
    assert graft(donor={"stages": 0}).donor is None
    bare = graft(trunk={"depth": 0}, grid=8)
    assert (bare.trunk, bare.grid, bare.trunk_stage) == (None, None, None)


def test_every_field_counts_for_the_id() -> None:
    changes: list[dict[str, Any]] = [
        {},
        {"image_size": 128},
        {"in_channels": 3},
        {"num_classes": 6},
        {"donor.name": "resnet34"},
        {"donor.name": "resnet50"},
        {"donor.stages": 1},
        {"donor.stages": 0},
        {"donor.stem": "small", "grid": 4},
        {"donor.width_scale": 0.5},
        {"grid": 2},
        {"trunk.depth": 3},
        {"trunk.depth": 0},
        {"trunk.embed_dim": 48},
        {"trunk.num_heads": 2},
        {"trunk.mlp_ratio": 2},
        {"distillation": False},
        {"drop_path": 0.1},
    ]
    ids = [parse(changed(change)).id for change in changes]
    assert len(set(ids)) == len(ids)


@pytest.mark.parametrize("trunk_grid", [(64, {}, 4), (64, {"stem": "small"}, 16), (96, {}, 6)])
def test_tokens_are_a_sixteenth_of_the_image_or_a_quarter_with_the_small_stem(
    trunk_grid: tuple[int, dict[str, Any], int],
) -> None:
    image_size, donor, grid = trunk_grid
    network = graft(image_size=image_size, donor={"name": "resnet18", "stages": 1, **donor})
    assert network.grid == grid
    assert network.tokens == grid**2 + 2
    assert graft(image_size=64, distillation=False).tokens == 17


@pytest.mark.parametrize(
    ("donor", "summary"),
    [
        ({"name": "resnet34", "stages": 3}, "resnet34 to stage 3, 2 x 24 h3"),
        (
            {"name": "resnet18", "stages": 1, "width_scale": 0.25},
            "resnet18 x0.25 to stage 1, 2 x 24 h3",
        ),
        (None, "2 x 24 h3"),
    ],
)
def test_a_summary_names_donor_and_trunk(donor: dict[str, Any] | None, summary: str) -> None:
    assert graft(donor=donor).summary() == summary


def test_a_rectangle_has_a_grid_in_its_proportions() -> None:
    network = graft(image_size=[64, 96], distillation=False)
    assert network.grid == (4, 6) and network.tokens == 25
    assert (network.map_sides, network.grid_sides, network.patch) == ((8, 12), (4, 6), 2)
    assert graft(image_size=[64, 96], grid=4, distillation=False) == network
    assert graft(image_size=[96, 64], grid=8).grid == (12, 8)
    assert graft(image_size=[64, 64], grid=[2, 2]) == graft(grid=2)
    assert architectures.parse(network.model_dump(mode="json")) == network


def test_fitting_to_rectangles_goes_by_the_shorter_side() -> None:
    network = published("graft-2-6")
    small = architectures.fitted(network, image_size=(48, 80), in_channels=1, num_classes=10)
    assert isinstance(small, Graft) and small.donor is not None
    assert (small.donor.stem, small.grid) == ("small", (12, 20))
    large = architectures.fitted(network, image_size=(160, 96), in_channels=1, num_classes=10)
    assert isinstance(large, Graft) and large.donor is not None
    assert (large.donor.stem, large.grid) == ("imagenet", (10, 6))


@pytest.mark.parametrize("name", [n for n in architectures.GRAFTS if n != "graft-4-0"])
def test_fitting_to_small_images_takes_the_small_stem_and_goes_back(name: str) -> None:
    network = published(name)
    small = architectures.fitted(network, image_size=32, in_channels=1, num_classes=10)
    assert isinstance(network, Graft) and isinstance(small, Graft)
    assert small.grid == 8
    assert small.donor is None or small.donor.stem == "small"
    assert small.trunk == network.trunk
    assert (small.image_size, small.in_channels, small.num_classes) == (32, 1, 10)
    back = architectures.fitted(small, image_size=224, in_channels=3, num_classes=1000)
    assert back == network


def test_fitting_a_bare_resnet_has_no_grid() -> None:
    network = published("graft-4-0")
    small = architectures.fitted(network, image_size=32, in_channels=3, num_classes=10)
    assert isinstance(small, Graft) and small.donor is not None
    assert (small.donor.stem, small.grid, small.map_sides) == ("small", None, (4, 4))


def test_fitting_to_the_size_it_was_made_for_keeps_grid_and_stem() -> None:
    network = graft(grid=2)
    fitted = architectures.fitted(network, image_size=64, in_channels=1, num_classes=9)
    assert fitted == graft(grid=2, num_classes=9)


@pytest.mark.parametrize("image_size", [2, 30, 100])
def test_fitting_to_images_that_do_not_come_out_is_refused(image_size: int) -> None:
    with pytest.raises(InputError, match=rf"^architecture fitted to {image_size} px: "):
        architectures.fitted(
            published("graft-2-6"), image_size=image_size, in_channels=1, num_classes=10
        )


def test_a_graft_is_scaled_in_donor_width_and_heads() -> None:
    scaled = architectures.scaled(published("graft-2-6"), 0.25)
    assert isinstance(scaled, Graft) and scaled.donor is not None and scaled.trunk is not None
    assert scaled.donor.width_scale == 0.25
    # 6 x 0.25 = 1.5 heads; of 1 and 2, as near as each other, the more.
    assert (scaled.trunk.embed_dim, scaled.trunk.num_heads, scaled.trunk.depth) == (96, 2, 6)
    again = architectures.scaled(scaled, 4)
    assert isinstance(again, Graft) and again.donor == Donor(name="resnet50", stages=2)


@pytest.mark.parametrize("name", ["graft-0-12", "graft-3-3", "graft-4-0"])
@pytest.mark.parametrize("scale", [0.01, 0.3, 0.5, 1.7])
def test_scaled_heads_divide_the_scaled_width(name: str, scale: float) -> None:
    scaled = architectures.scaled(published(name), scale)
    assert isinstance(scaled, Graft)
    if scaled.trunk is not None:
        assert scaled.trunk.embed_dim == max(1, int(384 * scale))
        assert scaled.trunk.embed_dim % scaled.trunk.num_heads == 0


def test_a_levit_is_scaled_in_widths_stem_and_heads() -> None:
    scaled = architectures.scaled(published("LeViT-256"), 0.25)
    assert isinstance(scaled, Levit)
    assert [stage.embed_dim for stage in scaled.stages] == [64, 96, 128]
    assert [stage.num_heads for stage in scaled.stages] == [1, 2, 2]
    assert [shrink.num_heads for shrink in scaled.shrinks] == [2, 3]
    assert {stage.key_dim for stage in scaled.stages} == {32}
    assert scaled.stem.model_dump()["channels"] == (8, 16, 32, 64)
    assert [stage.depth for stage in scaled.stages] == [4, 4, 4]


@pytest.mark.parametrize("name", architectures.published_names())
def test_scaling_by_one_changes_nothing(name: str) -> None:
    assert architectures.scaled(published(name), 1) is published(name)


@pytest.mark.parametrize("scale", [0, -1, float("nan"), float("inf"), 1e9])
@pytest.mark.parametrize("name", ["LeViT-128S", "graft-2-6"])
def test_a_scale_out_of_range_is_refused(name: str, scale: float) -> None:
    with pytest.raises(InputError, match=r"^width scale .*: must be above 0 and at most 1000"):
        architectures.scaled(published(name), scale)


LEVIT: dict[str, Any] = {
    "image_size": 64,
    "num_classes": 5,
    "stem": {"kind": "resnet18", "layers": 8},
    "stages": [{"depth": 1, "embed_dim": 128, "num_heads": 2, "key_dim": 8}],
}


def test_layers_that_end_a_stage_are_spelt_as_stages() -> None:
    for kind, layers in (("resnet18", 5), ("resnet34", 7), ("resnet26", 7), ("resnet50", 10)):
        by_layers = parse(changed({"stem": {"kind": kind, "layers": layers}}, LEVIT))
        by_stages = parse(changed({"stem": {"kind": kind, "stages": 1}}, LEVIT))
        assert by_layers == by_stages
        assert by_layers.id == by_stages.id


@pytest.mark.parametrize(
    ("cut", "width", "is_projected"),
    [
        ({"layers": 8}, 128, False),  # inside a block of that width already
        ({"layers": 8}, 64, True),
        ({"layers": 7}, 128, True),  # after a whole block
        ({"stages": 2}, 128, True),
    ],
)
def test_only_a_cut_inside_a_block_of_the_right_width_goes_without_a_projection(
    cut: dict[str, int], width: int, is_projected: bool
) -> None:
    network = parse(
        changed(
            {"stem": {"kind": "resnet18", **cut}},
            {**LEVIT, "stages": [{"depth": 1, "embed_dim": width, "num_heads": 2, "key_dim": 8}]},
        )
    )
    assert isinstance(network, Levit) and isinstance(network.stem, ResNetStem)
    assert network.stem.is_projected(width) == is_projected
    assert network.stem.stride == 8


def resnet_levit(**stem: Any) -> Levit:
    network = parse(changed({"stem": {"kind": "resnet18", "stages": 1, **stem}}, LEVIT))
    assert isinstance(network, Levit)
    return network


def test_a_resnet_stem_of_its_own_width_keeps_the_id_it_had_before_widths_were_told() -> None:
    network = resnet_levit()
    assert network.stem.model_dump() == {"kind": "resnet18", "stages": 1, "layers": None}
    assert network.id == "2efc1826ad73"
    assert resnet_levit(stem="imagenet", width_scale=1.0) == network
    assert resnet_levit(stem="imagenet", width_scale=1.0).id == network.id


def test_a_resnet_stem_has_the_width_and_the_first_convolution_that_it_is_given() -> None:
    narrow, small = resnet_levit(width_scale=0.25), resnet_levit(stem="small")
    assert len({network.id for network in (resnet_levit(), narrow, small)}) == 3
    for network in (narrow, small):
        assert parse(network.model_dump(mode="json")) == network
        assert parse(yaml.safe_load(network.to_yaml())) == network
    assert isinstance(narrow.stem, ResNetStem) and isinstance(small.stem, ResNetStem)
    assert narrow.stem.cut(3).channels == 16 and small.stem.cut(3).channels == 64
    assert (narrow.stem.stride, small.stem.stride) == (4, 1)
    assert (narrow.grids, small.grids) == (((16, 16),), ((64, 64),))


@pytest.mark.parametrize(
    ("stem", "summary"),
    [
        ({"stages": 2}, "resnet18 to stage 2, 128  d1  h2  k8"),
        ({"stages": 1, "width_scale": 0.25}, "resnet18 x0.25 to stage 1, 128  d1  h2  k8"),
        ({"layers": 8}, "resnet18 to layer 8, 128  d1  h2  k8"),
    ],
)
def test_a_summary_of_a_levit_names_its_resnet(stem: dict[str, Any], summary: str) -> None:
    assert parse(changed({"stem": {"kind": "resnet18", **stem}}, LEVIT)).summary() == summary


def test_a_resnet_stem_is_scaled_with_the_stages_and_still_needs_no_projection() -> None:
    network = parse(LEVIT)
    scaled = architectures.scaled(network, 0.25)
    assert isinstance(scaled, Levit) and isinstance(scaled.stem, ResNetStem)
    assert scaled.stem.width_scale == 0.25
    assert not scaled.stem.is_projected(scaled.stages[0].embed_dim)
    assert architectures.scaled(scaled, 4).model_dump()["stem"] == network.model_dump()["stem"]


RESNET_STEMS: dict[str, tuple[dict[str, Any], str]] = {
    "both": ({"stages": 1, "layers": 8}, "stem: give either stages or layers"),
    "neither": ({}, "stem: give either stages or layers"),
    "too many": ({"layers": 18}, "stem: layers: resnet18 has 17 convolutions, not 18"),
    "the first alone": ({"layers": 1}, "stem.layers: ...2, not 1"),
    "no whole number": ({"layers": 5.0}, "stem.layers: ...not 5.0"),
    "no width": ({"stages": 1, "width_scale": 0}, "stem.width_scale: ...not 0"),
    "no such stem": ({"stages": 1, "stem": "tiny"}, "stem.stem: unknown value 'tiny'"),
    "unknown key beside a whole stage": ({"layers": 5, "width": 3}, "stem: unknown key 'width'"),
}


@pytest.mark.parametrize(("stem", "message"), RESNET_STEMS.values(), ids=RESNET_STEMS)
def test_a_mistake_in_a_resnet_stem_is_named(stem: dict[str, Any], message: str) -> None:
    pattern = ".*".join(re.escape(part) for part in message.split("..."))
    with pytest.raises(InputError, match=f"^architecture: {pattern}"):
        parse(changed({"stem": {"kind": "resnet18", **stem}}, LEVIT))
