"""Fitting one network: that it learns, repeats itself, fails loudly and decays what it should."""

import math
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from levit_search.architecture import Levit, parse
from levit_search.batches import Batch, Batches, open_batches
from levit_search.data import DataConfig, SplitName
from levit_search.errors import InputError, TrialError
from levit_search.model import LevitModel
from levit_search.recipe import Recipe
from levit_search.train import Epoch, Training, fit, seed_torch, top1_percent, train_network
from tests.networks import tiny_description

RECIPE = Recipe(epochs=3, batch_size=32, lr=5e-3, warmup_epochs=0.5, threads=1, device="cpu")
SHORT = RECIPE.model_copy(update={"epochs": 2})


@pytest.fixture(scope="module")
def digits() -> Batches:
    return open_batches(DataConfig(image_size=16))


@pytest.fixture(scope="module")
def few_digits() -> Batches:
    return open_batches(DataConfig(image_size=16, train_images=160))


def network(**changes: object) -> Levit:
    two_stages = {
        "stem": {"kind": "conv", "channels": [16, 32]},
        "stages": [
            {"depth": 1, "embed_dim": 32, "num_heads": 2, "key_dim": 8},
            {"depth": 1, "embed_dim": 48, "num_heads": 2, "key_dim": 8},
        ],
    }
    return parse(tiny_description(**{**two_stages, **changes}))


def fresh(seed: int = 0, **changes: object) -> LevitModel:
    seed_torch(seed)
    return LevitModel(network(**changes))


def curve_of(training: Training) -> list[tuple[float, float]]:
    return [(epoch.train_loss, epoch.val_top1_percent) for epoch in training.curve]


def test_a_tiny_network_learns_digits_and_tells_of_each_epoch(digits):
    model = fresh()
    before = top1_percent(model, digits, "val")
    told: list[Epoch] = []
    training = fit(model, digits, RECIPE, seed=0, report=told.append)
    assert before < 30
    assert training.val_top1_percent > 60
    assert training.curve == tuple(told)
    assert [epoch.epoch for epoch in told] == [1, 2, 3]
    assert told[-1].train_loss < told[0].train_loss
    assert training.val_top1_percent == told[-1].val_top1_percent
    assert training.val_top1_percent == top1_percent(model, digits, "val")


class FirstPixel(nn.Module):
    """Says class 1 where the first pixel is bright and class 0 elsewhere."""

    def __init__(self) -> None:
        super().__init__()
        self.unused = nn.Parameter(torch.zeros(1))

    def forward(self, images: Tensor) -> Tensor:
        bright = (images[:, 0, 0, 0] > 0).float()
        return torch.stack([1 - bright, bright], dim=1)


class FourImages:
    """Only ``evaluation``: four images of which ``FirstPixel`` takes three for what they are."""

    def size(self, split: SplitName) -> int:
        return 4

    def evaluation(
        self, split: SplitName, batch_size: int, device: torch.device, most: int | None = None
    ) -> Iterator[tuple[Tensor, Tensor]]:
        images = torch.tensor([-1.0, 1.0, 1.0, -1.0]).reshape(4, 1, 1, 1)
        yield from zip(images.split(3), torch.tensor([0, 1, 0, 0]).split(3), strict=True)


def test_top1_is_the_share_of_right_answers_over_all_batches():
    assert top1_percent(FirstPixel(), FourImages(), "val") == 75


def test_a_seed_repeats_the_whole_run_bit_by_bit_and_another_does_not(few_digits):
    recipe = SHORT.model_copy(update={"mixup": 0.8, "cutmix": 1.0})
    runs = []
    for global_seed, seed in ((1, 0), (2, 0), (1, 7)):
        model = fresh(drop_path=0.2)
        torch.manual_seed(global_seed)
        np.random.seed(global_seed)
        curve = curve_of(fit(model, few_digits, recipe, seed))
        runs.append((curve, model.state_dict()))
    (curve, weights), (curve_again, weights_again), (other_curve, _) = runs
    assert curve == curve_again
    assert all(torch.equal(weights[name], weights_again[name]) for name in weights)
    assert all(a[0] != b[0] for a, b in zip(curve, other_curve, strict=True))


