import copy
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st

from levit_search import architecture as architectures
from levit_search.architecture import ConvStem, Levit, Shrink, Stage
from levit_search.errors import InputError

SMALL: dict[str, Any] = {
    "image_size": 32,
    "in_channels": 1,
    "num_classes": 5,
    "stem": {"kind": "conv", "channels": [8, 16]},
    "stages": [
        {"depth": 1, "embed_dim": 16, "num_heads": 2, "key_dim": 8},
        {"depth": 2, "embed_dim": 24, "num_heads": 3, "key_dim": 8},
    ],
    "shrinks": [{"num_heads": 2, "key_dim": 8}],
}


def changed(changes: dict[str, Any]) -> dict[str, Any]:
    """SMALL with values put at dotted paths; ``...`` takes a key away."""
    data = copy.deepcopy(SMALL)
    for path, value in changes.items():
        *parents, last = path.split(".")
        node: Any = data
        for part in parents:
            node = node[int(part)] if isinstance(node, list) else node[part]
        if value is ...:
            del node[last]
        elif isinstance(node, list):
            node[int(last)] = value
        else:
            node[last] = value
    return data


# Table 2 of the paper, and the heads of the released code's shrinking blocks.
PUBLISHED = {
    "LeViT-128S": ((128, 256, 384), (4, 6, 8), 16, (2, 3, 4), (8, 16), 0.0),
    "LeViT-128": ((128, 256, 384), (4, 8, 12), 16, (4, 4, 4), (8, 16), 0.0),
    "LeViT-192": ((192, 288, 384), (3, 5, 6), 32, (4, 4, 4), (6, 9), 0.0),
    "LeViT-256": ((256, 384, 512), (4, 6, 8), 32, (4, 4, 4), (8, 12), 0.0),
    "LeViT-384": ((384, 512, 768), (6, 9, 12), 32, (4, 4, 4), (12, 16), 0.1),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_networks_have_the_structure_of_table_2(name: str) -> None:
    widths, heads, key_dim, depths, shrink_heads, drop_path = PUBLISHED[name]
    network = architectures.published(name)
    assert network.stages == tuple(
        Stage(depth=d, embed_dim=w, num_heads=h, key_dim=key_dim, attn_ratio=2, mlp_ratio=2)
        for d, w, h in zip(depths, widths, heads, strict=True)
    )
    assert [
        (s.num_heads, s.key_dim, s.attn_ratio, s.mlp_ratio, s.stride) for s in network.shrinks
    ] == [(h, key_dim, 4, 2, 2) for h in shrink_heads]
    first = widths[0]
    assert network.stem == ConvStem(channels=(first // 8, first // 4, first // 2, first))
    assert network.grids == ((14, 14), (7, 7), (4, 4))
    assert (network.image_size, network.in_channels, network.num_classes) == (224, 3, 1000)
    assert (network.norm, network.position) == ("batch", "bias")
    assert (network.activation, network.attention_activation) == ("hardswish", "hardswish")
    assert network.distillation
    assert network.drop_path == drop_path


def test_all_published_networks_are_named_and_differ() -> None:
    assert tuple(PUBLISHED) == architectures.LEVITS
    assert architectures.published_names()[: len(PUBLISHED)] == architectures.LEVITS
    assert len({architectures.published(name).id for name in PUBLISHED}) == len(PUBLISHED)


ROUND_TRIPS = {
    "conv": {},
    "patch": {"stem": {"kind": "patch", "patch_size": 4}, "norm": "layer"},
    "resnet": {"stem": {"kind": "resnet26", "stages": 2}, "position": "embedding"},
    "fractions": {"stages.0.attn_ratio": 1.125, "stages.1.mlp_ratio": 1 / 3, "drop_path": 1e-7},
    "one stage": {"stages": [SMALL["stages"][0]], "shrinks": ...},
    "names": {"attention_activation": "none", "activation": "gelu", "distillation": False},
}


@pytest.mark.parametrize("changes", ROUND_TRIPS.values(), ids=ROUND_TRIPS)
def test_yaml_reads_back_to_the_same_network(tmp_path: Path, changes: dict[str, Any]) -> None:
    network = architectures.parse(changed(changes))
    path = tmp_path / "network.yaml"
    path.write_text(network.to_yaml(), encoding="utf-8")
    read = architectures.load(str(path))
    assert read == network
    assert read.id == network.id
    assert read.to_yaml() == network.to_yaml()


SPELLINGS = {
    "key_dim left out": {"stages.0.key_dim": ...},
    "num_heads left out": {"stages.1.num_heads": ...},
    "null is left out": {"stages.0.key_dim": None},
    "shrinks left out": {"shrinks": ...},
    "empty shrink": {"shrinks.0": {}},
    "ratios given": {"stages.0.attn_ratio": 2, "stages.0.mlp_ratio": 2.0, "shrinks.0.stride": 2},
    "stem as layers": {"stem": {"kind": "conv", "layers": 2}},
    "stem as layers, kind left out": {"stem": {"layers": 2}},
    "stem with leading channels": {"stem": {"kind": "conv", "layers": 2, "channels": [8]}},
    "tuples": {"stem.channels": (8, 16), "stages": tuple(SMALL["stages"])},
    "defaults given": {"norm": "batch", "distillation": True, "drop_path": 0, "family": "levit"},
}


@pytest.mark.parametrize("changes", SPELLINGS.values(), ids=SPELLINGS)
def test_every_spelling_of_a_network_has_its_id(changes: dict[str, Any]) -> None:
    network, plain = architectures.parse(changed(changes)), architectures.parse(SMALL)
    assert network == plain
    assert network.id == plain.id


def test_a_parsed_network_is_parsed_to_itself() -> None:
    network = architectures.parse(SMALL)
    assert architectures.parse(network) == network


def test_every_field_counts_for_the_id() -> None:
    changes: list[dict[str, Any]] = [
        {},
        {"image_size": 64},
        {"in_channels": 3},
        {"num_classes": 6},
        {"stem.channels": [4, 16]},
        {"stem": {"kind": "patch", "patch_size": 4}},
        {"stem": {"kind": "patch", "patch_size": 8}},
        {"stem": {"kind": "resnet18", "stages": 1}},
        {"stem": {"kind": "resnet50", "stages": 1}},
        {"stages.0.depth": 2},
        {"stages.1.embed_dim": 32},
        {"stages.1.num_heads": 2},
        {"stages.1.key_dim": 4},
        {"stages.1.attn_ratio": 1.5},
        {"stages.1.mlp_ratio": 1.5},
        {"shrinks.0.num_heads": 4},
        {"shrinks.0.key_dim": 4},
        {"shrinks.0.attn_ratio": 2},
        {"shrinks.0.mlp_ratio": 4},
        {"shrinks.0.stride": 3},
        {"norm": "layer"},
        {"position": "embedding"},
        {"activation": "relu"},
        {"attention_activation": "none"},
        {"distillation": False},
        {"drop_path": 0.1},
    ]
    ids = [architectures.parse(changed(change)).id for change in changes]
    assert len(set(ids)) == len(ids)
    assert all(re.fullmatch("[0-9a-f]{12}", found) for found in ids)


def test_a_stem_halves_its_width_rounding_down() -> None:
    network = architectures.parse(
        {
            "image_size": 64,
            "num_classes": 5,
            "stem": {"kind": "conv", "layers": 4},
            "stages": [{"depth": 1, "embed_dim": 114, "num_heads": 3}],
        }
    )
    assert network.stem == ConvStem(channels=(14, 28, 57, 114))
    assert network.stages[0].key_dim == 38


def test_a_shrink_takes_the_heads_that_fit_into_what_it_reads() -> None:
    network = architectures.parse(changed({"shrinks": ..., "stages.0.key_dim": 4}))
    assert (network.shrinks[0].key_dim, network.shrinks[0].num_heads) == (4, 4)


def test_grids_round_up() -> None:
    network = architectures.parse(changed({"image_size": 36, "shrinks.0.stride": 4}))
    assert network.grids == ((9, 9), (3, 3))


def test_a_rectangle_has_grids_of_rows_and_columns() -> None:
    network = architectures.parse(changed({"image_size": [36, 20], "shrinks.0.stride": 4}))
    assert network.image_size == (36, 20)
    assert network.grids == ((9, 5), (3, 2))
    assert architectures.parse(network.model_dump(mode="json")) == network
    assert "image_size: [36, 20]" in network.to_yaml()
    assert architectures.parse(yaml.safe_load(network.to_yaml())).id == network.id
    turned = architectures.parse(changed({"image_size": [20, 36], "shrinks.0.stride": 4}))
    assert turned.id != network.id


def test_equal_sides_are_the_square() -> None:
    square, spelt = (architectures.parse(changed({"image_size": s})) for s in (32, [32, 32]))
    assert spelt.image_size == 32 and spelt.id == square.id


def test_a_single_row_of_tokens_can_be_shrunk() -> None:
    network = architectures.parse(changed({"image_size": [4, 32]}))
    assert network.grids == ((1, 8), (1, 4))


# What is written, and the message it gets; "..." stands for any words between.
REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "unknown key": ({"image_sise": 32}, "unknown key 'image_sise'; did you mean 'image_size'?"),
    "unknown key in a stage": (
        {"stages.1.embed_dmi": 24},
        "stages.1: unknown key 'embed_dmi'; did you mean 'embed_dim'?",
    ),
    "unknown key in a stem": (
        {"stem.chanels": [8]},
        "stem: unknown key 'chanels'; did you mean 'channels'?",
    ),
    "unknown key in a shrink": (
        {"shrinks.0.strid": 2},
        "shrinks.0: unknown key 'strid'; did you mean 'stride'?",
    ),
    "unknown choice": ({"norm": "bath"}, "norm: ...'bath'...'batch'"),
    "unknown stem": ({"stem.kind": "konv"}, "stem...'konv'...'conv'"),
    "required": ({"num_classes": ...}, "num_classes: is required"),
    "required in a stage": ({"stages.0.depth": ...}, "stages.0.depth: is required"),
    "width left out": (
        {"stages.0.embed_dim": ..., "stem": {"kind": "conv", "layers": 2}},
        "stages.0.embed_dim: is required",
    ),
    "key_dim does not divide": (
        {"stages.0.num_heads": ..., "stages.0.key_dim": 5},
        "stages.0.key_dim: 5 ...divide...16",
    ),
    "heads do not divide": (
        {"stages.1.num_heads": 7, "stages.1.key_dim": ...},
        "stages.1.num_heads: 7 ...divide...24",
    ),
    "shrink does not divide": ({"shrinks.0": {"key_dim": 3}}, "shrinks.0.key_dim: 3 ...16"),
    "image below the stride": ({"image_size": 2}, "image_size: 2 px ...small...stem...4"),
    "image no multiple": ({"image_size": 30}, "image_size: 30 px ...multiple...4"),
    "image no multiple of the patch": (
        {"stem": {"kind": "patch", "patch_size": 5}},
        "image_size: 32 px ...multiple...5",
    ),
    "image no multiple of the resnet": (
        {"stem": {"kind": "resnet18", "stages": 2}, "image_size": 44},
        "image_size: 44 px ...multiple...8",
    ),
    "columns no multiple": (
        {"image_size": [32, 30]},
        "image_size: 32x30 px ...multiple...4; near it are 32x28 and 32",
    ),
    "rows no multiple": (
        {"image_size": [34, 48]},
        "image_size: 34x48 px ...multiple...4; near it are 32x48 and 36x48",
    ),
    "a side below the stride": (
        {"image_size": [32, 2]},
        "image_size: 32x2 px ...small...stem...4",
    ),
    "three sides": (
        {"image_size": [3, 32, 48]},
        "image_size: expected one number or [rows, columns], not [3, 32, 48]",
    ),
    "single token": ({"image_size": 4}, "image_size: 4 px ...stage 0...shrinks.0"),
    "too few shrinks": ({"shrinks": []}, "shrinks: 2 stages...1 shrinking...not 0"),
    "too many shrinks": (
        {"shrinks": [SMALL["shrinks"][0]] * 2},
        "shrinks: 2 stages...1 shrinking...not 2",
    ),
    "last stem channel": ({"stem.channels": [8, 17]}, "stem.channels: ...16...not 17"),
    "wrong number of channels": (
        {"stem": {"kind": "conv", "layers": 2, "channels": [2, 4, 8]}},
        "stem.channels: 2 layers...not [2, 4, 8]",
    ),
    "too many layers": ({"stem": {"kind": "conv", "layers": 7}}, "stem.layers: ...not 7"),
    "resnet stages": ({"stem": {"kind": "resnet18", "stages": 5}}, "stem.stages: ...not 5"),
    "half a value channel": ({"stages.1.attn_ratio": 1.3}, "stages.1.attn_ratio: 1.3 ...8"),
    "half a value channel in a shrink": (
        {"shrinks.0.attn_ratio": 0.3},
        "shrinks.0.attn_ratio: 0.3 ...8",
    ),
    "no hidden channel": ({"stages.0.mlp_ratio": 0.01}, "stages.0.mlp_ratio: ...0.01"),
    "bool for an int": ({"stages.0.depth": True}, "stages.0.depth: ...not True"),
    "bool for a ratio": ({"stages.0.mlp_ratio": True}, "stages.0.mlp_ratio: ...not True"),
    "text for an int": ({"stages.0.depth": "4"}, "stages.0.depth: ...not '4'"),
    # Else "2" and 2 would be equal networks of different ids.
    "text for a ratio": ({"stages.0.attn_ratio": "2"}, "stages.0.attn_ratio: ...not '2'"),
    "zero": ({"in_channels": 0}, "in_channels: ...not 0"),
    "stride 1": ({"shrinks.0.stride": 1}, "shrinks.0.stride: ...not 1"),
    "drop_path of one": ({"drop_path": 1}, "drop_path: ...not 1"),
    "five stages": ({"stages": [SMALL["stages"][0]] * 5}, "stages: "),
    "a stage that is no mapping": ({"stages.1": 3}, "stages.1: ...not 3"),
    "no stem": ({"stem": None}, "stem: ...not None"),
}


@pytest.mark.parametrize(("changes", "message"), REFUSED.values(), ids=REFUSED)
def test_a_mistake_is_named_with_its_field_and_value(changes: dict[str, Any], message: str) -> None:
    pattern = ".*".join(re.escape(part) for part in message.split("..."))
    with pytest.raises(InputError, match=rf"^net\.yaml: {pattern}"):
        architectures.parse(changed(changes), "net.yaml")


@pytest.mark.parametrize("data", [None, 3, "LeViT-128S", [SMALL]])
def test_what_is_no_mapping_is_refused(data: object) -> None:
    with pytest.raises(InputError, match=r"^architecture: "):
        architectures.parse(data)


@pytest.mark.parametrize("name", ["levit-128s", "LeViT128S", "LeVit-128S"])
@pytest.mark.parametrize("find", [architectures.load, architectures.published])
def test_an_unknown_name_gives_the_nearest_spelling(name: str, find: Any) -> None:
    with pytest.raises(InputError, match=f"'{name}'; did you mean 'LeViT-128S'. Known: LeViT-128S"):
        find(name)


def test_a_name_and_a_file_load_the_same_network(tmp_path: Path) -> None:
    network = architectures.load("LeViT-192")
    path = tmp_path / "file without suffix"
    path.write_text(network.to_yaml(), encoding="utf-8")
    assert architectures.load(str(path)) == network == architectures.published("LeViT-192")


def test_a_file_that_cannot_be_loaded_is_named(tmp_path: Path) -> None:
    missing = tmp_path / "nothing.yaml"
    with pytest.raises(InputError, match=re.escape(f"{missing}: no such file")):
        architectures.load(str(missing))
    wrong = tmp_path / "wrong.yml"
    wrong.write_text("image_size: 32\n")
    with pytest.raises(InputError, match=re.escape(f"{wrong}: ") + ".*is required"):
        architectures.load(str(wrong))


def test_a_name_too_long_for_a_file_is_still_an_unknown_name() -> None:
    with pytest.raises(InputError, match="unknown architecture"):
        architectures.load("x" * 300)


@pytest.mark.parametrize(
    ("image_size", "channels", "grids"),
    [
        (224, (16, 32, 64, 128), (14, 7, 4)),
        (256, (16, 32, 64, 128), (16, 8, 4)),
        (64, (32, 64, 128), (8, 4, 2)),
        (32, (64, 128), (8, 4, 2)),
        (16, (128,), (8, 4, 2)),
        (10, (128,), (5, 3, 2)),
    ],
)
def test_fitting_keeps_the_trunk_and_the_last_layers_of_the_stem(
    image_size: int, channels: tuple[int, ...], grids: tuple[int, ...]
) -> None:
    network = architectures.published("LeViT-128S")
    fitted = architectures.fitted(network, image_size=image_size, in_channels=1, num_classes=10)
    assert fitted.stem == ConvStem(channels=channels)
    assert fitted.grids == tuple((side, side) for side in grids)
    sizes = {"image_size": image_size, "in_channels": 1, "num_classes": 10}
    kept = {"stem": network.stem.model_dump()}
    assert {**fitted.model_dump(), **kept} == {**network.model_dump(), **sizes}


@pytest.mark.parametrize(
    ("image_size", "layers", "grids"),
    [
        ((224, 160), 4, ((14, 10), (7, 5), (4, 3))),
        ((64, 96), 3, ((8, 12), (4, 6), (2, 3))),
        ((48, 32), 2, ((12, 8), (6, 4), (3, 2))),
    ],
)
def test_fitting_to_rectangles_goes_by_the_shorter_side(
    image_size: tuple[int, int], layers: int, grids: tuple[tuple[int, int], ...]
) -> None:
    network = architectures.published("LeViT-128S")
    fitted = architectures.fitted(network, image_size=image_size, in_channels=1, num_classes=10)
    assert isinstance(fitted, architectures.Levit) and isinstance(fitted.stem, ConvStem)
    assert len(fitted.stem.channels) == layers
    assert fitted.grids == grids


def test_fitting_to_the_size_it_was_made_for_changes_nothing() -> None:
    # 20 px leave five tokens a side, fewer than fitting to another size would.
    network = architectures.parse(changed({"image_size": 20}))
    assert (
        architectures.fitted(network, image_size=20, in_channels=1, num_classes=5).id == network.id
    )


def test_fitting_to_images_too_small_for_the_stages_is_refused() -> None:
    network = architectures.published("LeViT-128S")
    with pytest.raises(InputError, match=r"fitted to 4 px: image_size: 4 px is too small"):
        architectures.fitted(network, image_size=4, in_channels=1, num_classes=10)


def keys_in(data: Any) -> set[str]:
    if isinstance(data, dict):
        return set(data) | set().union(*map(keys_in, data.values()))
    return set().union(*map(keys_in, data)) if isinstance(data, list) else set()


KEYS = sorted(keys_in(architectures.parse(SMALL).model_dump(mode="json")) | {"layers", "x"})
WORDS = ["conv", "patch", "resnet18", "levit", "bias", "layer", "none", "2", "2.0", "1e999", ""]
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-1, 40)
    | st.integers(1, 8)
    | st.sampled_from([2**70, 10**400])
    | st.floats()
    | st.sampled_from(WORDS)
    | st.text(max_size=3)
    | st.dates()
    | st.binary(max_size=2)
)
JUNK = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.sampled_from(KEYS) | st.integers(0, 1) | st.none(), inner, max_size=4)
    ),
    max_leaves=8,
)


