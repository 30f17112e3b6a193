"""Spaces over the graft family."""

import copy
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from optuna.trial import TrialState, create_trial

from levit_search import architecture as architectures
from levit_search.architecture import Graft, Levit
from levit_search.errors import InputError
from levit_search.space import Limits, Space
from levit_search.study import read_config

ROOT = Path(__file__).parents[1]
NO_LIMITS = Limits()

# Heads of 3 do not divide 16; stage 3 ends at 4 px, which is too small for a grid of 8.
GRAFTS: dict[str, Any] = {
    "family": "graft",
    "image_size": 16,
    "in_channels": 1,
    "num_classes": 3,
    "donor": {
        "name": {"choices": ["resnet26", "resnet18"]},
        "stages": {"choices": [0, 1, 3]},
        "stem": "small",
        "width_scale": {"choices": [0.5, 0.25]},
    },
    "grid": {"choices": [8, 4]},
    "trunk": {
        "depth": {"range": [0, 2]},
        "embed_dim": {"choices": [24, 16]},
        "num_heads": {"range": [2, 3]},
        "mlp_ratio": {"choices": [2, 1.5]},
    },
    "distillation": {"choices": [True, False]},
}


def changed(path: str, value: Any) -> dict[str, Any]:
    data = copy.deepcopy(GRAFTS)
    *parents, last = path.split(".")
    node = data
    for part in parents:
        node = node[part]
    node[last] = value
    return data


def everything(space: Space) -> list[dict[str, Any]]:
    names = [slot.name for slot in space.slots]
    choices = product(*(slot.values for slot in space.slots))
    return [dict(zip(names, choice, strict=True)) for choice in choices]


def samples(space: Space, count: int, seed: int = 0) -> list[dict[str, Any]]:
    chance = np.random.default_rng(seed)
    return [
        {slot.name: slot.values[chance.integers(len(slot.values))] for slot in space.slots}
        for _ in range(count)
    ]


def is_ignored(name: str, values: dict[str, Any]) -> bool:
    if name in ("donor.name", "donor.stem", "donor.width_scale"):
        return values["donor.stages"] == 0
    if name in ("grid", "trunk.embed_dim", "trunk.num_heads", "trunk.mlp_ratio"):
        return values["trunk.depth"] == 0
    return False


def test_slots_are_named_by_their_place() -> None:
    assert {slot.name: slot.values for slot in Space(GRAFTS, NO_LIMITS).slots} == {
        "donor.name": ("resnet26", "resnet18"),
        "donor.stages": (0, 1, 3),
        "donor.width_scale": (0.25, 0.5),
        "grid": (4, 8),
        "trunk.depth": (0, 1, 2),
        "trunk.embed_dim": (16, 24),
        "trunk.num_heads": (2, 3),
        "trunk.mlp_ratio": (1.5, 2),
        "distillation": (True, False),
    }


def test_what_is_decoded_is_encoded_back_with_ignored_slots_at_their_first_value() -> None:
    space = Space(GRAFTS, NO_LIMITS)
    seen = 0
    for values in samples(space, 300):
        try:
            network = space.decode(values)
        except InputError:
            continue
        seen += 1
        assert space.encode(network) == {
            slot.name: slot.values[0] if is_ignored(slot.name, values) else values[slot.name]
            for slot in space.slots
        }
    assert seen > 100


def test_no_stages_are_no_donor_and_no_layers_no_trunk() -> None:
    space = Space(GRAFTS, NO_LIMITS)
    deit = space.decode({"donor.stages": 0, "trunk.depth": 2, "grid": 8})
    assert isinstance(deit, Graft) and deit.donor is None and deit.grid == 8
    resnet = space.decode({"donor.stages": 3, "trunk.depth": 0})
    assert isinstance(resnet, Graft) and resnet.trunk is None and resnet.grid is None


