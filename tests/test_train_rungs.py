"""Training that stops and goes on, that is given up, and that does not fit into memory."""

import math

import pytest
import torch
from torch import Tensor, nn

from levit_search.batches import Batches, open_batches
from levit_search.data import DataConfig
from levit_search.errors import InputError, TrialError
from levit_search.model import LevitModel
from levit_search.recipe import Recipe
from levit_search.train import Checkpoint, Epoch, Training, fit, fitting, seed_torch, training_id
from tests.test_train import curve_of, fresh, network

PLAIN = Recipe(epochs=4, batch_size=32, lr=5e-3, threads=1, device="cpu")
# All whose state a checkpoint has to hold.
WHOLE = Recipe(
    recipe="levit", epochs=4, batch_size=32, lr_batch_size=None, lr=5e-3, warmup_epochs=1.5,
    repeated_augmentation=2, device="cpu",
)  # fmt: skip


@pytest.fixture(scope="module")
def digits() -> Batches:
    return open_batches(DataConfig(image_size=16, train_images=160))


@pytest.fixture(scope="module")
def whole(digits: Batches) -> Training:
    """A run of the plain recipe that nothing disturbed."""
    return fit(fresh(), digits, PLAIN, 0)


def weights_of(model: nn.Module) -> list[Tensor]:
    return list(model.state_dict().values())


@pytest.mark.parametrize("recipe", [PLAIN, WHOLE], ids=["short", "levit"])
@pytest.mark.parametrize("stops", [(1, 2, 3), pytest.param((1,), marks=pytest.mark.slow)])
def test_a_run_that_stops_and_goes_on_equals_one_that_did_not(recipe, stops, digits, tmp_path):
    through = fresh(drop_path=0.2)
    whole = fit(through, digits, recipe, seed=3)
    checkpoint = Checkpoint(tmp_path / "training.pt", "run")
    told: list[Epoch] = []
    for session, until in enumerate((*stops, None)):
        model = fresh(seed=session, drop_path=0.2)
        torch.manual_seed(session)
        parts = fit(model, digits, recipe, 3, None, told.append, checkpoint, until)
        assert len(parts.curve) == (until or 4)
    assert curve_of(parts) == curve_of(whole)
    assert [epoch.epoch for epoch in told] == [1, 2, 3, 4]
    assert all(map(torch.equal, weights_of(model), weights_of(through)))


def test_the_learning_rate_at_a_rung_is_that_of_the_whole_schedule(digits, whole):
    to_rung = fit(fresh(), digits, PLAIN, 0, until=1)
    alone = fit(fresh(), digits, PLAIN.model_copy(update={"epochs": 1}), 0)
    assert curve_of(to_rung) == curve_of(whole)[:1] != curve_of(alone)


class DiesAfter:
    """A report that ends the run as a kill would, after an epoch."""

    def __init__(self, epoch: int) -> None:
        self.epoch = epoch

    def __call__(self, point: Epoch) -> None:
        if point.epoch == self.epoch:
            raise KeyboardInterrupt


def test_what_was_killed_goes_on_from_its_last_rung(digits, whole, tmp_path):
    checkpoint = Checkpoint(tmp_path / "training.pt", "run")
    recipe = PLAIN.model_copy(update={"rungs": (2,)})
    with pytest.raises(KeyboardInterrupt):
        fit(fresh(), digits, recipe, 0, None, DiesAfter(3), checkpoint)
    told: list[Epoch] = []
    gone_on = fit(fresh(), digits, recipe, 0, None, told.append, checkpoint)
    assert curve_of(gone_on) == curve_of(whole)
    assert [epoch.epoch for epoch in told] == [3, 4]


def test_a_run_is_asked_at_each_rung_before_the_last_and_ends_where_the_answer_is_no(digits, whole):
    recipe = PLAIN.model_copy(update={"rungs": (1, 3, 4)})
    asked: list[Epoch] = []
    fit(fresh(), digits, recipe, 0, decide=lambda point: not asked.append(point))
    assert [point.epoch for point in asked] == [1, 3]
    stopped = fit(fresh(), digits, recipe, 0, decide=lambda point: point.epoch < 3)
    assert curve_of(stopped) == curve_of(whole)[:3]


