"""Weights that all networks of a space share: what members have of them, training, and search."""

import importlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from torch import Tensor

from levit_search import table
from levit_search.architecture import Levit
from levit_search.batches import Batches, open_batches
from levit_search.configuration import validated
from levit_search.cost import cost
from levit_search.data import DataConfig
from levit_search.doctor.checks import study_folder as doctor_study
from levit_search.errors import BudgetError, InputError
from levit_search.model import LevitModel, load_weights, save_weights
from levit_search.model.blocks import offsets
from levit_search.pareto import minimised, non_dominated
from levit_search.recipe import Recipe, SupernetConfig
from levit_search.search import search
from levit_search.search.final_evaluation import worth_verifying
from levit_search.space import (
    Envelope,
    Limits,
    Space,
    envelope_of,
    extremes_of,
    stem_name,
)
from levit_search.study import Record, Study, StudyConfig, read_config
from levit_search.supernet import (
    Elastic,
    Inheritance,
    Sandwich,
    SupernetEpoch,
    calibrate,
    draw_within,
    obtain_supernet,
    read_card,
    supernet_folder,
)
from levit_search.supernet.elastic import skeleton
from levit_search.train import Checkpoint, fit, seed_torch
from tests.conftest import ROOT
from tests.engines import HereEngine, StubEngine
from tests.networks import tiny_space

IMAGES = {"image_size": 16, "in_channels": 1, "num_classes": 10}
CPU = torch.device("cpu")


def envelope_around(networks: list[Levit]) -> Envelope:
    """The bounds that ``benchmarks/supernet.py`` makes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "benchmarks"))
        found: Envelope = importlib.import_module("envelopes").envelope_around(networks)
    return found


def template(**changes: Any) -> dict[str, Any]:
    """Everything varies that weights can be shared over."""
    return {
        **IMAGES,
        "num_stages": {"choices": [1, 2, 3]},
        "stem": {"kind": "conv", "layers": {"choices": [1, 2]}},
        "stages": [
            {
                "depth": {"range": [1, 3]},
                "embed_dim": {"choices": [8, 16, 24]},
                "num_heads": {"range": [1, 3]},
                "key_dim": {"choices": [4, 6, 8]},
                "attn_ratio": {"choices": [1, 1.5, 2]},
                "mlp_ratio": {"choices": [1, 1.25, 2]},
            },
            {
                "depth": {"range": [1, 2]},
                "embed_dim": {"choices": [16, 24, 32]},
                "num_heads": {"range": [2, 4]},
                "key_dim": {"choices": [4, 8]},
            },
            {
                "depth": {"range": [1, 2]},
                "embed_dim": {"choices": [24, 40]},
                "num_heads": {"range": [1, 2]},
                "key_dim": {"choices": [8, 16]},
            },
        ],
        "shrinks": [{"attn_ratio": {"choices": [2, 4]}}, {"mlp_ratio": {"choices": [1, 2]}}],
        **changes,
    }


SPACES = {
    "all that can vary": template(),
    "layer norm": template(norm="layer"),
    "one head, no teacher": template(distillation=False),
    "position embedding": template(
        position="embedding", stem={"kind": "conv", "layers": 2}, norm="layer"
    ),
    "patches": template(stem={"kind": "patch", "patch_size": {"choices": [2, 4]}}),
    "a ResNet": template(
        stem={"kind": "resnet18", "stages": 1}, image_size=32, num_stages={"choices": [1, 2]}
    ),
    "stems of several kinds": template(
        stem={
            "kind": {"choices": ["conv", "patch", "resnet18"]},
            "layers": {"choices": [1, 2]},
            "patch_size": 4,
            "stages": 1,
            "stem": {"choices": ["imagenet", "small"]},
            "width_scale": {"choices": [0.25, 0.5]},
        },
    ),
    "stems chosen as a whole": template(
        stem={
            "choices": [
                {"kind": "conv", "layers": 2, "channels": [4]},
                {"kind": "conv", "layers": 2},
                {"kind": "resnet18", "layers": 5, "width_scale": 0.25},
                {"kind": "patch", "patch_size": 4},
            ]
        },
        num_stages=2,
        shrinks=[{}, {}],
    ),
    "channels by hand": template(
        stem={
            "kind": "conv",
            "layers": 2,
            "channels": {"choices": [[4], [12], [6]]},
        }
    ),
    "heads and keys that follow from each other": template(
        stages=[
            {"depth": 1, "embed_dim": {"choices": [16, 24]}, "key_dim": {"choices": [4, 8]}},
            {"depth": 1, "embed_dim": {"choices": [16, 32]}, "num_heads": {"choices": [2, 4]}},
        ],
        num_stages=2,
        shrinks=[{}],
    ),
}


def space_of(described: dict[str, Any], **limits: Any) -> Space:
    return Space(described, Limits(**limits))


def drawn(space: Space, count: int, seed: int = 0) -> list[Levit]:
    chance = np.random.default_rng(seed)
    return [draw_within(space, chance) for _ in range(count)]


def images(network: Levit, count: int = 4) -> Tensor:
    size = network.image_size
    generator = torch.Generator().manual_seed(1)
    return torch.randn(count, network.in_channels, size, size, generator=generator)


def unlike_fresh(elastic: Elastic) -> Elastic:
    """With no weight at zero or one, so that none can be left out unseen."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in elastic.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return elastic


