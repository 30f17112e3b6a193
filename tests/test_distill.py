"""Teachers: trained once for each identity, asked once for each batch, refused if they misfit."""

import json
import multiprocessing
import shutil
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
import timm
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from levit_search.architecture import parse
from levit_search.batches import Batches, open_batches
from levit_search.data import DataConfig
from levit_search.distill import TeacherAnswers, create_teacher, kept_card, obtain_teacher, teacher
from levit_search.distill.store import Header, megabytes
from levit_search.distill.teacher_answers import header_of
from levit_search.errors import InputError
from levit_search.model import LevitModel
from levit_search.recipe import Recipe, TeacherConfig
from levit_search.train import Epoch, Training, fit, seed_torch, top1_percent
from tests.networks import SMALL_REGNETY

RECIPE = Recipe(epochs=1, batch_size=20, lr=5e-3, threads=1, device="cpu")
SOFT = RECIPE.model_copy(update={"distillation": "soft", "temperature": 2.0})
DATA = DataConfig(image_size=16, train_images=60)
CONFIG = TeacherConfig(name="regnety_002", options=SMALL_REGNETY, recipe=RECIPE)
ONLINE = CONFIG.model_copy(update={"cache": False})
ROWS = 20


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    """The user's cache, empty."""
    return tmp_path / "cache" / "levit-search"


@pytest.fixture(scope="module")
def batches() -> Batches:
    return open_batches(DATA)


class Linear(nn.Module):
    """Logits that depend on the images; counts how often it is asked."""

    def __init__(self, classes: int = 10) -> None:
        super().__init__()
        self.drop = nn.Dropout(0.9)
        self.linear = nn.Linear(16 * 16, classes)
        self.asked = 0

    def forward(self, images: Tensor) -> Tensor:
        self.asked += 1
        return self.linear(self.drop(images.flatten(1)))


def answers_of(
    model: nn.Module, recipe: Recipe = RECIPE, config: TeacherConfig = CONFIG, classes: int = 10
) -> TeacherAnswers:
    """Those of any network, to data of which only the sizes matter."""
    info = SimpleNamespace(num_classes=classes, hflip=False)
    sizes: Any = SimpleNamespace(
        info=info,
        image_size=16,
        data_id="data",
        batch_size=lambda _: ROWS,
        steps=lambda _: 3,
        shown=lambda epoch: epoch,
    )
    return TeacherAnswers("teacher", lambda: model, config, sizes, recipe)


def views(seed: int = 0) -> Tensor:
    return torch.randn(ROWS, 1, 16, 16, generator=torch.Generator().manual_seed(seed))


def test_a_teacher_is_asked_once_for_each_batch_and_replays_its_answers():
    model, images = Linear().train(), views()
    expected = model.linear(images.flatten(1)).argmax(1)
    answers = answers_of(model)
    first = answers(0, 0, 0, images)
    assert torch.equal(first, expected), "the teacher answers in evaluation mode"
    first.zero_()
    assert torch.equal(answers(0, 0, 0, images), expected)
    assert torch.equal(answers(0, 0, 0, views(1)), expected)
    assert torch.equal(answers_of(model)(0, 0, 0, images), expected), "a second candidate"
    assert model.asked == answers.asked == 1
    for count, key in enumerate([(1, 0, 0), (0, 1, 0), (0, 0, 1)], start=2):
        answers(*key, images)
        assert model.asked == count


def test_a_teacher_without_a_cache_is_asked_each_time(cache):
    model = Linear()
    answers = answers_of(model, config=ONLINE)
    for count in (1, 2):
        answers(0, 0, 0, views())
        assert model.asked == count
    assert not cache.exists()