@pytest.mark.parametrize(("ends_at", "epochs"), [(2, 2), (None, 4)])
def test_a_run_that_goes_on_is_asked_again_about_the_rungs_behind_it(
    ends_at, epochs, digits, whole, tmp_path
):
    checkpoint = Checkpoint(tmp_path / "training.pt", "run")
    recipe = PLAIN.model_copy(update={"rungs": (1, 2, 3)})
    fit(fresh(), digits, recipe, 0, checkpoint=checkpoint, until=3)
    told: list[Epoch] = []
    asked: list[Epoch] = []

    def decide(point: Epoch) -> bool:
        assert not told
        asked.append(point)
        return point.epoch != ends_at

    gone_on = fit(fresh(), digits, recipe, 0, None, told.append, checkpoint, decide=decide)
    assert curve_of(gone_on) == curve_of(whole)[:epochs]
    assert [point.epoch for point in asked] == [1, 2, 3][: ends_at or 3]
    assert [point.val_top1_percent for point in asked] == [
        point.val_top1_percent for point in whole.curve[: len(asked)]
    ]


def test_a_checkpoint_of_another_run_is_refused_or_replaced(digits, tmp_path):
    path = tmp_path / "training.pt"
    fit(fresh(), digits, PLAIN, 0, checkpoint=Checkpoint(path, "one"), until=1)
    with pytest.raises(InputError, match="another network, recipe, data, teacher or seed"):
        Checkpoint(path, "two", is_required=True).load()
    assert Checkpoint(path, "two").load() is None
    assert Checkpoint(path, "one").load() is not None