# --- members


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[pytest.mark.slow] * (place > 3))
        for place, name in enumerate(SPACES)
    ],
)
def test_every_member_is_a_slice_that_stands_alone_with_the_same_logits(name, tmp_path):
    space = space_of(SPACES[name])
    envelope = envelope_of(space)
    elastic = unlike_fresh(Elastic(envelope)).train()
    ends = [network for each in extremes_of(space, envelope).values() for network in each]
    for network in [*drawn(space, 6), *ends]:
        assert envelope.holds(network)
        views = images(network)
        shared = elastic(views, skeleton(network).train())
        alone = elastic.extract(network)
        calibrate(alone, [views])
        save_weights(alone, tmp_path / "slice.safetensors")
        loaded = LevitModel(network)
        assert load_weights(loaded, tmp_path / "slice.safetensors") == "ours"
        torch.testing.assert_close(loaded.eval()(views), alone(views), rtol=0, atol=1e-5)
        for a, b in zip(_heads(shared), _heads(loaded.train()(views)), strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=1e-5)


def _heads(outputs: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return (outputs,) if isinstance(outputs, Tensor) else outputs


def described(**changes: Any) -> dict[str, Any]:
    """The largest network of a space of two stages of two blocks."""
    stage = {"depth": 2, "embed_dim": 16, "num_heads": 3, "key_dim": 8, "attn_ratio": 2}
    return {
        **IMAGES,
        "stem": {"kind": "conv", "layers": 2},
        "stages": [stage, {**stage, "embed_dim": 24}],
        "shrinks": [{"num_heads": 4, "key_dim": 8}],
        **changes,
    }


def network_of(**changes: Any) -> Levit:
    return validated(Levit, described(**changes), "network")


def test_the_largest_member_has_all_weights_as_they_are():
    network = network_of()
    elastic = unlike_fresh(Elastic(envelope_around([network])))
    own = elastic.extract(network).state_dict()
    shared = dict(elastic.named_parameters())
    assert len(shared) == len(dict(LevitModel(network).named_parameters()))
    for name in (
        "stages.1.blocks.1.attention.qkv.linear.weight",
        "shrinks.0.mlp.contract.norm.bias",
    ):
        assert torch.equal(own[name], shared[name])
    assert torch.equal(own["stem.convs.1.conv.weight"], shared["stems.conv2.convs.1.conv.weight"])
    assert torch.equal(own["head_dist.linear.weight"], shared["heads_dist.2.linear.weight"])


def _stages(**changes: Any) -> list[dict[str, Any]]:
    first, *others = described()["stages"]
    return [{**first, **changes}, *others]


def _without_the_third_head(model: LevitModel) -> None:
    for block in model.stages[0].blocks:
        block.attention.projection.linear.weight.data[:, 2 * 16 :] = 0.0


def _without_later_hidden_channels(model: LevitModel) -> None:
    for block in model.stages[0].blocks:
        block.mlp.contract.linear.weight.data[:, 24:] = 0.0


def _without_later_values_of_each_head(model: LevitModel) -> None:
    for block in model.stages[0].blocks:
        block.attention.projection.linear.weight.data.unflatten(1, (3, 16))[:, :, 8:] = 0.0


def _without_the_second_block(model: LevitModel) -> None:
    del model.stages[0].blocks[1]


@pytest.mark.parametrize(
    ("changes", "silence"),
    [
        ({"num_heads": 2}, _without_the_third_head),
        ({"mlp_ratio": 1.5}, _without_later_hidden_channels),
        ({"attn_ratio": 1}, _without_later_values_of_each_head),
        ({"depth": 1}, _without_the_second_block),
    ],
)
def test_a_member_is_the_whole_network_with_what_it_lacks_silenced(changes, silence):
    whole, part = network_of(), network_of(stages=_stages(**changes))
    elastic = unlike_fresh(Elastic(envelope_around([whole])))
    silenced, own = elastic.extract(whole).eval(), elastic.extract(part).eval()
    silence(silenced)
    views = images(whole)
    torch.testing.assert_close(own(views), silenced(views), rtol=0, atol=1e-5)


def test_a_smaller_key_dimension_has_the_leading_channels_of_queries_and_keys():
    whole, part = network_of(), network_of(stages=_stages(key_dim=4, attn_ratio=4))
    elastic = unlike_fresh(Elastic(envelope_around([whole])))
    silenced, own = elastic.extract(whole).eval(), elastic.extract(part).eval()
    for block in silenced.stages[0].blocks:
        # Without the later channels of the queries, scores are those of the leading ones.
        rows = block.attention.qkv.norm.weight.data.unflatten(0, (3, 8 + 8 + 16))
        shift = block.attention.qkv.norm.bias.data.unflatten(0, (3, 8 + 8 + 16))
        rows[:, 4:8] = shift[:, 4:8] = 0.0
        block.attention.core.scale = 4**-0.5
    views = images(whole)
    torch.testing.assert_close(own(views), silenced(views), rtol=0, atol=1e-5)


@pytest.mark.parametrize("image_size", [16, (16, 24)], ids=str)
def test_a_smaller_grid_has_the_biases_of_its_own_offsets(image_size):
    deep, shallow = (
        network_of(image_size=image_size, stem={"kind": "conv", "layers": n}) for n in (2, 1)
    )
    elastic = unlike_fresh(Elastic(envelope_around([deep, shallow])))
    core = elastic.extract(deep).stages[0].blocks[0].attention.core
    shared = dict(elastic.named_parameters())["stages.0.blocks.0.attention.core.attention_bias"]
    small, large = deep.grids[0], shallow.grids[0]
    assert (small, large) == (((4, 4), (8, 8)) if image_size == 16 else ((4, 6), (8, 12)))
    pixels = torch.cartesian_prod(*map(torch.arange, small))
    dx, dy = (pixels[:, None] - pixels[None]).abs().unbind(-1)
    assert torch.equal(core.gathered_bias(), shared[:, dx * large[1] + dy])
    assert torch.equal(offsets(small, 1), dx * small[1] + dy)


def test_gradients_reach_what_a_member_has_and_nothing_else():
    whole, part = network_of(), network_of(stages=_stages(depth=1, embed_dim=8, num_heads=1))
    elastic = unlike_fresh(Elastic(envelope_around([whole, part]))).train()
    own, taught = elastic(images(whole), skeleton(part).train())
    (own.square().sum() + taught.square().sum()).backward()
    reached = {name: p.grad for name, p in elastic.named_parameters() if p.grad is not None}
    assert not any(name.startswith("stages.0.blocks.1") for name in reached)
    grad = reached["stages.0.blocks.0.attention.projection.linear.weight"]
    assert grad[:8, :16].ne(0).all() and grad[8:].eq(0).all() and grad[:, 16:].eq(0).all()


def test_a_network_of_another_space_is_refused():
    elastic = Elastic(envelope_around([network_of()]))
    for other in (
        network_of(stages=_stages(depth=3)),
        network_of(stages=_stages(num_heads=4)),
        network_of(stem={"kind": "conv", "layers": 1}),
        network_of(activation="gelu"),
        network_of(stages=described()["stages"][:1], shrinks=[]),
    ):
        with pytest.raises(InputError, match="is no network of the supernet's space"):
            elastic.extract(other)


@pytest.mark.parametrize("name", SPACES)
def test_extremes_are_the_ends_by_flops_with_each_stem(name):
    space = space_of(SPACES[name])
    envelope = envelope_of(space)
    extremes = extremes_of(space, envelope)
    assert extremes.keys() == envelope.networks.keys()
    by_stem: dict[str, list[int]] = {}
    for network in drawn(space, 200):
        by_stem.setdefault(stem_name(network), []).append(cost(network).flops)
    for stem, flops in by_stem.items():
        largest, smallest = (cost(network).flops for network in extremes[stem])
        assert largest >= max(flops) and smallest <= min(flops)


def test_the_largest_keeps_the_limits_and_a_stem_that_cannot_is_left_out():
    limit = 600_000
    space = space_of(template(), flops=limit)
    largest = extremes_of(space, envelope_of(space))["conv2"].largest
    assert cost(largest).flops <= limit
    values = space.encode(largest)
    assert values is not None
    for slot in space.slots:  # nothing can be raised by itself
        for value in slot.values:
            try:
                other = cost(space.decode({**values, slot.name: value})).flops
            except InputError:
                continue
            stems = {stem_name(largest), stem_name(space.decode({**values, slot.name: value}))}
            assert other <= cost(largest).flops or other > limit or len(stems) > 1
    narrow = space_of(template(), flops=50_000)
    assert set(extremes_of(narrow, envelope_of(narrow))) == {"conv2"}


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"norm": {"choices": ["batch", "layer"]}}, "architecture.norm"),
        ({"activation": {"choices": ["gelu", "hardswish"]}}, "architecture.activation"),
        ({"image_size": {"choices": [16, 32]}}, "architecture.image_size"),
        ({"distillation": {"choices": [True, False]}}, "architecture.distillation"),
        ({"shrinks": [{"stride": {"choices": [2, 3]}}, {}]}, "architecture.shrinks.0.stride"),
    ],
)
def test_what_weights_cannot_be_shared_over_is_named(changes, key):
    with pytest.raises(InputError, match=f"{key}: varies .* cannot be shared over it; give it one"):
        envelope_of(space_of(template(**changes)))


