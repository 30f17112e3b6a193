"""Teachers: asked once for each batch, trained once for each identity, refused if they misfit."""

import json
import shutil
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from levit_search import distill
from levit_search.architecture import parse
from levit_search.batches import Batches, open_batches
from levit_search.data import DataConfig
from levit_search.distill import Teacher, create_teacher, obtain_teacher
from levit_search.errors import InputError
from levit_search.model import LevitModel
from levit_search.recipe import Recipe, TeacherConfig
from levit_search.train import Training, _loss, fit, seed_torch, top1_percent
from tests.networks import SMALL_REGNETY

RECIPE = Recipe(epochs=1, batch_size=20, lr=5e-3, threads=1, device="cpu")
DATA = DataConfig(image_size=16, train_images=60)
CONFIG = TeacherConfig(
    name="regnety_002",
    options=SMALL_REGNETY,
    recipe=RECIPE,
)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's cache, empty."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(scope="module")
def batches() -> Batches:
    return open_batches(DATA)


class Student(nn.Module):
    """Logits that depend on the images; counts how often it is asked."""

    def __init__(self) -> None:
        super().__init__()
        self.drop = nn.Dropout(0.9)
        self.linear = nn.Linear(16 * 16, 10)
        self.asked = 0

    def forward(self, images: Tensor) -> Tensor:
        self.asked += 1
        return self.linear(self.drop(images.flatten(1)))


def test_a_teacher_is_asked_once_for_each_batch_and_replays_its_answers():
    model = Student().train()
    images = torch.randn(6, 1, 16, 16)
    expected = model.linear(images.flatten(1)).argmax(1)
    teacher = Teacher(model, RECIPE)
    first = teacher(0, 0, 0, images)
    assert torch.equal(first, expected), "the teacher answers in evaluation mode"
    first.zero_()
    assert torch.equal(teacher(0, 0, 0, images), expected)
    assert torch.equal(teacher(0, 0, 0, torch.randn(6, 1, 16, 16)), expected)
    assert model.asked == 1
    for count, key in enumerate([(1, 0, 0), (0, 1, 0), (0, 0, 1)], start=2):
        teacher(*key, images)
        assert model.asked == count


def test_the_loss_averages_labels_and_hard_teacher_labels():
    """(CE(class head, label) + CE(distillation head, teacher's class)) / 2, written out."""
    by_class, by_teacher = torch.randn(2, 4, 3, dtype=torch.double)
    labels, taught = torch.tensor([0, 2, 1, 1]), torch.tensor([2, 2, 0, 1])

    def entropy(logits: Tensor, wanted: Tensor, smoothing: float = 0.0) -> float:
        total = 0.0
        for row, label in zip(logits, wanted, strict=True):
            log_shares = row - row.exp().sum().log()
            total -= (1 - smoothing) * log_shares[label] + smoothing * log_shares.mean()
        return float(total / len(wanted))

    heads = (by_class, by_teacher)
    distilled = (entropy(by_class, labels, 0.1) + entropy(by_teacher, taught)) / 2
    assert _loss(heads, labels, taught, 0.1).item() == pytest.approx(distilled)
    untaught = (entropy(by_class, labels, 0.1) + entropy(by_teacher, labels, 0.1)) / 2
    assert _loss(heads, labels, None, 0.1).item() == pytest.approx(untaught)
    assert _loss(by_class, labels, None, 0.1).item() == pytest.approx(
        entropy(by_class, labels, 0.1)
    )
    # Mixed labels bring their smoothing along.
    mixed = 0.7 * F.one_hot(labels, 3) + 0.3 * F.one_hot(labels.flip(0), 3).double()
    blended = 0.7 * entropy(by_class, labels) + 0.3 * entropy(by_class, labels.flip(0))
    assert _loss(by_class, mixed, None, 0.1).item() == pytest.approx(blended)


def test_the_distillation_head_learns_the_teacher_and_the_class_head_the_labels():
    class AlwaysThree(nn.Module):
        asked = 0

        def forward(self, images: Tensor) -> Tensor:
            self.asked += 1
            return F.one_hot(torch.full((len(images),), 3), 10).float()

    data = open_batches(DataConfig(image_size=16, train_images=600))
    stage = {"depth": 1, "embed_dim": 32, "num_heads": 2, "key_dim": 8}
    stem = {"kind": "conv", "channels": [16, 32]}
    sizes = {"image_size": 16, "in_channels": 1, "num_classes": 10}
    seed_torch(0)
    model = LevitModel(parse({**sizes, "stem": stem, "stages": [stage]}))
    opinionated = AlwaysThree()
    recipe = RECIPE.model_copy(update={"epochs": 3, "crop": False})
    fit(model, data, recipe, 0, Teacher(opinionated, recipe))
    assert opinionated.asked == 3 * 600 // 20

    images, labels = next(iter(data.evaluation("val", 1000)))
    answers: dict[str, Tensor] = {}
    for name in ("head", "head_dist"):
        getattr(model, name).register_forward_hook(
            lambda module, args, output, name=name: answers.update({name: output.argmax(1)})
        )
    with torch.no_grad():
        model.eval()(images)
    assert (answers["head_dist"] == 3).all()
    assert (answers["head"] == labels).float().mean() > 0.6