@pytest.mark.parametrize(
    "change", ["cut", *(pytest.param(name, marks=pytest.mark.slow) for name in ("flip", "empty"))]
)
def test_a_damaged_checkpoint_is_warned_of_and_not_used(change, digits, whole, tmp_path):
    path = tmp_path / "training.pt"
    checkpoint = Checkpoint(path, "run")
    fit(fresh(), digits, PLAIN, 0, checkpoint=checkpoint, until=1)
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 4
    path.write_bytes({"cut": raw[: len(raw) // 3], "flip": raw, "empty": b""}[change])
    with pytest.warns(UserWarning, match="damaged; training starts anew"):
        training = fit(fresh(), digits, PLAIN, 0, checkpoint=checkpoint)
    assert curve_of(training) == curve_of(whole)


def test_an_identity_is_of_all_that_changes_the_figures():
    described = network()
    same = training_id(described, PLAIN, 0, "data", None)
    rungs = PLAIN.model_copy(update={"rungs": (1, 2), "workers": 3})
    assert training_id(described, rungs, 0, "data", None) == same
    others = {
        training_id(network(activation="gelu"), PLAIN, 0, "data", None),
        training_id(described, PLAIN.model_copy(update={"lr": 1e-3}), 0, "data", None),
        training_id(described, PLAIN, 1, "data", None),
        training_id(described, PLAIN, 0, "other", None),
        training_id(described, PLAIN, 0, "data", "teacher"),
    }
    assert len(others | {same}) == 6


class Guesses(nn.Module):
    """Always says class 3, and learns nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, images: Tensor) -> Tensor:
        always = torch.zeros(len(images), 10, device=images.device)
        always[:, 3] = 1
        return always * self.scale


def test_a_network_that_guesses_may_yet_learn_before_a_thousand_steps(digits):
    recipe = PLAIN.model_copy(update={"rungs": (1, 2, 3), "batch_size": 2})  # 80 steps an epoch
    assert len(fit(Guesses(), digits, recipe, 0).curve) == 4


def test_a_network_that_guesses_is_given_up_at_the_first_rung(tmp_path, monkeypatch):
    monkeypatch.setattr(fitting, "_FEWEST_STEPS", 80)
    many = open_batches(DataConfig(image_size=16, val_share=0.75))  # 1,078 images of val
    recipe = PLAIN.model_copy(update={"rungs": (1, 2, 3), "batch_size": 8})  # 44 steps an epoch
    told: list[Epoch] = []
    checkpoint = Checkpoint(tmp_path / "training.pt", "run")
    for _ in range(2):  # what was given up is given up again
        with pytest.raises(
            TrialError, match=r"after epoch 2 of 4 .*, that of guessing \(10.20 %\)"
        ):
            fit(Guesses(), many, recipe, 0, None, told.append, checkpoint)
    assert [epoch.epoch for epoch in told] == [1, 2]
    assert len(fit(Guesses(), many, PLAIN, 0).curve) == 4


def test_a_val_too_small_to_tell_ends_nothing(digits, monkeypatch):
    """Of 288 images in ten classes, a true 14 % and the 10 % of guessing overlap."""
    monkeypatch.setattr(fitting, "_FEWEST_STEPS", 1)
    assert len(fit(Guesses(), digits, PLAIN.model_copy(update={"rungs": (1,)}), 0).curve) == 4


class NeedsMemory(nn.Module):
    """A network that fits ``most`` images at once and says so as torch does."""

    def __init__(self, most: int, error: Exception) -> None:
        super().__init__()
        seed_torch(0)
        self.model, self.most, self.error = LevitModel(network(norm="layer")), most, error
        self.sizes: list[int] = []

    def forward(self, images: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        if self.training:
            self.sizes.append(len(images))
            if len(images) > self.most:
                raise self.error
        return self.model(images)


HOST = RuntimeError("[enforce fail at alloc.cpp:117] DefaultCPUAllocator: can't allocate memory")


@pytest.mark.parametrize(
    "error", [HOST, MemoryError(), torch.OutOfMemoryError("CUDA out of memory")]
)
def test_a_batch_that_does_not_fit_is_halved_once_with_the_same_gradients(error, digits):
    whole, halved = NeedsMemory(32, error), NeedsMemory(16, error)
    recipe = PLAIN.model_copy(update={"epochs": 1})
    at_once, in_parts = (fit(model, digits, recipe, 0) for model in (whole, halved))
    assert halved.sizes == [32] + [16] * 10
    assert (at_once.batch_parts, in_parts.batch_parts) == (1, 2)
    # Layer norm knows no batch: both see the same but for the order of sums.
    assert in_parts.curve[0].train_loss == pytest.approx(at_once.curve[0].train_loss, rel=1e-3)


def test_memory_too_small_for_half_a_batch_fails_the_candidate(digits):
    model = NeedsMemory(15, HOST)
    with pytest.raises(TrialError, match="out of memory, also with half a batch at a time"):
        fit(model, digits, PLAIN, 0)
    assert model.sizes == [32, 16]


def test_a_run_in_halves_goes_on_in_halves(digits, tmp_path):
    checkpoint = Checkpoint(tmp_path / "training.pt", "run")
    fit(NeedsMemory(16, HOST), digits, PLAIN, 0, checkpoint=checkpoint, until=1)
    model = NeedsMemory(16, HOST)
    training = fit(model, digits, PLAIN, 0, checkpoint=checkpoint)
    assert set(model.sizes) == {16}
    assert training.batch_parts == 2


def test_other_errors_of_torch_are_not_taken_for_a_lack_of_memory(digits):
    with pytest.raises(RuntimeError, match="sizes do not match"):
        fit(NeedsMemory(1, RuntimeError("sizes do not match")), digits, PLAIN, 0)


def training_with(digits: Batches, **changes: object) -> Training:
    """What a run gives whose recipe differs from a plain one."""
    recipe = PLAIN.model_copy(update={"epochs": 2, **changes})
    return fit(fresh(), digits, recipe, 0)


def test_averaged_weights_are_evaluated_and_kept(digits):
    recipe = PLAIN.model_copy(update={"epochs": 2, "ema_decay": 0.9})
    model, plain = fresh(), fresh()
    averaged = fit(model, digits, recipe, 0)
    not_averaged = fit(plain, digits, recipe.model_copy(update={"ema_decay": None}), 0)
    # The average does not move the weights that are trained.
    assert [e.train_loss for e in averaged.curve] == [e.train_loss for e in not_averaged.curve]
    assert not any(map(torch.equal, model.parameters(), plain.parameters()))


def test_clipped_gradients_change_what_is_learnt(digits):
    assert curve_of(training_with(digits, clip_grad=0.01)) != curve_of(training_with(digits))


def test_bf16_is_near_fp32_and_says_so(digits):
    half, full = training_with(digits, precision="bf16"), training_with(digits)
    assert (half.precision, full.precision) == ("bf16", "fp32")
    losses = [training.curve[-1].train_loss for training in (half, full)]
    assert losses[0] != losses[1]
    assert math.isclose(*losses, rel_tol=0.05)


def test_fp16_on_a_cpu_is_refused(digits):
    with pytest.raises(InputError, match="fp16 needs a GPU"):
        training_with(digits, precision="fp16")


def test_channels_last_gives_the_same_but_for_rounding(digits):
    last, first = training_with(digits, channels_last=True), training_with(digits)
    assert last.curve[-1].train_loss == pytest.approx(first.curve[-1].train_loss, rel=1e-2)


def test_rungs_ascend_and_those_beyond_the_end_mean_nothing(digits):
    with pytest.raises(ValueError, match="must ascend"):
        Recipe(rungs=[3, 1])
    assert len(fit(Guesses(), digits, Recipe(epochs=1, rungs=[1], device="cpu"), 0).curve) == 1