def test_position_embeddings_need_one_number_of_tokens():
    with pytest.raises(InputError, match="stem: varies the number of tokens"):
        envelope_of(space_of(template(position="embedding")))


def test_stems_are_named_by_all_but_their_widths_in_the_supernet():
    assert envelope_of(space_of(SPACES["stems of several kinds"])).networks.keys() == {
        "conv1",
        "conv2",
        "patch4",
        *("resnet18-stages1-x0_25", "resnet18-stages1-x0_5"),
        *("resnet18-stages1-small-x0_25", "resnet18-stages1-small-x0_5"),
    }


def test_a_resnet_cut_inside_a_block_shares_no_weights_beside_other_stems():
    stems = {"kind": {"choices": ["conv", "resnet18"]}, "layers": 2}
    with pytest.raises(InputError, match="cut it after a block"):
        envelope_of(space_of(template(stem=stems)))


def test_a_space_with_grafts_beside_levits_has_no_supernet():
    grafts = {
        "family": {"choices": ["levit", "graft"]},
        "donor": {"name": "resnet18", "stages": 1, "stem": "small"},
        "trunk": {"depth": {"choices": [0, 1]}},
    }
    with pytest.raises(InputError, match="of the family levit, not grafts"):
        envelope_of(space_of(template(**grafts)))