class BreaksAt(nn.Module):
    """A linear classifier that answers ``answer`` from a training step on."""

    def __init__(self, step: int, answer: float) -> None:
        super().__init__()
        self.linear = nn.Linear(16 * 16, 10)
        self.step, self.answer, self.seen = step, answer, 0

    def forward(self, images: Tensor) -> Tensor:
        logits = self.linear(images.flatten(1))
        if self.training:
            self.seen += 1
            if self.seen >= self.step:
                logits = logits * self.answer
        return logits


@pytest.mark.parametrize("answer", [math.nan, math.inf])
@pytest.mark.parametrize(("step", "epoch"), [(1, 1), (5, 1), (6, 2)])
def test_a_loss_that_is_no_number_fails_the_trial_and_names_the_epoch(
    step, epoch, answer, few_digits
):
    told: list[Epoch] = []
    with pytest.raises(TrialError, match=f"epoch {epoch};"):
        fit(BreaksAt(step, answer), few_digits, RECIPE, seed=0, report=told.append)
    assert len(told) == epoch - 1


def test_a_network_of_nans_fails_the_trial(few_digits):
    model = fresh()
    with torch.no_grad():
        model.stem.convs[0].conv.weight.fill_(math.nan)
    with pytest.raises(TrialError, match="nan in epoch 1"):
        fit(model, few_digits, RECIPE, seed=0)


def test_mixup_and_cutmix_change_what_is_learnt(few_digits):
    losses = set()
    for mixup, cutmix in ((0.0, 0.0), (0.8, 0.0), (0.0, 1.0), (0.8, 1.0)):
        recipe = SHORT.model_copy(update={"mixup": mixup, "cutmix": cutmix})
        training = fit(fresh(), few_digits, recipe, seed=0)
        assert all(math.isfinite(epoch.train_loss) for epoch in training.curve)
        losses.add(training.curve[0].train_loss)
    assert len(losses) == 4


@pytest.mark.parametrize("batch_size", [160, 500])
def test_one_batch_an_epoch_is_enough(batch_size, few_digits):
    recipe = SHORT.model_copy(update={"batch_size": batch_size, "warmup_epochs": 5.0})
    training = fit(fresh(), few_digits, recipe, seed=0)
    assert len(training.curve) == 2
    assert training.images_per_second == pytest.approx(2 * 160 / training.seconds)


@pytest.fixture
def optimizers(monkeypatch: pytest.MonkeyPatch) -> list[torch.optim.Optimizer]:
    """Every optimizer that ``fit`` makes."""
    import timm.optim

    made = []
    create = timm.optim.create_optimizer_v2

    def spy(*args: object, **options: object) -> torch.optim.Optimizer:
        made.append(create(*args, **options))
        return made[-1]

    monkeypatch.setattr(timm.optim, "create_optimizer_v2", spy)
    return made


@pytest.mark.parametrize("changes", [{}, {"position": "embedding", "norm": "layer"}])
def test_biases_norms_and_positions_are_not_decayed(changes, few_digits, optimizers):
    model = fresh(**changes)
    recipe = RECIPE.model_copy(update={"epochs": 1, "batch_size": 160, "weight_decay": 0.1})
    fit(model, few_digits, recipe, seed=0)
    names = {parameter: name for name, parameter in model.named_parameters()}
    decays = {
        names[parameter]: group["weight_decay"]
        for group in optimizers[0].param_groups
        for parameter in group["params"]
    }
    assert decays.keys() == set(names.values())
    spared = ("bias", "attention_bias", "norm.weight", "position_embedding")
    assert decays == {name: 0.0 if name.endswith(spared) else 0.1 for name in decays}
    assert {0.0, 0.1} == set(decays.values())