def test_no_stages_and_no_layers_are_choices_as_others_are() -> None:
    space = Space(GRAFTS, NO_LIMITS)
    deit = space.chosen(space.decode({"donor.stages": 0, "trunk.depth": 2}))
    resnet = space.chosen(space.decode({"donor.stages": 1, "trunk.depth": 0}))
    assert deit is not None and deit["donor.stages"] == 0 and "donor.name" not in deit
    assert resnet is not None and resnet["trunk.depth"] == 0 and "trunk.embed_dim" not in resnet


def test_slots_without_a_meaning_change_nothing_even_if_they_do_not_fit() -> None:
    space = Space(GRAFTS, NO_LIMITS)
    resnet = {"donor.stages": 3, "trunk.depth": 0}
    unfit = {"trunk.embed_dim": 16, "trunk.num_heads": 3, "grid": 8}
    assert space.decode({**resnet, **unfit}).id == space.decode(resnet).id


def test_size_is_the_number_of_different_choices() -> None:
    space = Space(GRAFTS, NO_LIMITS)
    different = {
        tuple(None if is_ignored(name, values) else value for name, value in values.items())
        for values in everything(space)
    }
    assert space.size() == len(different)


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"trunk.depth": 1, "trunk.embed_dim": 16, "trunk.num_heads": 3}, r"num_heads: 3 .* 16"),
        ({"donor.stages": 3, "trunk.depth": 1, "grid": 8}, r"grid: .* 4x4 to 8x8"),
        ({"donor.stages": 0, "trunk.depth": 0}, r"leave nothing"),
    ],
    ids=["heads", "grid", "nothing"],
)
def test_what_does_not_go_together_is_infeasible_for_its_reason(
    values: dict[str, Any], reason: str
) -> None:
    with pytest.raises(InputError, match=reason):
        Space(GRAFTS, NO_LIMITS).decode(values)


def test_a_survey_names_the_reasons() -> None:
    reasons = Space(GRAFTS, NO_LIMITS).survey(300).reasons
    assert any("heads do not divide the width 16" in reason for reason in reasons)
    assert any("cannot bring a map of 4x4 to 8x8" in reason for reason in reasons)


@pytest.mark.parametrize("grids", [[2, 4], [[2, 3], [4, 6]]], ids=str)
def test_grids_of_a_rectangle_are_pairs_or_their_shorter_side(grids: list[Any]) -> None:
    template = {**changed("grid", {"choices": grids}), "image_size": [32, 48]}
    space = Space(template, NO_LIMITS)
    assert space.sizes["image_size"] == (32, 48)
    for given, grid in zip(grids, [(2, 3), (4, 6)], strict=True):
        network = space.decode({"donor.stages": 0, "trunk.depth": 1, "grid": given})
        assert isinstance(network, Graft) and network.grid == grid
        encoded = space.encode(network)
        assert encoded is not None and encoded["grid"] == given


def test_a_stem_that_decides_the_grid_is_not_ignored_without_a_donor() -> None:
    template = changed("grid", None)
    template["image_size"] = 32
    template["donor"]["stem"] = {"choices": ["imagenet", "small"]}
    space = Space(template, NO_LIMITS)
    for stem, grid in (("small", 8), ("imagenet", 2)):
        network = space.decode({"donor.stages": 0, "donor.stem": stem, "trunk.depth": 1})
        assert isinstance(network, Graft) and network.grid == grid
        encoded = space.encode(network)
        assert encoded is not None and encoded["donor.stem"] == stem
    different = {
        tuple(
            None if is_ignored(name, values) and not (name == "donor.stem" and has_trunk) else value
            for name, value in values.items()
        )
        for values in everything(space)
        for has_trunk in [values["trunk.depth"] > 0]
    }
    assert space.size() == len(different)


def test_a_donor_may_be_chosen_as_a_whole() -> None:
    donors = [None, {"name": "resnet34", "stages": 1, "stem": "small", "width_scale": 0.25}]
    space = Space(changed("donor", {"choices": donors}), NO_LIMITS)
    for donor in donors:
        network = space.decode({"donor": donor, "trunk.depth": 1})
        encoded = space.encode(network)
        assert encoded is not None
        assert encoded["donor"] == donor
    assert space.donors() == {"resnet34"}