PLACES = [
    *SMALL,
    *("norm", "drop_path", "distillation", "stem.kind", "stem.channels", "stem.layers", "stages.0"),
    *(f"stages.{index}.{name}" for index in (0, 1) for name in Stage.model_fields),
    *(f"shrinks.0.{name}" for name in Shrink.model_fields),
]


def spoilt(changes: dict[str, Any]) -> dict[str, Any]:
    """SMALL with ``changes``, the inner ones first, since outer ones may leave them no place."""
    return changed(dict(sorted(changes.items(), key=lambda change: -change[0].count("."))))


SPOILT = st.dictionaries(st.sampled_from(PLACES), SCALARS | JUNK, min_size=1, max_size=3).map(
    spoilt
)


# A YAML integer may be larger than any float.
@example(changed({"stages.0.attn_ratio": 1.5, "stages.0.key_dim": 10**400}))
@settings(max_examples=150, deadline=None, derandomize=True)
@given(SPOILT | st.dictionaries(st.sampled_from([*Levit.model_fields]), JUNK))
def test_any_mapping_is_either_a_network_or_an_input_error(data: dict[str, Any]) -> None:
    try:
        network = architectures.parse(data)
    except InputError as error:
        assert str(error).startswith("architecture: ")  # noqa: PT017
        return
    assert isinstance(network, Levit)
    assert architectures.parse(network.model_dump(mode="json")).id == network.id