def test_replayed_classes_equal_those_of_a_teacher_online():
    """Ties included, of which the first counts; most answers of this one are ties."""
    model = Linear()
    with torch.no_grad():
        model.linear.weight.zero_()
        model.linear.bias.copy_(torch.tensor([0.0, 1, 2, 2, 2, 1, 0, 0, 0, 0]))
    for step in range(3):
        online = answers_of(model, config=ONLINE)(0, 0, step, views(step))
        written = answers_of(model)(0, 0, step, views(step))
        replayed = answers_of(model)(0, 0, step, views(step))
        assert torch.equal(online, written) and torch.equal(online, replayed)
        assert online.dtype == replayed.dtype == torch.int64
        assert (online == 2).all()


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_probabilities_of_all_classes_replay_as_good_as_online(temperature):
    recipe = SOFT.model_copy(update={"temperature": temperature})
    model, images = Linear(), views()
    expected = (model.linear(images.flatten(1)) / temperature).softmax(1)
    online = answers_of(model, recipe, ONLINE)(0, 0, 0, images)
    assert torch.allclose(online, expected)
    written = answers_of(model, recipe)(0, 0, 0, images)
    replayed = answers_of(model, recipe)(0, 0, 0, images)
    assert torch.equal(written, replayed), "the first candidate learns what all others do"
    assert (replayed - online).abs().max() < 5e-4
    assert torch.allclose(replayed.sum(1), torch.ones(ROWS))
    student = torch.randn(ROWS, 10).log_softmax(1)
    losses = [F.kl_div(student, target, reduction="batchmean") for target in (online, replayed)]
    assert abs(float(losses[0] - losses[1])) < 1e-3


def test_what_the_kept_probabilities_lack_is_spread_over_the_other_classes():
    config = CONFIG.model_copy(update={"top_k": 3})
    model, images = Linear(100), views()
    expected = (model.linear(images.flatten(1)) / 2.0).softmax(1)
    found = answers_of(model, SOFT, config, 100)(0, 0, 0, images)
    top, classes = expected.topk(3)
    assert torch.allclose(found.gather(1, classes), top, atol=2e-4)
    rest = (1 - top.sum(1)) / 97
    others = torch.ones_like(found, dtype=torch.bool).scatter_(1, classes, False)
    assert torch.allclose(found[others].view(ROWS, 97), rest[:, None].expand(-1, 97), atol=1e-5)
    assert torch.allclose(found.sum(1), torch.ones(ROWS))


def test_answers_can_take_part_in_training():
    for recipe, config in ((RECIPE, CONFIG), (RECIPE, ONLINE), (SOFT, CONFIG), (SOFT, ONLINE)):
        logits = torch.randn(ROWS, 10, requires_grad=True)
        F.cross_entropy(logits, answers_of(Linear(), recipe, config)(0, 0, 0, views())).backward()


def test_building_the_teacher_late_does_not_change_what_a_candidate_draws():
    def build() -> nn.Module:
        return Linear()

    answers = answers_of(Linear())
    answers._build = build
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    answers(0, 0, 0, views())
    assert torch.equal(torch.rand(4), expected)


def test_a_teacher_that_memory_is_too_small_for_takes_parts_of_a_batch():
    class Large(Linear):
        def forward(self, images: Tensor) -> Tensor:
            if len(images) > 5:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return super().forward(images)

    model, images = Large(), views()
    found = answers_of(model)(0, 0, 0, images)
    assert torch.equal(found, model.linear(images.flatten(1)).argmax(1))
    assert model.asked == 4


def test_answers_that_are_no_numbers_are_not_kept():
    model = Linear()
    with torch.no_grad():
        model.linear.bias[3] = float("nan")
    answers = answers_of(model)
    with pytest.raises(InputError, match="regnety_002: its answers are no finite numbers"):
        answers(0, 0, 0, views())
    store = answers.store(0)
    assert store is not None and not store.filled(0).any()