def test_networks_outside_are_not_encoded() -> None:
    space = Space(GRAFTS, NO_LIMITS)
    inside = space.decode({"donor.stages": 1, "trunk.depth": 1})
    outside: list[tuple[str, Any]] = [
        ("num_classes", 4),
        ("drop_path", 0.1),
        ("trunk", {"depth": 3, "embed_dim": 16, "num_heads": 2, "mlp_ratio": 2}),
        ("donor", {"name": "resnet50", "stages": 1, "stem": "small", "width_scale": 0.25}),
        ("donor", {"name": "resnet18", "stages": 1, "stem": "imagenet", "width_scale": 0.25}),
    ]
    for key, value in outside:
        data = {**inside.model_dump(mode="json"), key: value}
        if key == "donor" and value["stem"] == "imagenet":
            data["grid"] = 4
        assert space.encode(architectures.parse(data)) is None


def test_a_space_holds_networks_of_its_own_family_only() -> None:
    levits = {
        "image_size": 16,
        "num_classes": 3,
        "stem": {"kind": "conv", "layers": 2},
        "stages": [{"depth": 1, "embed_dim": 16, "key_dim": 8}],
    }
    levit_space, graft_space = Space(levits, NO_LIMITS), Space(GRAFTS, NO_LIMITS)
    levit, graft = levit_space.decode({}), graft_space.decode({"trunk.depth": 1})
    assert isinstance(levit, Levit) and isinstance(graft, Graft)
    assert levit_space.encode(graft) is None
    assert graft_space.encode(levit) is None


def test_parameters_say_what_was_encoded_in_them() -> None:
    space = Space(GRAFTS, NO_LIMITS)
    for values in samples(space, 40):
        trial = create_trial(
            state=TrialState.PRUNED,  # which checks that they are within the distributions
            params=space.encoded(values),
            distributions=space.distributions(),
        )
        assert space.values(trial.params) == values


REFUSED: dict[str, tuple[str, Any, str]] = {
    "keys of the other": ("family", {"choices": ["graft", "levit"]}, r"stages: a list of stages"),
    "family unknown": ("family", "graff", r"family: .*'graff'; did you mean 'graft'"),
    "donor": ("donor.name", {"choices": ["resnet18", "resnet19"]}, r"donor\.name: .*'resnet19'"),
    "stages": ("donor.stages", {"range": [0, 5]}, r"donor\.stages: .*not 5"),
    "scale": ("donor.width_scale", {"choices": [0, 1]}, r"donor\.width_scale: .*not 0"),
    "stem": ("donor.stem", "tiny", r"donor\.stem: .*'tiny'"),
    "depth": ("trunk.depth", {"range": [-1, 2]}, r"trunk\.depth: .*not -1"),
    "heads": ("trunk.num_heads", {"choices": [1, "2"]}, r"trunk\.num_heads: .*not '2'"),
    "grid": ("grid", {"choices": [8, 0]}, r"grid: .*not 0"),
    "key in the donor": ("donor.stage", 2, r"donor: .*'stage'; did you mean 'stages'"),
    "key in the trunk": ("trunk.dpeth", 2, r"trunk: .*'dpeth'; did you mean 'depth'"),
    "key": ("grids", 2, r".*'grids'; did you mean 'grid'"),
    "key of the other family": ("num_stages", 2, r".*unknown key 'num_stages'"),
    "no count of stages": ("donor", {"name": "resnet18"}, r"donor\.stages: is required"),
    "no count of layers": ("trunk", {"embed_dim": 16}, r"trunk\.depth: is required"),
    "trunk no mapping": ("trunk", 3, r"trunk: .*3"),
}


@pytest.mark.parametrize(("path", "value", "message"), REFUSED.values(), ids=REFUSED)
def test_a_malformed_template_is_refused_with_its_place(
    path: str, value: Any, message: str
) -> None:
    with pytest.raises(InputError, match=rf"^file: architecture[.:] ?{message}"):
        Space(changed(path, value), NO_LIMITS, "file")


