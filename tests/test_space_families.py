"""Spaces over several kinds of stems and over both families."""

import copy
from itertools import product
from typing import Any

import numpy as np
import pytest
from optuna.trial import TrialState, create_trial

from levit_search import architecture as architectures
from levit_search.architecture import Architecture, Graft, Levit, ResNetStem
from levit_search.errors import InputError
from levit_search.space import Limits, Space

NO_LIMITS = Limits()

STEMS: dict[str, Any] = {
    "image_size": 32,
    "in_channels": 1,
    "num_classes": 3,
    "num_stages": {"choices": [1, 2]},
    "stem": {
        "kind": {"choices": ["conv", "patch", "resnet18"]},
        "layers": {"choices": [1, 2]},
        "patch_size": {"choices": [4, 8]},
        "stages": {"choices": [1, 2]},
        "stem": {"choices": ["imagenet", "small"]},
        "width_scale": {"choices": [0.25, 1]},
    },
    "stages": [
        {"depth": 1, "embed_dim": {"choices": [16, 24]}, "key_dim": 8},
        {"depth": {"range": [1, 2]}, "embed_dim": 24, "key_dim": 8},
    ],
}

STEM_KEYS = {
    "conv": {"layers"},
    "patch": {"patch_size"},
    "resnet18": {"stages", "stem", "width_scale"},
}

BOTH: dict[str, Any] = {
    **STEMS,
    "family": {"choices": ["levit", "graft"]},
    "norm": {"choices": ["batch", "layer"]},
    "donor": {
        "name": "resnet18",
        "stages": {"choices": [0, 1]},
        "stem": "small",
        "width_scale": {"choices": [0.25, 0.5]},
    },
    "grid": {"choices": [4, 8]},
    "trunk": {
        "depth": {"range": [0, 2]},
        "embed_dim": {"choices": [16, 24]},
        "num_heads": {"choices": [2, 3]},
        "mlp_ratio": 2,
    },
    "distillation": {"choices": [True, False]},
}