def test_grafts_share_no_weights(root):
    space = read_config(root / "spaces" / "grafting.yaml", {"data.name": "digits"}).space()
    with pytest.raises(InputError, match="of the family levit, not grafts"):
        envelope_of(space)


@pytest.fixture
def root() -> Path:
    return Path(__file__).parents[1]


# --- accuracy and training


@pytest.fixture(scope="module")
def digits() -> Batches:
    return open_batches(DataConfig(name="digits", image_size=16, train_images=256))


RECIPE = Recipe(epochs=2, batch_size=64, lr=5e-3, threads=1, device="cpu")


def test_calibration_takes_the_mean_statistics_of_the_views():
    network = network_of()
    model = LevitModel(network)
    views = [images(network, 8), images(network, 8) + 1]
    calibrate(model, views)
    calibrate(model, views)  # what was known before does not count
    norm, conv = model.stem.convs[0].norm, model.stem.convs[0].conv
    outputs = [conv(each).transpose(0, 1).flatten(1) for each in views]
    means = torch.stack([each.mean(1) for each in outputs]).mean(0)
    variances = torch.stack([each.var(1) for each in outputs]).mean(0)
    torch.testing.assert_close(norm.running_mean, means)
    torch.testing.assert_close(norm.running_var, variances)
    assert norm.momentum == 0.1
    assert not model.training and not norm.training


def test_calibration_sees_as_many_training_views_as_asked_for(digits):
    config = SupernetConfig(calibration_images=100)
    inheritance = Inheritance(digits, RECIPE, config, 0)
    views = inheritance._views()
    assert [len(each) for each in views] == [64, 36]
    first = next(iter(digits.train(0, 0, RECIPE, CPU)))
    assert torch.equal(views[0], first.images)


def test_val_may_be_looked_at_in_part(digits):
    whole = list(digits.evaluation("val", 64, CPU))
    part = list(digits.evaluation("val", 64, CPU, 30))
    every = torch.arange(30) * digits.size("val") // 30
    assert torch.equal(torch.cat([i for i, _ in part]), torch.cat([i for i, _ in whole])[every])
    assert torch.equal(torch.cat([t for _, t in part]), torch.cat([t for _, t in whole])[every])
    assert sum(len(t) for _, t in digits.evaluation("val", 64, CPU, 10**6)) == digits.size("val")


def sandwich(space: Space, batches: Batches, recipe: Recipe = RECIPE) -> tuple[Elastic, Sandwich]:
    envelope = envelope_of(space)
    seed_torch(0, 3)
    elastic = Elastic(envelope)
    config = SupernetConfig(calibration_images=64, val_images=100)
    inheritance = Inheritance(batches, recipe, config, 0)
    objective = Sandwich(
        elastic,
        extremes_of(space, envelope),
        lambda chance, stem: draw_within(space, chance, stem),
        2,
        0,
        recipe,
        0,
        inheritance.top1_percent,
    )
    return elastic, objective


def test_a_supernet_learns_and_each_point_has_both_ends(digits):
    space = space_of({**IMAGES, **tiny_space()["architecture"]})
    recipe = RECIPE.model_copy(update={"epochs": 4, "batch_size": 16})
    elastic, objective = sandwich(space, digits, recipe)
    training = fit(elastic, digits, recipe, 0, objective=objective)
    last = training.curve[-1]
    assert isinstance(last, SupernetEpoch)
    assert training.val_top1_percent > 30 and last.smallest_top1_percent > 20