@pytest.mark.parametrize("missing", ["donor", "trunk"])
def test_a_part_left_out_is_named(missing: str) -> None:
    template = {key: value for key, value in GRAFTS.items() if key != missing}
    with pytest.raises(InputError, match=rf"^file: architecture\.{missing}\..* is required"):
        Space(template, NO_LIMITS, "file")


def test_a_space_names_the_donors_its_networks_may_have() -> None:
    assert Space(GRAFTS, NO_LIMITS).donors() == {"resnet18", "resnet26"}
    assert Space(changed("donor.stages", 0), NO_LIMITS).donors() == set()
    assert Space(changed("donor", None), NO_LIMITS).donors() == set()
    assert Space(changed("donor", {"stages": 1}), NO_LIMITS).donors() == {"resnet50"}


@pytest.mark.parametrize(
    ("stem", "donors"),
    [
        ({"kind": "conv", "layers": 2}, set()),
        ({"kind": "resnet18", "stages": 1}, {"resnet18"}),
        ({"kind": {"choices": ["resnet18", "resnet34"]}, "layers": 3}, {"resnet18", "resnet34"}),
        ({"choices": [{"kind": "resnet26", "stages": 1}, {"layers": 2}]}, {"resnet26"}),
    ],
    ids=["conv", "resnet", "kinds", "whole"],
)
def test_a_space_of_levits_names_its_resnet_stems(stem: Any, donors: set[str]) -> None:
    template = {
        "image_size": 32,
        "num_classes": 3,
        "stem": stem,
        "stages": [{"depth": 1, "embed_dim": 16, "key_dim": 8}],
    }
    assert Space(template, NO_LIMITS).donors() == donors


def test_a_resnet_stem_cut_by_layers_is_encoded_back() -> None:
    template = {
        "image_size": 32,
        "num_classes": 3,
        "stem": {"kind": {"choices": ["resnet18", "resnet26"]}, "layers": {"range": [2, 9]}},
        "stages": [{"depth": 1, "embed_dim": 16, "key_dim": 8}],
    }
    space = Space(template, NO_LIMITS)
    for values in everything(space):  # five layers of a ResNet-18 are its first stage
        assert space.encode(space.decode(values)) == values


def test_the_embedded_space_begins_with_the_papers_proportions() -> None:
    config = read_config(ROOT / "spaces" / "grafting.yaml")
    space = Space(
        {**config.architecture, "image_size": 32, "in_channels": 1, "num_classes": 10},
        config.limits,
    )
    for name, given in zip(architectures.GRAFTS, config.start, strict=True):
        assert isinstance(given, dict)
        small = architectures.fitted(
            architectures.published(name), image_size=32, in_channels=1, num_classes=10
        )
        network = architectures.described(given, space.sizes)
        assert network == architectures.scaled(small, 0.25)
        assert space.encode(network) is not None
    space.sample(1)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"donor": [1]}, "donor: expected keys and values"),
        ({"trunk": []}, "trunk: expected keys and values"),
    ],
)
def test_parts_that_are_no_mappings_are_named(changes: dict[str, Any], message: str) -> None:
    template = {
        "family": "graft",
        "image_size": 32,
        "num_classes": 10,
        "donor": {"stages": {"range": [0, 2]}, "stem": "small"},
        "trunk": {"depth": 2, "embed_dim": 32, "num_heads": 2},
    }
    with pytest.raises(InputError, match=message):
        Space({**template, **changes}, Limits())


def test_shrinking_blocks_without_their_dash_are_named() -> None:
    stage = {"depth": 1, "embed_dim": 16, "num_heads": 2}
    template = {
        "image_size": 32,
        "num_classes": 10,
        "num_stages": {"range": [1, 2]},
        "stem": {"kind": "conv", "layers": 2},
        "stages": [stage, stage],
        "shrinks": {"num_heads": {"choices": [1, 2]}},
    }
    with pytest.raises(InputError, match="shrinks: expected a list"):
        Space(template, Limits())