@pytest.fixture
def fits(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The seeds of all teachers that are trained from now on; nothing is learnt."""
    seeds: list[int] = []

    def pretend(model: nn.Module, batches: Batches, recipe: Recipe, seed: int, **_: object):
        seeds.append(seed)
        return Training(50.0, 1.0, 1.0, ())

    monkeypatch.setattr(distill, "fit", pretend)
    return seeds


def test_a_trained_teacher_is_as_good_as_its_card_says_wherever_it_comes_from(
    batches, cache, tmp_path, monkeypatch
):
    trained = []

    def counted(*args: object, **options: object) -> Training:
        trained.append(fit(*args, **options))
        return trained[-1]

    monkeypatch.setattr(distill, "fit", counted)
    reported = []

    def obtained(folder: Path) -> tuple[Teacher, dict[str, object]]:
        return obtain_teacher(CONFIG, DATA, batches, folder, 0, reported.append)

    teacher, card = obtained(tmp_path / "first")
    assert len(trained) == len(reported) == 1
    assert card["name"] == "regnety_002" and card["options"] == CONFIG.options
    assert card["val_top1_percent"] == trained[0].val_top1_percent
    assert card["val_top1_percent"] == top1_percent(teacher._model, batches, "val")
    images, _ = next(iter(batches.evaluation("test", 64)))
    labels = teacher(0, 0, 0, images)
    assert len(labels.unique()) > 1

    from_cache, its_card = obtained(tmp_path / "second")
    assert torch.equal(from_cache(0, 0, 0, images), labels) and its_card == card

    shutil.rmtree(cache)
    from_folder, its_card = obtained(tmp_path / "second")
    assert torch.equal(from_folder(0, 0, 0, images), labels) and its_card == card
    assert len(trained) == 1
    assert not cache.exists()


def test_whatever_makes_a_teacher_gives_it_a_file_of_its_own(batches, fits, tmp_path):
    folder = tmp_path / "study"
    obtain_teacher(CONFIG, DATA, batches, folder, 0)
    longer = CONFIG.model_copy(update={"recipe": RECIPE.model_copy(update={"epochs": 2})})
    other = CONFIG.model_copy(update={"options": {**CONFIG.options, "stem_width": 32}})
    other_data = DATA.model_copy(update={"val_share": 0.3})
    variants = [(CONFIG, DATA, 1), (CONFIG, other_data, 0), (longer, DATA, 0), (other, DATA, 0)]
    for count, (config, data, seed) in enumerate(variants, start=2):
        obtain_teacher(config, data, batches, folder, seed)
        assert len(list(folder.glob("regnety_002-*.pt"))) == len(fits) == count
    assert fits == [0, 1, 0, 0, 0]
    obtain_teacher(CONFIG, DATA, batches, folder, 0)
    assert len(fits) == 5
    cards = [json.loads(path.read_text()) for path in folder.glob("*.json")]
    assert [card["val_top1_percent"] for card in cards] == [50.0] * 5


def test_a_teacher_starts_from_its_seed_and_nothing_else(batches, fits, cache, tmp_path):
    weights = []
    for number, (seed, global_seed) in enumerate([(0, 1), (0, 2), (1, 1)]):
        torch.manual_seed(global_seed)
        teacher, _ = obtain_teacher(CONFIG, DATA, batches, tmp_path / str(number), seed)
        weights.append(teacher._model.state_dict()["head.fc.weight"])
        shutil.rmtree(cache)
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_a_kept_teacher_that_was_damaged_is_named(batches, fits, tmp_path):
    obtain_teacher(CONFIG, DATA, batches, tmp_path, 0)
    (kept,) = tmp_path.glob("*.pt")
    kept.write_bytes(kept.read_bytes()[:1000])
    with pytest.raises(InputError, match=kept.name):
        obtain_teacher(CONFIG, DATA, batches, tmp_path, 0)


@pytest.mark.parametrize("name", ["regnety_0002", "RegNetY_002"])
def test_an_unknown_teacher_is_told_the_nearest_name(name, batches):
    config = TeacherConfig(name=name)
    with pytest.raises(InputError, match=f"unknown teacher '{name}'.*did you mean 'regnety_002'"):
        create_teacher(config, batches)


def test_options_that_the_network_does_not_take_are_an_input_error(batches):
    with pytest.raises(InputError, match=r"regnety_002.*nonsense"):
        create_teacher(TeacherConfig(options={"nonsense": 1}), batches)


def test_pretrained_weights_out_of_reach_are_an_input_error(batches, tmp_path, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    config = TeacherConfig(weights="pretrained")
    with pytest.raises(InputError, match="teacher regnety_002"):
        obtain_teacher(config, DATA, batches, tmp_path / "study", 0)


@pytest.mark.parametrize("nested", [False, True], ids=["plain", "under model"])
def test_a_checkpoint_gives_the_teacher_it_was_saved_from(nested, batches, fits, tmp_path):
    seed_torch(3)
    source = create_teacher(CONFIG, batches).state_dict()
    path = tmp_path / "teacher.pt"
    torch.save({"model": source} if nested else source, path)
    config = CONFIG.model_copy(update={"weights": str(path)})
    teacher, card = obtain_teacher(config, DATA, batches, tmp_path / "study", 0)
    loaded = teacher._model.state_dict()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in source.items())
    assert card == {"name": "regnety_002", "weights": str(path)}
    assert not fits


def test_a_checkpoint_that_is_missing_or_does_not_fit_is_named(batches, tmp_path):
    other_classes = create_teacher(CONFIG, batches).state_dict()
    other_classes["head.fc.weight"] = torch.zeros(7, *other_classes["head.fc.weight"].shape[1:])
    contents = {
        "missing": None,
        "other classes": other_classes,
        "empty": {},
        "a number": 3,
        "no tensors": {"model": 3},
    }
    for number, (what, content) in enumerate(contents.items()):
        path = tmp_path / f"{number}.pt"
        if content is not None:
            torch.save(content, path)
        config = CONFIG.model_copy(update={"weights": str(path)})
        with pytest.raises(InputError) as raised:
            obtain_teacher(config, DATA, batches, tmp_path / "study", 0)
        assert str(path) in str(raised.value), what