@pytest.mark.parametrize(
    ("change", "is_shared"),
    [
        ({"epochs": 5, "lr": 1e-3, "weight_decay": 0.0, "clip_grad": 0.1}, True),
        ({"label_smoothing": 0.0, "workers": 3, "ema_decay": 0.9}, True),
        ({"temperature": 9.0}, True),  # of no account for classes
        ({"hflip": False}, True),  # what the data says anyway
        ({"hflip": True}, False),
        ({"crop": "none"}, False),
        ({"mixup": 0.8}, False),
        ({"repeated_augmentation": 2}, False),
        ({"distillation": "soft"}, False),
    ],
    ids=str,
)
def test_recipes_of_the_same_views_share_answers(change, is_shared):
    model = Linear()
    answers_of(model)(0, 0, 0, views())
    answers_of(model, RECIPE.model_copy(update=change))(0, 0, 0, views())
    assert model.asked == (1 if is_shared else 2)


def test_the_identity_tells_whose_answers_they_are_and_how_many_are_kept():
    few = CONFIG.model_copy(update={"top_k": 3})
    found = [
        answers_of(Linear(), recipe, config).id
        for recipe, config in ((RECIPE, CONFIG), (RECIPE, ONLINE), (SOFT, few), (SOFT, ONLINE))
    ]
    assert found == ["teacher", "teacher", "teacher-top3", "teacher-all"]


def test_answers_for_rectangles_are_found_again_and_no_others() -> None:
    recipe = RECIPE.model_copy(update={"distillation": "hard"})

    def header(size: tuple[int, int]) -> Header:
        batches = open_batches(DataConfig(image_size=size, train_images=60))
        return header_of("t", CONFIG, batches, recipe, 0)

    wide, again, tall = header((16, 24)), header((16, 24)), header((24, 16))
    assert wide.augmentation["image_size"] == [16, 24], "as JSON gives it back"
    assert wide.digest == again.digest != tall.digest


def test_more_classes_than_a_store_can_tell_apart_are_refused():
    with pytest.raises(InputError, match="up to 65536 classes, the data has 70000"):
        answers_of(Linear(), classes=70_000).store(0)


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
    recipe = RECIPE.model_copy(update={"epochs": 3, "crop": "none"})
    answers = TeacherAnswers("three", lambda: opinionated, CONFIG, data, recipe)
    fit(model, data, recipe, 0, answers)
    assert opinionated.asked == 3 * 600 // 20

    images, labels = next(iter(data.evaluation("val", 1000, torch.device("cpu"))))
    by_head: dict[str, Tensor] = {}
    for name in ("head", "head_dist"):
        getattr(model, name).register_forward_hook(
            lambda module, args, output, name=name: by_head.update({name: output.argmax(1)})
        )
    with torch.no_grad():
        model.eval()(images)
    assert (by_head["head_dist"] == 3).all()
    assert (by_head["head"] == labels).float().mean() > 0.6