def test_training_that_is_taken_up_again_gives_the_same_weights(digits, tmp_path):
    space = space_of({**IMAGES, **tiny_space()["architecture"]})
    whole, objective = sandwich(space, digits)
    curve = fit(whole, digits, RECIPE, 0, objective=objective).curve
    part, objective = sandwich(space, digits)
    checkpoint = Checkpoint(tmp_path / "training.pt", "run")
    fit(part, digits, RECIPE, 0, checkpoint=checkpoint, until=1, objective=objective)
    again, objective = sandwich(space, digits)
    found = fit(again, digits, RECIPE, 0, checkpoint=checkpoint, objective=objective).curve
    assert all(
        torch.equal(a, b) for a, b in zip(whole.parameters(), again.parameters(), strict=True)
    )
    assert [(e.val_top1_percent, e.smallest_top1_percent) for e in found] == [
        (e.val_top1_percent, e.smallest_top1_percent) for e in curve
    ]


def test_the_members_of_a_batch_have_its_stem_and_all_of_them_learn(digits, monkeypatch):
    space = space_of(template())
    elastic, objective = sandwich(space, digits)
    seen: list[Levit] = []
    forward = Elastic.forward

    def watched(self: Elastic, views: Tensor, member: LevitModel) -> Any:
        seen.append(member.architecture)
        return forward(self, views, member)

    monkeypatch.setattr(Elastic, "forward", watched)
    fit(elastic, digits, RECIPE, 0, objective=objective, until=1)
    assert len(seen) == 4 * digits.steps(RECIPE)
    for step in range(digits.steps(RECIPE)):
        batch = seen[4 * step : 4 * step + 4]
        stem = ("conv1", "conv2")[step % 2]
        assert {stem_name(network) for network in batch} == {stem}
        assert batch[0].id == extremes_of(space, elastic.envelope)[stem].largest.id
        assert batch[1].id == extremes_of(space, elastic.envelope)[stem].smallest.id


# --- the supernet of a study


def inheriting(**sections: Any) -> dict[str, Any]:
    return tiny_space(
        **{
            "accuracy": "supernet",
            "supernet": {"epochs": 2, "calibration_images": 64, "val_images": 100, "rivals": 1},
            **sections,
        }
    )


def study_of(folder: Path, **sections: Any) -> Study:
    path = folder.parent / f"{folder.name}.yaml"
    path.write_text(yaml.safe_dump(inheriting(**sections)))
    return Study.create(folder, read_config(path), ["test"])


def obtained(study: Study) -> Any:
    batches = open_batches(study.config.data)
    return obtain_supernet(study.config, batches, lambda: None, study.folder)


def test_a_supernet_is_trained_once_and_kept_with_its_card(tmp_path, monkeypatch):
    study = study_of(tmp_path / "study")
    made = obtained(study)
    folder = supernet_folder(study.folder)
    assert sorted(path.name for path in folder.iterdir()) == ["card.json", "weights.safetensors"]
    card = read_card(folder)
    assert card == made.card and len(card["curve"]) == card["epochs"] == 2
    assert card["largest"]["flops"] > card["smallest"]["flops"]
    network = draw_within(study.config.space(), np.random.default_rng(3))
    monkeypatch.setattr("levit_search.supernet.keeping.fit", None)
    again = obtained(study)
    assert again.top1_percent(network) == made.top1_percent(network)
    views = images(network)
    assert torch.equal(again.extracted(network)(views), made.extracted(network)(views))


