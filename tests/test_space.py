import copy
import datetime
from itertools import product
from typing import Any

import numpy as np
import pytest
from optuna.trial import TrialState, create_trial

from levit_search import architecture as architectures
from levit_search.cost import Cost, cost
from levit_search.errors import InputError
from levit_search.space import Limits, Space, quantiles

NO_LIMITS = Limits()

TINY: dict[str, Any] = {
    "image_size": 16,
    "in_channels": 1,
    "num_classes": 3,
    "num_stages": {"choices": [1, 3]},
    "stem": {"kind": "conv", "layers": {"range": [1, 2]}},
    "stages": [
        {"depth": {"range": [1, 2]}, "embed_dim": 16, "key_dim": 8},
        {"depth": 1, "embed_dim": {"choices": [24, 16]}, "key_dim": 8},
        {"depth": 1, "embed_dim": 24, "key_dim": 8},
    ],
    "shrinks": [{"attn_ratio": {"choices": [2, 0.5, 4]}}, {}],
    "norm": {"choices": ["layer", "batch"]},
}

# Every kind of slot: numbers, fractions, names, flags, lists and a whole stem.
WIDE: dict[str, Any] = {
    "image_size": 32,
    "num_classes": 10,
    "num_stages": {"range": [1, 3]},
    "stem": {
        "kind": "conv",
        "channels": {"choices": [[8, 16], [4, 16], [4, 8, 16]]},
    },
    "stages": [
        {"depth": {"range": [1, 3]}, "embed_dim": 16, "num_heads": {"choices": [1, 2, 4]}},
        {
            "depth": {"range": [1, 3]},
            "embed_dim": {"choices": [16, 24, 32]},
            "num_heads": {"range": [2, 6], "step": 2},
            "key_dim": {"choices": [8, 16]},
            "mlp_ratio": {"choices": [1, 1.5, 2]},
        },
        {"depth": 1, "embed_dim": 32, "num_heads": 2, "key_dim": {"choices": [8, 4]}},
    ],
    "shrinks": [
        {"num_heads": 2, "attn_ratio": {"choices": [2, 4]}},
        {"num_heads": 2, "key_dim": 8, "stride": {"range": [2, 3]}},
    ],
    "position": {"choices": ["embedding", "bias"]},
    "distillation": {"choices": [True, False]},
    "drop_path": {"choices": [0, 0.1]},
}


def changed(template: dict[str, Any], path: str, value: Any) -> dict[str, Any]:
    data = copy.deepcopy(template)
    *parents, last = path.split(".")
    node: Any = data
    for part in parents:
        node = node[int(part)] if isinstance(node, list) else node[part]
    node[int(last) if isinstance(node, list) else last] = value
    return data


def samples(space: Space, count: int, seed: int = 0) -> list[dict[str, Any]]:
    chance = np.random.default_rng(seed)
    return [
        {slot.name: slot.values[chance.integers(len(slot.values))] for slot in space.slots}
        for _ in range(count)
    ]


def is_ignored(name: str, num_stages: int) -> bool:
    head, _, rest = name.partition(".")
    index = int(rest.split(".")[0]) if head in ("stages", "shrinks") else -1
    return index >= num_stages - (head == "shrinks")


def test_slots_are_named_by_their_place_and_numbers_are_in_order() -> None:
    assert {slot.name: slot.values for slot in Space(TINY, NO_LIMITS).slots} == {
        "num_stages": (1, 3),
        "stem.layers": (1, 2),
        "stages.0.depth": (1, 2),
        "stages.1.embed_dim": (16, 24),
        "shrinks.0.attn_ratio": (0.5, 2, 4),
        "norm": ("layer", "batch"),
    }


@pytest.mark.parametrize("template", [TINY, WIDE], ids=["tiny", "wide"])
def test_what_is_decoded_is_encoded_back(template: dict[str, Any]) -> None:
    space = Space(template, NO_LIMITS)
    for values in samples(space, 60):
        network = space.decode(values)
        encoded = space.encode(network)
        assert encoded is not None
        assert space.decode(encoded).id == network.id
        count = len(network.stages)
        for slot in space.slots:
            ignored = is_ignored(slot.name, count)
            assert encoded[slot.name] == (slot.values[0] if ignored else values[slot.name])


STEM_CHOICES = [
    {"kind": "patch", "patch_size": 4},
    {"kind": "conv", "channels": [8, 16]},
    {"kind": "conv", "layers": 1},
]