@pytest.fixture
def fits(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The seeds of all teachers that are trained from now on; nothing is learnt."""
    seeds: list[int] = []

    def pretend(model: nn.Module, batches: Batches, recipe: Recipe, seed: int, **_: object):
        seeds.append(seed)
        return Training(50.0, 1.0, 1.0, ())

    monkeypatch.setattr(teacher, "fit", pretend)
    return seeds


def obtained(
    batches: Batches,
    folder: Path | None,
    config: TeacherConfig = CONFIG,
    data: DataConfig = DATA,
    seed: int = 0,
) -> tuple[TeacherAnswers, dict[str, Any]]:
    return obtain_teacher(config, data, batches, RECIPE, folder, seed)


def weights_of(answers: TeacherAnswers) -> dict[str, Tensor]:
    return answers._build().state_dict()


def test_a_trained_teacher_is_as_good_as_its_card_says_wherever_it_comes_from(
    batches, cache, tmp_path, monkeypatch
):
    trained = []

    def counted(*args: object, **options: object) -> Training:
        trained.append(fit(*args, **options))
        return trained[-1]

    monkeypatch.setattr(teacher, "fit", counted)
    reported: list[object] = []
    assert kept_card(CONFIG, batches, 0) is None
    answers, card = obtain_teacher(
        CONFIG, DATA, batches, RECIPE, tmp_path / "first", 0, reported.append
    )
    assert len(trained) == len(reported) == 1
    assert card["name"] == "regnety_002" and card["options"] == CONFIG.options
    assert card["val_top1_percent"] == trained[0].val_top1_percent
    model = answers._build()
    assert card["val_top1_percent"] == top1_percent(model, batches, "val")
    assert card["params"] == sum(p.numel() for p in model.parameters())
    assert card["recipe"]["epochs"] == 1 and card["seed"] == 0 and len(card["curve"]) == 1
    assert card["data"]["num_classes"] == 10 and card["required_top1_percent"] is None
    on_disk = kept_card(CONFIG, batches, 0)
    assert on_disk is not None and on_disk["id"] == card["id"]
    weights = model.state_dict()

    for place in (tmp_path / "second", None, tmp_path / "second"):
        again, its_card = obtained(batches, place)
        assert its_card == json.loads(json.dumps(card)) and again.id == answers.id
        found = weights_of(again)
        assert all(torch.equal(found[name], tensor) for name, tensor in weights.items())
        if place is None:  # the study's folder is complete without the cache
            shutil.rmtree(cache)
    assert len(trained) == 1
    assert not (cache / "teachers").exists()


def test_whatever_makes_a_teacher_gives_it_a_file_of_its_own(batches, fits, tmp_path):
    folder = tmp_path / "study"
    obtained(batches, folder)
    longer = CONFIG.model_copy(update={"recipe": RECIPE.model_copy(update={"epochs": 2})})
    other = CONFIG.model_copy(update={"options": {**CONFIG.options, "stem_width": 32}})
    other_data = DATA.model_copy(update={"val_share": 0.3})
    variants = [(CONFIG, DATA, 1), (CONFIG, other_data, 0), (longer, DATA, 0), (other, DATA, 0)]
    for count, (config, data, seed) in enumerate(variants, start=2):
        theirs = batches if data is DATA else open_batches(data)
        obtained(theirs, folder, config, data, seed)
        assert len(list(folder.glob("regnety_002-*.pt"))) == len(fits) == count
    assert fits == [0, 1, 0, 0, 0]
    for change in ({"cache": False}, {"top_k": 2}, {"top1_percent": 40.0}):
        obtained(batches, folder, CONFIG.model_copy(update=change))
    elsewhere = RECIPE.model_copy(update={"workers": 7})
    obtained(batches, folder, CONFIG.model_copy(update={"recipe": elsewhere}))
    assert len(fits) == 5
    cards = [json.loads(path.read_text()) for path in folder.glob("*.json")]
    assert [card["val_top1_percent"] for card in cards] == [50.0] * 5
    assert len({card["id"] for card in cards}) == 3, "as many as weights, for nothing was learnt"


def test_a_teacher_starts_from_its_seed_and_nothing_else(batches, fits, cache, tmp_path):
    weights = []
    for number, (seed, global_seed) in enumerate([(0, 1), (0, 2), (1, 1)]):
        torch.manual_seed(global_seed)
        answers, _ = obtained(batches, tmp_path / str(number), seed=seed)
        weights.append(weights_of(answers)["head.fc.weight"])
        shutil.rmtree(cache)
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_a_teacher_below_what_is_asked_for_is_refused_but_not_trained_again(
    batches, fits, tmp_path
):
    better = CONFIG.model_copy(update={"top1_percent": 90.0})
    for _ in range(2):
        with pytest.raises(
            InputError,
            match=r"regnety_002: reached 50.00 % on val, below the teacher.top1_percent of 90; "
            r"train it longer \(teacher.recipe.epochs, now 1\)",
        ):
            obtained(batches, tmp_path / "study", better)
    assert not (tmp_path / "study").exists()
    _, card = obtained(batches, tmp_path, CONFIG.model_copy(update={"top1_percent": 50.0}))
    assert card["required_top1_percent"] == 50.0
    assert fits == [0]


@pytest.mark.parametrize("kind", ["pt", "json"])
def test_a_teacher_that_was_damaged_in_the_study_is_named(kind, batches, fits, tmp_path):
    folder = tmp_path / "study"
    obtained(batches, folder)
    (kept,) = folder.glob(f"*.{kind}")
    kept.write_bytes(kept.read_bytes()[:100])
    with pytest.raises(InputError, match=f"{kept.name}: damaged.*remove"):
        obtained(batches, folder)


@pytest.mark.parametrize("kind", ["pt", "json"])
def test_a_teacher_that_was_damaged_in_the_cache_is_made_again(kind, batches, fits, cache):
    obtained(batches, None)
    (kept,) = (cache / "teachers").glob(f"*.{kind}")
    raw = bytearray(kept.read_bytes())
    raw[len(raw) // 2 if kind == "pt" else 0] ^= 8
    kept.write_bytes(raw)
    with pytest.warns(UserWarning, match=f"{kept.name}: damaged.*not used"):
        obtained(batches, None)
    assert fits == [0, 0]
    obtained(batches, None)
    assert fits == [0, 0]


def test_processes_that_want_one_teacher_have_it_trained_once(batches, cache, tmp_path):
    """The others wait, say so, and get the same."""
    context = multiprocessing.get_context("fork")
    trained, told = context.SimpleQueue(), context.SimpleQueue()
    begun, waiting = context.Event(), context.Semaphore(0)

    def work(number: int) -> None:
        torch.set_num_threads(1)

        def pretend(*_: object, **__: object) -> Training:
            trained.put(number)
            begun.set()
            assert waiting.acquire(timeout=60) and waiting.acquire(timeout=60)
            return Training(50.0, 1.0, 1.0, ())

        teacher.fit = pretend  # type: ignore[assignment]
        said: list[str] = []

        def say(text: str) -> None:
            said.append(text)
            waiting.release()

        _, card = obtain_teacher(CONFIG, DATA, batches, RECIPE, None, 0, say=say)
        told.put((card["id"], said))

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        processes = [context.Process(target=work, args=(number,)) for number in range(3)]
        processes[0].start()
        assert begun.wait(60)
        for process in processes[1:]:
            process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0, 0, 0]
    results = [told.get() for _ in processes]
    assert len({card for card, _ in results}) == 1
    assert not trained.empty() and trained.get() == 0 and trained.empty()
    waited = [said for _, said in results if said]
    assert waited == [["waiting for another process that prepares the teacher regnety_002"]] * 2


def test_no_room_is_told_before_the_teacher_is_trained(batches, fits, monkeypatch):
    usage = shutil.disk_usage("/")
    size = sum(t.nbytes for t in create_teacher(CONFIG, batches).state_dict().values())
    needed = size + 3 * (8 + 80)  # three batches of 20 classes
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=needed - 1))
    with pytest.raises(InputError, match=f"needs {megabytes(needed)} in"):
        obtained(batches, None)
    assert not fits
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=needed))
    obtained(batches, None)


def test_a_cache_that_cannot_be_written_is_told_before_the_teacher_is_trained(batches, fits, cache):
    cache.parent.mkdir()
    cache.touch()
    with pytest.raises(InputError, match=r"teachers: cannot be written \(.*set XDG_CACHE_HOME"):
        obtained(batches, None)
    assert not fits


@pytest.mark.parametrize("name", ["regnety_0002", "RegNetY_002"])
def test_an_unknown_teacher_is_told_the_nearest_name(name, batches, tmp_path):
    config = TeacherConfig(name=name)
    with pytest.raises(InputError, match=f"unknown teacher '{name}'.*did you mean 'regnety_002'"):
        obtained(batches, tmp_path, config)


def test_options_that_the_network_does_not_take_are_an_input_error(batches):
    with pytest.raises(InputError, match=r"regnety_002.*nonsense"):
        create_teacher(TeacherConfig(options={"nonsense": 1}), batches)


def test_a_teacher_for_images_of_another_size_is_told_before_it_is_trained(batches, fits):
    config = TeacherConfig(name="vit_tiny_patch16_224", options={"depth": 1}, recipe=RECIPE)
    with pytest.raises(InputError, match=r"does not take images of 16 px .*teacher.options.img"):
        obtained(batches, None, config)
    assert not fits
    sized = config.model_copy(update={"options": {"depth": 1, "img_size": 16}})
    assert obtained(batches, None, sized)[1]["name"] == "vit_tiny_patch16_224"


def test_a_teacher_whose_training_was_killed_goes_on_from_its_checkpoint(
    batches, cache, monkeypatch
):
    monkeypatch.setattr("levit_search.train.fitting._CHECKPOINT_S", 0.0)
    recipe = RECIPE.model_copy(update={"epochs": 3})
    config = CONFIG.model_copy(update={"recipe": recipe})

    def dies(point: Epoch) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        obtain_teacher(config, DATA, batches, RECIPE, None, 0, dies)
    told: list[Epoch] = []
    answers, card = obtain_teacher(config, DATA, batches, RECIPE, None, 0, told.append)
    assert [point.epoch for point in told] == [2, 3] and len(card["curve"]) == 3
    found = weights_of(answers)
    shutil.rmtree(cache)
    whole = weights_of(obtained(batches, None, config)[0])
    assert all(torch.equal(found[name], tensor) for name, tensor in whole.items())
    assert not list(cache.glob("teachers/*.training.pt"))


def thousand_classes(batches: Batches) -> Any:
    """The same data, said to have as many classes as ImageNet."""
    info = batches.info._replace(class_names=tuple(map(str, range(1000))))
    return SimpleNamespace(
        info=info,
        image_size=16,
        data_id="data",
        batch_size=batches.batch_size,
        steps=batches.steps,
        size=batches.size,
        evaluation=batches.evaluation,
        shown=lambda epoch: epoch,
    )


def test_pretrained_weights_out_of_reach_are_an_input_error(batches, tmp_path, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    config = TeacherConfig(weights="pretrained")
    with pytest.raises(InputError, match="teacher regnety_002: cannot be built"):
        obtained(thousand_classes(batches), tmp_path / "study", config)
    with pytest.raises(InputError, match="weights know 1000 classes, the data has 10"):
        obtained(batches, tmp_path / "study", config)
    with pytest.raises(InputError, match=r"unknown teacher 'resnet18.a1'; did you mean 'resnet18"):
        obtained(batches, None, TeacherConfig(name="resnet18.a1", weights="pretrained"))
    config = TeacherConfig(name="regnety_160.sw_in12k", weights="pretrained")
    with pytest.raises(InputError, match=r"regnety_160.sw_in12k: .*know 11821 classes"):
        obtained(batches, tmp_path / "study", config)


def test_pretrained_weights_are_measured_and_recognised(batches, tmp_path, monkeypatch):
    """The hub is played by a builder that gives the same weights each time."""
    fresh = teacher.create_teacher
    seeds = [3, 3, 4]

    def from_hub(config: TeacherConfig, batches: Batches) -> nn.Module:
        seed_torch(seeds.pop(0))
        return fresh(config.model_copy(update={"weights": "train"}), batches)

    monkeypatch.setattr(teacher, "create_teacher", from_hub)
    config = TeacherConfig(weights="pretrained", options=SMALL_REGNETY, recipe=RECIPE)
    data = thousand_classes(batches)
    answers, card = obtained(data, tmp_path / "study", config)
    assert card["pretrained"]["tag"] == "pycls_in1k" and 0 <= card["val_top1_percent"] <= 100
    weights_of(answers)
    _, again = obtained(data, tmp_path / "study", config)
    assert again == card
    with pytest.raises(InputError, match="pretrained weights have changed"):
        weights_of(answers)
    assert not list(tmp_path.glob("*/*.pt"))


@pytest.mark.parametrize("form", ["plain", "under model", "safetensors"])
def test_a_checkpoint_gives_the_teacher_it_was_saved_from(form, batches, fits, tmp_path):
    seed_torch(3)
    source = create_teacher(CONFIG, batches)
    state = source.state_dict()
    path = tmp_path / ("teacher.safetensors" if form == "safetensors" else "teacher.pt")
    if form == "safetensors":
        save_file(state, path)
    else:
        torch.save({"model": state} if form == "under model" else state, path)
    config = CONFIG.model_copy(update={"weights": str(path)})
    answers, card = obtained(batches, tmp_path / "study", config)
    loaded = weights_of(answers)
    assert all(torch.equal(loaded[name], tensor) for name, tensor in state.items())
    assert (card["name"], card["weights"]) == ("regnety_002", str(path))
    assert card["val_top1_percent"] == top1_percent(source, batches, "val")
    assert not fits and "curve" not in card
    path.write_bytes(path.read_bytes() + b"\0")
    with pytest.raises(InputError, match=f"{path} have changed"):
        weights_of(answers)


def test_a_checkpoint_that_is_missing_or_does_not_fit_is_named(batches, tmp_path):
    contents = {
        "missing": None,
        "empty": {},
        "a number": 3,
        "no tensors": {"model": 3},
        "code": SimpleNamespace(a=1),
    }
    for number, (what, content) in enumerate(contents.items()):
        path = tmp_path / f"{number}.pt"
        if content is not None:
            torch.save(content, path)
        config = CONFIG.model_copy(update={"weights": str(path)})
        with pytest.raises(InputError) as raised:
            obtained(batches, tmp_path / "study", config)
        assert str(path) in str(raised.value), what


@pytest.mark.parametrize(
    ("channels", "classes", "told"),
    [
        (1, 7, "knows 7 classes, the data has 10"),
        (3, 10, "is for images of 3 channels, the data has 1"),
    ],
)
def test_a_checkpoint_for_other_data_is_told_both_numbers(
    channels, classes, told, batches, tmp_path
):
    info = batches.info._replace(in_channels=channels, class_names=tuple(map(str, range(classes))))
    other: Any = SimpleNamespace(info=info)
    path = tmp_path / "teacher.pt"
    torch.save(create_teacher(CONFIG, other).state_dict(), path)
    config = CONFIG.model_copy(update={"weights": str(path)})
    with pytest.raises(InputError, match=f"teacher regnety_002: {path} {told}"):
        obtained(batches, tmp_path / "study", config)


def test_a_pretrained_teacher_is_shown_the_colours_that_it_knows(batches, monkeypatch):
    shown: list[Tensor] = []

    class Looks(nn.Module):
        pretrained_cfg: ClassVar = {"mean": (0.4, 0.5, 0.6), "std": (0.2, 0.3, 0.4)}

        def forward(self, images: Tensor) -> Tensor:
            shown.append(images)
            return images.flatten(1)[:, :10]

    monkeypatch.setattr(timm, "create_model", lambda *_, **__: Looks())
    monkeypatch.setattr(timm, "get_pretrained_cfg", lambda _: None)
    model = create_teacher(TeacherConfig(weights="pretrained"), batches)
    images, _ = next(batches.evaluation("val", 8, torch.device("cpu")))
    model(images)
    pixels = images * batches.std[0] + batches.mean[0]
    assert torch.allclose(shown[0], (pixels / 255 - 0.5) / 0.3, atol=1e-5)