def test_a_supernet_that_was_interrupted_goes_on(tmp_path, monkeypatch):
    whole = obtained(study_of(tmp_path / "whole"))
    study = study_of(tmp_path / "study")
    from levit_search.supernet import keeping

    def interrupted(*arguments: Any, **named: Any) -> Any:
        fit(*arguments, **named, until=1)
        raise KeyboardInterrupt

    monkeypatch.setattr(keeping, "fit", interrupted)
    with pytest.raises(KeyboardInterrupt):
        obtained(study)
    assert (supernet_folder(study.folder) / "training.pt").exists()
    monkeypatch.setattr(keeping, "fit", fit)
    found = obtained(study)
    assert not (supernet_folder(study.folder) / "training.pt").exists()
    pairs = zip(whole.elastic.parameters(), found.elastic.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


def test_the_supernet_of_other_data_another_space_or_recipe_is_refused(tmp_path):
    study = study_of(tmp_path / "study")
    obtained(study)
    space = tiny_space()["architecture"]
    wider = {**space, "stages": [{**space["stages"][0], "depth": 2}, space["stages"][1]]}
    for sections, told in (
        ({"data": {"name": "digits", "image_size": 16, "train_images": 128}}, "of other data"),
        ({"architecture": wider}, "of another space"),
        ({"train": {**tiny_space()["train"], "lr": 1e-3}}, "of other settings"),
    ):
        other = study_of(tmp_path / "other", **sections)
        target = supernet_folder(other.folder)
        supernet_folder(study.folder).rename(target)
        with pytest.raises(InputError, match=told):
            obtained(other)
        target.rename(supernet_folder(study.folder))
        for path in sorted(other.folder.rglob("*"), reverse=True):
            path.rmdir() if path.is_dir() else path.unlink()
        other.folder.rmdir()


def test_another_studys_supernet_may_be_taken_if_it_fits(tmp_path):
    source = study_of(tmp_path / "source")
    made = obtained(source)
    taken = {**inheriting()["supernet"], "weights": str(source.folder)}
    limited = study_of(tmp_path / "limited", supernet=taken, limits={"flops": "300k"})
    found = obtained(limited)
    assert found.card["taken_from"] == str(source.folder)
    network = draw_within(limited.config.space(), np.random.default_rng(3))
    assert found.top1_percent(network) == made.top1_percent(network)
    other = {"name": "digits", "image_size": 16, "train_images": 128}
    with pytest.raises(InputError, match="of other data"):
        obtained(study_of(tmp_path / "other", supernet=taken, data=other))
    nothing = {**taken, "weights": str(tmp_path)}
    with pytest.raises(InputError, match="holds no supernet; expected train, or the folder of a"):
        obtained(study_of(tmp_path / "nothing", supernet=nothing))


@pytest.mark.parametrize("name", ["card.json", "weights.safetensors"])
def test_a_damaged_supernet_is_named_and_not_used(name, tmp_path):
    study = study_of(tmp_path / "study")
    obtained(study)
    file = supernet_folder(study.folder) / name
    raw = bytearray(file.read_bytes())
    raw[len(raw) // 2] ^= 0x55
    file.write_bytes(raw)
    with pytest.raises(InputError, match=name):
        obtained(study)
    (found,) = [each for each in doctor_study(study.folder) if each.name == "supernet"]
    assert found.status == "fail" and "trains it again" in str(found)


def test_the_doctor_tells_of_a_supernet(tmp_path):
    study = study_of(tmp_path / "study")

    def told() -> str:
        return str(next(each for each in doctor_study(study.folder) if each.name == "supernet"))

    assert "is not trained yet" in told()
    obtained(study)
    assert "2 epochs; they are whole" in told()


# --- searches


def searched(study: Study, engine: Any = HereEngine) -> Any:
    return search(study, engine=engine)


def test_a_search_ends_with_figures_of_networks_that_stand_alone(tmp_path):
    study = study_of(tmp_path / "study", search={"trials": 8, "sampler": "random"})
    summary = searched(study)
    records = study.records()
    verified = [r for r in records if "verified" in r.evaluation and r.reused_from is None]
    inherited = [r for r in records if r.is_inherited and r.is_candidate]
    front = table.front(records, study.config.objectives)
    assert summary.front == front and front
    assert all(r.seconds > r.evaluation["seconds"] for r in front)
    assert verified and inherited, "this seed has networks that are not worth verifying"
    for record in front:
        assert (
            record.evaluation["training"]["curve"][-1]["val_top1_percent"]
            == (record.values["top1_percent"])
        )
        assert record.values["top1_inherited_percent"] != record.values["top1_percent"]
        assert record.architecture is not None
        weights = study.weights(record.architecture.id)
        load_weights(LevitModel(record.architecture), weights)
    assert {r.trial for r in verified} == {
        r.trial for r in worth_verifying(records, study.config.objectives, 1)
    }
    text = table.markdown(front, study.config.objectives)
    assert "| top-1 % | MFLOPs | inherited % |" in text
    assert not list(study.checkpoints.glob("*.training.pt"))


def test_the_front_is_that_of_a_search_that_trains_the_same_networks(tmp_path):
    study = study_of(tmp_path / "study", search={"trials": 8, "sampler": "random"})
    searched(study)
    trained = tiny_space(search={"trials": 8, "sampler": "random"})
    (tmp_path / "trained.yaml").write_text(yaml.safe_dump(trained))
    alone = Study.create(tmp_path / "alone", read_config(tmp_path / "trained.yaml"), ["test"])
    searched(alone)
    own = {r.architecture.id: r.values["top1_percent"] for r in alone.records() if r.is_evaluated}
    for record in study.records():
        if "verified" in record.evaluation and record.reused_from is None:
            assert record.values["top1_percent"] == own[record.architecture.id]


class Inheriting(StubEngine):
    """Inherited accuracies are too low by a few points; those of trained networks are true."""

    verified: list[str]
    failing: frozenset[str] = frozenset()
    ends_after: int | None = None

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.verified = type(self).verified = []

    @staticmethod
    def true(network: Levit) -> float:
        return 60 + int(network.id[:4], 16) / 65536 * 30

    @classmethod
    def inherited(cls, network: Levit) -> float:
        return cls.true(network) - 5 - int(network.id[4], 16) / 5

    def submit(self, trial: int, network: Any, taught: bool = True) -> None:
        super().submit(trial, network)
        found = self.inherited(network)
        self._events[-1].content["values"] = {
            "top1_percent": found,
            "top1_inherited_percent": found,
        }

    def verify(self, trial: int, network: Any) -> None:
        from levit_search.engine.interface import Event

        if self.ends_after is not None and len(self.verified) == self.ends_after:
            raise KeyboardInterrupt
        self.verified.append(network.id)
        self._busy = True
        if network.id in self.failing:
            self._events.append(Event("failed", trial, "no luck today"))
            return
        accuracy = self.true(network)
        training = {"curve": [{"epoch": 1, "val_top1_percent": accuracy}]}
        content = {
            "values": {"top1_percent": accuracy},
            "latency": None,
            "training": training,
            "seconds": 2.0,
        }
        self._events.append(Event("done", trial, content=content))


STUBBED: dict[str, Any] = {"search": {"trials": 14, "sampler": "random"}}


def test_a_kill_while_networks_are_verified_loses_none_of_them(tmp_path):
    whole = study_of(tmp_path / "whole", **STUBBED)
    summary = searched(whole, Inheriting)
    wanted = Inheriting.verified

    class Ending(Inheriting):
        ends_after = 2

    study = study_of(tmp_path / "study", **STUBBED)
    with pytest.raises(KeyboardInterrupt):
        searched(study, Ending)
    first = Ending.verified
    interim = table.front(study.records(), study.config.objectives)
    assert interim and all("verified" in record.evaluation for record in interim)
    again = searched(study, Inheriting)
    assert Inheriting.evaluated == []
    assert first + Inheriting.verified == wanted
    assert [r.values for r in again.front] == [r.values for r in summary.front]


def test_a_longer_search_proposes_as_if_it_had_not_been_verified_in_between(tmp_path):
    search_for = {"trials": 14, "sampler": "tpe", "startup_trials": 3}
    whole = study_of(tmp_path / "whole", search=search_for)
    searched(whole, Inheriting)
    study = study_of(tmp_path / "study", search={**search_for, "trials": 7})
    searched(study, Inheriting)
    longer = study_of(tmp_path / "study", search=search_for)
    searched(longer, Inheriting)
    ids = [[r.architecture.id for r in s.records() if r.architecture] for s in (whole, longer)]
    assert ids[0] == ids[1]


def test_a_network_that_cannot_be_trained_leaves_and_several_end_the_search(tmp_path):
    study = study_of(tmp_path / "study", **STUBBED)
    searched(study, Inheriting)
    wanted = Inheriting.verified

    class Unlucky(Inheriting):
        failing = frozenset(wanted[:1])

    other = study_of(tmp_path / "other", **STUBBED)
    summary = searched(other, Unlucky)
    failed = [r for r in other.records() if r.state == "failed"]
    assert {r.architecture.id for r in failed} == {wanted[0]}
    assert {r.reason for r in failed} == {"no luck today"}
    assert wanted[0] not in {r.architecture.id for r in summary.front}

    class Hopeless(Inheriting):
        failing = frozenset(record.architecture.id for record in study.records())

    third = study_of(tmp_path / "third", **STUBBED)
    with pytest.raises(BudgetError, match="networks on the front could not be verified, the last"):
        searched(third, Hopeless)
    assert not [r for r in third.records() if r.state == "failed"]
    assert searched(third, Inheriting).front


def record(trial: int, inherited: float, flops: float, own: float | None = None) -> Record:
    values = {"top1_percent": inherited if own is None else own, "flops": flops}
    return Record(
        trial=trial,
        state="complete",
        architecture=None,
        values={**values, "top1_inherited_percent": inherited},
        reason=None,
        reused_from=None,
        seconds=1.0,
        evaluation={} if own is None else {"verified": True},
    )


def test_rivals_are_those_that_miss_the_front_by_least_whatever_was_verified():
    objectives = ("top1_percent", "flops")
    records = [
        record(0, 80, 1.0),
        record(1, 84, 2.0),
        record(2, 79.5, 1.5),  # 0.5 below trial 0
        record(3, 83.8, 2.5),  # 0.2 below trial 1
        record(4, 70, 3.0),
    ]
    found = [r.trial for r in worth_verifying(records, objectives, 2)]
    assert found == [0, 1, 3, 2]
    records[1] = record(1, 84, 2.0, own=60)
    records[4] = record(4, 70, 3.0, own=99)
    assert [r.trial for r in worth_verifying(records, objectives, 2)] == found
    assert [r.trial for r in worth_verifying(records, objectives, 0)] == [0, 1]
    estimates = minimised([r.estimates for r in records], objectives)
    assert list(np.flatnonzero(non_dominated(estimates))) == [0, 1]
    assert [r.trial for r in table.front(records, objectives)] == [1, 4]


def test_finetuned_slices_are_trained_for_their_own_epochs_and_lose_nothing(tmp_path):
    tuned = {**inheriting()["supernet"], "verification": "finetune", "finetune_epochs": 1}
    train = {**tiny_space()["train"], "epochs": 3}
    study = study_of(tmp_path / "study", supernet=tuned, train=train)
    searched(study)
    verified = [r for r in study.records() if "verified" in r.evaluation]
    assert verified
    for each in verified:
        assert len(each.evaluation["training"]["curve"]) == 1


def test_latencies_are_predicted_unless_something_else_is_said(space_file):
    timed = {"accuracy": "supernet", "objectives": ["top1_percent", "latency_ms"]}

    def method(**sections: Any) -> str:
        return read_config(space_file(**{**timed, **sections})).latency.method

    assert method() == "predicted"
    assert method(accuracy="trained") == "measured"
    assert method(latency={"method": "measured"}) == "measured"
    assert method(latency="measured") == "measured"
    assert method(latency={"layout": "fastest"}) == "measured"
    assert method(latency={"runtime": "torch"}) == "measured"
    assert method(objectives=["top1_percent", "latency_ms", "latency_p95_ms"]) == "measured"
    assert method(objectives=["top1_percent", "flops"]) == "measured"


def test_settings_that_contradict_each_other_are_refused(space_file):
    with pytest.raises(InputError, match="accuracy: supernet needs top1_percent"):
        read_config(space_file(accuracy="supernet", objectives=["params", "flops"]))


def test_no_trials_are_taken_from_a_study_whose_accuracies_are_inherited(tmp_path):
    from levit_search.search.warm_start import check_source

    source, here = (study_of(tmp_path / name) for name in ("source", "here"))
    with pytest.raises(InputError, match=r"accuracies inherited from its supernet.*weights takes"):
        check_source(source.folder, here)


# --- the command line


def test_a_supernet_from_the_command_line_serves_the_search_after_it(tmp_path, cli):
    space = tmp_path / "space.yaml"
    space.write_text(yaml.safe_dump(inheriting()))
    made = cli("supernet", space, "--study", "s", "--json")
    assert made.returncode == 0, made.stderr
    card = json.loads(made.stdout)
    assert card["epochs"] == 2 and {"largest", "smallest", "seconds", "dir"} <= card.keys()
    assert "epoch 2 of 2, val of its largest" in made.stderr and "smallest" in made.stderr
    weights = (tmp_path / "s" / "supernet" / "weights.safetensors").read_bytes()
    again = cli("supernet", space, "--study", "s")
    assert again.returncode == 0
    assert "--set accuracy=supernet --trials 1000" in again.stdout
    assert (tmp_path / "s" / "supernet" / "weights.safetensors").read_bytes() == weights


def test_a_space_that_shares_no_weights_leaves_no_folder(tmp_path, cli):
    space = tmp_path / "space.yaml"
    changed = {**tiny_space()["architecture"], "norm": {"choices": ["batch", "layer"]}}
    space.write_text(yaml.safe_dump(inheriting(architecture=changed)))
    for command in ("supernet", "run"):
        refused = cli(command, space, "--study", "s")
        assert refused.returncode == 2
        assert "architecture.norm: varies (batch, layer)" in refused.stderr
        assert not (tmp_path / "s").exists()


def test_finetuned_candidates_start_from_their_slice(tmp_path: Path) -> None:
    """They are better than fresh ones after as many steps, and no front is trained in the end."""
    found = {}
    for accuracy in ("finetuned", "trained"):
        path = tmp_path / f"{accuracy}.yaml"
        described = tiny_space(accuracy=accuracy, supernet={"epochs": 12})
        path.write_text(yaml.safe_dump(described))
        study = Study.create(tmp_path / accuracy, read_config(path), [])
        searched(study)
        records = [r for r in study.records() if "top1_percent" in r.values]
        found[accuracy] = np.mean([record.values["top1_percent"] for record in records])
        starts = {(r.evaluation["training"] or {}).get("started_from") for r in records}
        assert (None in starts) == (accuracy == "trained")
        assert not any("training" in v for k, v in study.attributes().items() if "verified" in k)
        assert {len(r.evaluation["training"]["curve"]) for r in records} == {1}
    assert (tmp_path / "finetuned" / "supernet" / "card.json").is_file()
    assert found["finetuned"] > found["trained"] + 10


def test_finetuning_goes_by_the_supernet_s_part_of_the_recipe() -> None:
    config = _configured(accuracy="finetuned", supernet={"finetune_epochs": 2})
    recipe = config.candidate_recipe
    assert recipe.epochs == 2
    assert recipe.lr == pytest.approx(config.train.lr / 3)
    assert config.train.epochs == 1


def _configured(**sections: Any) -> StudyConfig:
    return validated(StudyConfig, tiny_space(**sections), "space")