@pytest.mark.parametrize("stem", STEM_CHOICES, ids=["patch", "channels", "layers"])
def test_a_stem_chosen_as_a_whole_is_encoded_back(stem: dict[str, Any]) -> None:
    space = Space(changed(TINY, "stem", {"choices": STEM_CHOICES}), NO_LIMITS)
    network = space.decode({"num_stages": 1, "stem": stem})
    encoded = space.encode(network)
    assert encoded is not None
    assert encoded["stem"] == stem


def test_slots_of_absent_stages_are_ignored() -> None:
    space = Space(WIDE, NO_LIMITS)
    for values, others in zip(samples(space, 60, seed=1), samples(space, 60, seed=2), strict=True):
        count = values["num_stages"]
        mixed = {name: (others if is_ignored(name, count) else values)[name] for name in values}
        assert space.decode(mixed).id == space.decode(values).id


def test_a_network_outside_the_space_is_not_encoded() -> None:
    space = Space(TINY, NO_LIMITS)
    inside = space.decode({"num_stages": 3})
    assert space.encode(inside) is not None
    outside: list[tuple[str, Any]] = [
        ("num_classes", 4),  # fixed
        ("stages.0.depth", 3),  # beyond the choices
        ("stages.2.embed_dim", 48),
        ("activation", "relu"),  # left out of the template
    ]
    for path, value in outside:
        network = architectures.parse(changed(inside.model_dump(mode="json"), path, value))
        assert space.encode(network) is None


@pytest.mark.parametrize("num_stages", [{"choices": [1, 3]}, {"range": [1, 3]}, 3, 2, 1], ids=str)
def test_size_is_the_number_of_different_networks(num_stages: Any) -> None:
    space = Space(changed(TINY, "num_stages", num_stages), NO_LIMITS)
    names = [slot.name for slot in space.slots]
    everything = product(*(slot.values for slot in space.slots))
    found = {space.decode(dict(zip(names, values, strict=True))).id for values in everything}
    assert space.size() == len(found)


def test_limits_are_read_as_amounts_and_give_the_excess_as_a_share() -> None:
    limits = Limits.model_validate({"params": "2k", "flops": "1.5M", "latency_ms": 3})
    excess = limits.excess(Cost(params=3000, flops=1_500_000, activations=10**9))
    assert excess == {"params": pytest.approx(0.5), "flops": pytest.approx(0.0)}


@pytest.mark.parametrize("cost_name", Cost._fields)
def test_a_survey_counts_and_lists_what_keeps_the_limits(cost_name: str) -> None:
    space = Space(TINY, NO_LIMITS)
    drawn = [getattr(cost(space.decode(values)), cost_name) for values in samples(space, 200, 3)]
    limit = float(np.median(drawn))
    survey = Space(TINY, Limits.model_validate({cost_name: limit})).survey(200, seed=4)
    assert survey.samples == 200
    assert all(getattr(found, cost_name) <= limit for found in survey.costs)
    assert survey.feasible == len(survey.costs)
    assert 80 < survey.feasible < 160  # half, and what lies at the median itself
    assert survey.reasons == {f"{cost_name} over the limit of {limit:,.0f}": 200 - survey.feasible}


def test_a_survey_depends_on_its_seed_alone() -> None:
    space = Space(TINY, NO_LIMITS)
    assert space.survey(30, seed=0) == space.survey(30)
    assert space.survey(30, seed=0) != space.survey(30, seed=1)


def test_an_infeasible_space_is_refused_for_its_most_frequent_reason() -> None:
    # A key dimension of 5 does not divide 16; the other three keep the rule but not the limit.
    template = changed(TINY, "num_stages", 1)
    template = changed(template, "stages.0.key_dim", {"choices": [2, 4, 5, 8]})
    reasons = Space(template, Limits(params=1000)).survey(200).reasons
    often, seldom = reasons.items()
    assert often[0] == "params over the limit of 1,000"
    assert seldom[0].startswith("stages.0.key_dim: 5 does not divide the width 16")
    assert often[1] + seldom[1] == 200
    assert 120 < often[1] < 180
    with pytest.raises(InputError, match=r"none of 2000 .*feasible.*params over the limit"):
        Space(template, Limits(params=1000)).sample()


def test_a_space_with_a_feasible_network_is_accepted() -> None:
    smallest = min(found.params for found in Space(TINY, NO_LIMITS).survey(2000).costs)
    Space(TINY, Limits(params=smallest)).sample()
    with pytest.raises(InputError, match="params over the limit"):
        Space(TINY, Limits(params=smallest - 1)).sample()