@pytest.mark.parametrize("warmup_epochs", [0, 1, 2])
def test_the_learning_rate_warms_up_and_falls_to_its_minimum(
    warmup_epochs, few_digits, optimizers, monkeypatch
):
    rates: list[float] = []
    step = torch.optim.AdamW.step

    def recorded(self: torch.optim.AdamW, *args: object) -> object:
        rates.append(self.param_groups[0]["lr"])
        return step(self, *args)

    monkeypatch.setattr(torch.optim.AdamW, "step", recorded)
    recipe = RECIPE.model_copy(
        update={"epochs": 4, "warmup_epochs": warmup_epochs, "batch_size": 16, "min_lr": 1e-4}
    )
    fit(fresh(), few_digits, recipe, seed=0)
    assert len(rates) == 40
    warmup = warmup_epochs * 10
    assert rates[warmup] == pytest.approx(recipe.lr)
    if warmup:
        assert rates[0] == pytest.approx(recipe.warmup_lr)
        assert np.allclose(np.diff(rates[: warmup + 1]), (recipe.lr - recipe.warmup_lr) / warmup)
    assert (np.diff(rates[warmup:]) < 0).all()
    # The last step is one short of the cosine's end.
    assert recipe.min_lr <= rates[-1] < recipe.min_lr + 0.01 * recipe.lr


def test_asking_for_a_gpu_where_there_is_none_is_an_input_error(few_digits, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    recipe = RECIPE.model_copy(update={"device": "cuda"})
    with pytest.raises(InputError, match="cuda"):
        fit(fresh(), few_digits, recipe, seed=0)


def never_asked(seed: int, epoch: int, step: int, images: Tensor) -> Tensor:
    raise AssertionError("this teacher is not to be asked")


def test_a_seed_gives_the_weights_and_one_head_needs_no_teacher(few_digits):
    described = network(distillation=False)
    trained = []
    for global_seed, seed in ((1, 0), (2, 0), (1, 7)):
        torch.manual_seed(global_seed)
        model, training = train_network(described, few_digits, SHORT, seed, never_asked)
        assert training.val_top1_percent == top1_percent(model, few_digits, "val")
        trained.append(model.state_dict())
    first, again, other = trained
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["head.linear.weight"], other["head.linear.weight"])
    with pytest.raises(AssertionError, match="not to be asked"):
        train_network(network(), few_digits, SHORT, 0, never_asked)


class WithoutTest:
    """Batches whose test split nobody may read."""

    def __init__(self, batches: Batches) -> None:
        self.batches, self.info = batches, batches.info
        self.steps, self.batch_size = batches.steps, batches.batch_size
        self.evaluated: list[str] = []

    def size(self, split: SplitName) -> int:
        assert split != "test"
        return self.batches.size(split)

    def train(self, seed: int, epoch: int, recipe: Recipe, device: torch.device) -> Iterator[Batch]:
        return self.batches.train(seed, epoch, recipe, device)

    def evaluation(
        self, split: SplitName, batch_size: int, device: torch.device, most: int | None = None
    ) -> Iterator[tuple[Tensor, Tensor]]:
        self.evaluated.append(split)
        return self.batches.evaluation(split, batch_size, device, most)


def test_fitting_looks_at_val_after_each_epoch_and_never_at_test(few_digits):
    watched = WithoutTest(few_digits)
    fit(fresh(), watched, SHORT, seed=0)
    assert watched.evaluated == ["val", "val"]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU; torch sees none")
def test_a_tiny_network_learns_digits_on_a_gpu(digits):
    model = fresh()
    training = fit(model, digits, RECIPE.model_copy(update={"device": "cuda"}), seed=0)
    assert next(model.parameters()).device.type == "cuda"
    assert training.val_top1_percent > 60