def changed(template: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """A copy with values at dotted paths; None takes a key away."""
    data = copy.deepcopy(template)
    for path, value in changes.items():
        *parents, last = path.split(".")
        node = data
        for part in parents:
            node = node[part]
        if value is None:
            del node[last]
        else:
            node[last] = value
    return data


def is_ignored(name: str, values: dict[str, Any]) -> bool:
    """The rules of decoding, written down once more."""
    first, _, rest = name.partition(".")
    if values.get("family", "levit") == "graft":
        if first in ("num_stages", "stem", "stages", "norm"):
            return True
        if first == "donor":
            return rest != "stages" and values["donor.stages"] == 0
        return name != "trunk.depth" and first in ("grid", "trunk") and values["trunk.depth"] == 0
    if first in ("donor", "grid", "trunk"):
        return True
    if first == "stem" and rest != "kind":
        return rest not in STEM_KEYS[values["stem.kind"]]
    return first == "stages" and int(rest.split(".")[0]) >= values["num_stages"]


def samples(space: Space, count: int, seed: int = 0) -> list[tuple[dict[str, Any], Architecture]]:
    """Slot values and the networks that they make; what does not go together is left out."""
    chance = np.random.default_rng(seed)
    found: list[tuple[dict[str, Any], Architecture]] = []
    while len(found) < count:
        values = {s.name: s.values[chance.integers(len(s.values))] for s in space.slots}
        try:
            found.append((values, space.decode(values)))
        except InputError:
            continue
    return found


SPACES = {"stems": STEMS, "families": BOTH}


@pytest.mark.parametrize("name", SPACES)
def test_what_is_decoded_is_encoded_back_with_ignored_slots_at_their_first_value(name: str) -> None:
    space = Space(SPACES[name], NO_LIMITS)
    for values, network in samples(space, 150):
        assert space.encode(network) == {
            slot.name: slot.values[0] if is_ignored(slot.name, values) else values[slot.name]
            for slot in space.slots
        }
        used = {name: value for name, value in values.items() if not is_ignored(name, values)}
        assert space.chosen(network) == used


@pytest.mark.parametrize("name", SPACES)
def test_ignored_slots_change_nothing(name: str) -> None:
    space = Space(SPACES[name], NO_LIMITS)
    others = samples(space, 100, seed=1)
    for (values, network), (other, _) in zip(samples(space, 100), others, strict=True):
        mixed = {n: (other if is_ignored(n, values) else values)[n] for n in values}
        assert space.decode(mixed).id == network.id


@pytest.mark.parametrize("name", SPACES)
def test_size_is_the_number_of_different_choices(name: str) -> None:
    space = Space(SPACES[name], NO_LIMITS)
    names = [slot.name for slot in space.slots]
    different = {
        tuple(None if is_ignored(n, values) else value for n, value in values.items())
        for choice in product(*(slot.values for slot in space.slots))
        for values in [dict(zip(names, choice, strict=True))]
    }
    assert space.size() == len(different)


def test_every_kind_of_stem_is_drawn_with_its_own_keys() -> None:
    found = {network.stem for _, network in samples(Space(STEMS, NO_LIMITS), 300)}  # type: ignore[union-attr]
    kinds = {stem.kind for stem in found}
    assert kinds == {"conv", "patch", "resnet18"}
    resnets = [stem for stem in found if isinstance(stem, ResNetStem)]
    assert {(s.stages, s.stem, s.width_scale) for s in resnets} == set(
        product((1, 2), ("imagenet", "small"), (0.25, 1))
    )


def test_both_families_are_drawn_surveyed_and_parameterised() -> None:
    space = Space(BOTH, NO_LIMITS)
    assert space.families == ("levit", "graft")
    found = samples(space, 60)
    assert {type(network) for _, network in found} == {Levit, Graft}
    assert {type(network) for network, _ in space.sample(60)} == {Levit, Graft}
    survey = space.survey(100)
    assert (
        survey.feasible == len(survey.costs)
        and survey.feasible + sum(survey.reasons.values()) == 100
    )
    for values, network in found:
        trial = create_trial(
            state=TrialState.PRUNED,  # which checks that they are within the distributions
            params=space.encoded(values),
            distributions=space.distributions(),
        )
        assert space.decode(space.values(trial.params)) == network


def test_what_both_families_have_stands_in_the_template_once() -> None:
    space = Space(changed(BOTH, {"drop_path": 0.1, "distillation": False}), NO_LIMITS)
    for _, network in samples(space, 30):
        assert (network.image_size, network.in_channels, network.num_classes) == (32, 1, 3)
        assert (network.drop_path, network.distillation) == (0.1, False)
    assert space.sizes == {"image_size": 32, "in_channels": 1, "num_classes": 3}


def test_a_space_of_both_families_holds_what_it_describes_of_each() -> None:
    space = Space(BOTH, NO_LIMITS)
    for _, network in samples(space, 30):
        other = architectures.parse({**network.model_dump(mode="json"), "num_classes": 4})
        assert space.encode(network) is not None and space.encode(other) is None


def test_one_choice_of_a_family_is_that_family() -> None:
    levits = {**STEMS, "family": {"choices": ["levit"]}}
    assert Space(levits, NO_LIMITS).families == Space(STEMS, NO_LIMITS).families == ("levit",)
    assert Space(levits, NO_LIMITS).decode({}) == Space(STEMS, NO_LIMITS).decode({})


def test_donors_are_those_of_both_families() -> None:
    assert Space(STEMS, NO_LIMITS).donors() == {"resnet18"}
    changes = {"donor.name": {"choices": ["resnet26", "resnet34"]}}
    both = Space(changed(BOTH, changes), NO_LIMITS)
    assert both.donors() == {"resnet18", "resnet26", "resnet34"}


def test_layers_are_a_resnets_too_where_the_template_has_no_stages() -> None:
    changes: dict[str, Any] = {"stem.stages": None, "stem.layers": {"choices": [2, 5]}}
    space = Space(changed(STEMS, changes), NO_LIMITS)
    stems = {network.stem for _, network in samples(space, 200)}  # type: ignore[union-attr]
    resnets = [stem for stem in stems if isinstance(stem, ResNetStem)]
    assert {(stem.layers, stem.stages) for stem in resnets} == {(2, None), (None, 1)}
    for _, network in samples(space, 50):
        encoded = space.encode(network)
        assert encoded is not None and space.decode(encoded) == network


def test_stems_of_several_kinds_may_be_chosen_as_a_whole() -> None:
    stems = [
        {"kind": "conv", "layers": 2},
        {"kind": "resnet18", "stages": 1, "width_scale": 0.5},
        {"kind": "resnet26", "layers": 3, "stem": "small"},
    ]
    space = Space(changed(STEMS, {"stem": {"choices": stems}}), NO_LIMITS)
    for stem in stems:
        encoded = space.encode(space.decode({"stem": stem}))
        assert encoded is not None and encoded["stem"] == stem
    assert space.donors() == {"resnet18", "resnet26"}


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "kind": (
        {"stem.kind": {"choices": ["conv", "resnet19"]}},
        r"architecture\.stem\.kind: .*'resnet19'",
    ),
    "a key of no kind": (
        {"stem.kind": {"choices": ["conv", "resnet18"]}},
        r"architecture\.stem\.patch_size: is taken by none of the kinds conv, resnet18",
    ),
    "stages and layers": (
        {"stem.kind": {"choices": ["patch", "resnet18"]}},
        r"architecture\.stem\.layers: is taken by none .* a ResNet that is cut by stages is not by",
    ),
    "no layers": (
        {"stem.layers": None},
        r"architecture\.stem: channels or layers is required for the kind conv",
    ),
    "no patch": (
        {"stem.patch_size": None},
        r"architecture\.stem: patch_size is required for the kind patch",
    ),
    "no cut": (
        {"stem.stages": None, "stem.layers": None, "stem.channels": [16]},
        r"architecture\.stem: layers is required for the kind resnet18",
    ),
    "channels": (
        {"stem.channels": {"choices": [[8, 0], [8, 16]]}},
        r"architecture\.stem\.channels: 1: .*not 0",
    ),
    "width": (
        {"stem.width_scale": {"choices": [0, 1]}},
        r"architecture\.stem\.width_scale: .*not 0",
    ),
    "stem of a ResNet": ({"stem.stem": "tiny"}, r"architecture\.stem\.stem: .*'tiny'"),
    "family": (
        {"family": {"choices": ["levit", "graff"]}},
        r"architecture: family: unknown value 'graff'; did you mean 'graft'",
    ),
    "family no name": ({"family": 3}, r"architecture: family: unknown value 3"),
    "families in a list": (
        {"family": ["levit", "graft"]},
        r"architecture: family: unknown value \['levit', 'graft'\]",
    ),
    "no stages": ({"stages": None}, r"architecture\.stages: a list of stages is required"),
    "no donor": ({"donor": None}, r"architecture\.donor\.stages: is required"),
    "unknown key": ({"nrom": "batch"}, r"architecture: unknown key 'nrom'; did you mean 'norm'"),
    "value of a graft": ({"grid": 0}, r"architecture\.grid: .*not 0"),
    "value of both": ({"distillation": "perhaps"}, r"architecture\.distillation: .*'perhaps'"),
}


@pytest.mark.parametrize(("changes", "message"), REFUSED.values(), ids=REFUSED)
def test_a_malformed_template_is_refused_with_its_place(
    changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=rf"^file: {message}"):
        Space(changed(BOTH, changes), NO_LIMITS, "file")