def test_parameters_say_what_was_encoded_in_them() -> None:
    space = Space(WIDE, NO_LIMITS)
    for values in samples(space, 40):
        trial = create_trial(
            state=TrialState.PRUNED,  # which checks that they are within the distributions
            params=space.encoded(values),
            distributions=space.distributions(),
        )
        assert space.values(trial.params) == values


def test_a_slot_with_one_value_is_not_asked_for() -> None:
    space = Space(changed(TINY, "stages.0.depth", {"choices": [2]}), NO_LIMITS)
    values = samples(space, 1)[0]
    assert "stages.0.depth" not in space.encoded(values)
    assert "stages.0.depth" not in space.distributions()
    read = space.values(space.encoded(values))
    assert space.decode(read) == space.decode(values)
    assert space.decode(read).stages[0].depth == 2


# A slot in the wrong, and the message it gets after "file: architecture.".
REFUSED: dict[str, tuple[str, Any, str]] = {
    "no choices": ("stages.0.depth", {"choices": []}, r"stages\.0\.depth.*\[\]"),
    "choices no list": ("stages.0.depth", {"choices": 3}, r"stages\.0\.depth.*not 3"),
    "choice twice": ("norm", {"choices": ["layer"] * 2}, r"norm.*twice.*layer"),
    "number twice": ("stages.0.mlp_ratio", {"choices": [2, 2.0]}, r"stages\.0\.mlp_ratio.*twice"),
    "type": ("stages.0.depth", {"choices": [1, "2"]}, r"stages\.0\.depth: .*not '2'"),
    "bool": ("stages.0.attn_ratio", {"choices": [True]}, r"stages\.0\.attn_ratio: .*not True"),
    "bound": ("stages.0.depth", {"range": [0, 3]}, r"stages\.0\.depth: .*not 0"),
    "fixed value": ("shrinks.0.stride", 1, r"shrinks\.0\.stride: .*not 1"),
    "name": ("norm", {"choices": ["batch", "group"]}, r"norm: .*'group'"),
    "date": ("norm", {"choices": ["batch", datetime.date(2026, 1, 1)]}, r"norm.*2026"),
    "empty range": ("stages.0.depth", {"range": [3, 1]}, r"stages\.0\.depth\.range: empty.*3.*1"),
    "half a range": ("stages.0.depth", {"range": [3]}, r"stages\.0\.depth\.range: .*\[3\]"),
    "fractional range": ("stages.0.depth", {"range": [1, 2.5]}, r"stages\.0\.depth.*\[1, 2\.5\]"),
    "step": ("stages.0.depth", {"range": [1, 3], "step": 0}, r"stages\.0\.depth\.range: .*step 0"),
    "key in a range": (
        "stages.0.depth",
        {"range": [1, 3], "stpe": 2},
        r"stages\.0\.depth: .*'stpe'; did you mean 'step'",
    ),
    "both": ("stages.0.depth", {"choices": [1], "range": [1, 3]}, r"stages\.0\.depth: .*'range'"),
    "key in a stage": ("stages.1.dpeth", 2, r"stages\.1: .*'dpeth'; did you mean 'depth'"),
    "key in a shrink": ("shrinks.1.strid", 2, r"shrinks\.1: .*'strid'; did you mean 'stride'"),
    "key in a stem": ("stem.layrs", 2, r"stem: .*'layrs'; did you mean 'layers'"),
    "key": ("norn", {"choices": ["batch"]}, r".*'norn'; did you mean 'norm'"),
    "key of a list": ("shrink", [{"attn_ratio": 2}], r".*'shrink'; did you mean 'shrinks'"),
    "stages missing": ("num_stages", 4, r"num_stages: 4 stages, but only 3"),
    "stages missing in a range": ("num_stages", {"range": [1, 4]}, r"num_stages: 4 .*only 3"),
    "list of counts": ("num_stages", [1, 2], r"num_stages: .*\[1, 2\]"),
    "no stages": ("stages", [], r"stages: "),
    "stages no list": ("stages", {"choices": [1]}, r"stages: "),
}


@pytest.mark.parametrize(("path", "value", "message"), REFUSED.values(), ids=REFUSED)
def test_a_malformed_template_is_refused_with_its_place(
    path: str, value: Any, message: str
) -> None:
    with pytest.raises(InputError, match=rf"^file: architecture[.:] ?{message}"):
        Space(changed(TINY, path, value), NO_LIMITS, "file")


def test_quantiles_go_from_the_least_to_the_most() -> None:
    assert quantiles([4, 0, 2, 3, 1]) == {"min": 0, "q25": 1, "median": 2, "q75": 3, "max": 4}
