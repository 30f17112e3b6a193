"""Teachers with a new head for the data, and searches that keep one only if it is better."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
import yaml
from pydantic import ValidationError
from safetensors.torch import save_file
from sklearn.linear_model import LogisticRegression
from torch import Tensor, nn

from levit_search.architecture import Architecture
from levit_search.batches import Batches, open_batches
from levit_search.data import DataConfig
from levit_search.distill import (
    TeacherAnswers,
    adapting,
    create_teacher,
    kept_card,
    obtain_teacher,
    teacher,
)
from levit_search.distill.adapting import Adapted
from levit_search.distill.teacher_network import load_first_weights
from levit_search.engine.interface import Settled
from levit_search.errors import InputError
from levit_search.export.retraining import Retraining, config_for
from levit_search.recipe import Recipe, TeacherConfig
from levit_search.search import driver, search
from levit_search.significance import teacher_choice
from levit_search.study import Record, Study, read_config
from levit_search.train import seed_torch, top1_percent
from tests.conftest import Cli
from tests.engines import HereEngine, StubEngine, run

RECIPE = Recipe(epochs=1, batch_size=20, lr=5e-3, threads=1, device="cpu")
DATA = DataConfig(image_size=16, train_images=200)
SIZE = 32


@pytest.fixture(scope="module")
def batches() -> Batches:
    return open_batches(DATA)


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of a network for colours and seven classes, as others would bring it."""
    seed_torch(3)
    path = tmp_path_factory.mktemp("weights") / "resnet.safetensors"
    save_file(timm.create_model("test_resnet", num_classes=7).state_dict(), path)
    return path


def config_of(weights: Path | str, /, **changes: Any) -> TeacherConfig:
    given = {
        "name": "test_resnet",
        "weights": str(weights),
        "adapt": "head",
        "image_size": SIZE,
        "epochs": 2,
        "recipe": {"threads": 1, "device": "cpu"},
    }
    return TeacherConfig(**{**given, **changes})


def obtained(
    config: TeacherConfig, batches: Batches, folder: Path | None = None, **options: Any
) -> tuple[TeacherAnswers, dict[str, Any]]:
    return obtain_teacher(config, DATA, batches, RECIPE, folder, 0, **options)


def built(answers: TeacherAnswers) -> Adapted:
    model = answers._build()
    assert isinstance(model, Adapted)
    return model.eval()


@pytest.fixture(scope="module")
def adapted(
    batches: Batches, weights: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[TeacherAnswers, dict[str, Any]]:
    """The teacher of :func:`config_of` and its card; nobody changes it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        return obtained(config_of(weights), batches)


def some_views(batches: Batches) -> tuple[Tensor, Tensor]:
    return next(iter(batches.evaluation("val", 40, torch.device("cpu"))))


def test_a_new_head_learns_the_data_and_its_card_says_how_well(batches, weights, tmp_path):
    told: list[float | None] = []
    answers, card = obtained(
        *(config_of(weights), batches, tmp_path / "study"),
        progress=lambda _, done: told.append(done),
    )
    model = built(answers)
    assert card["val_top1_percent"] == top1_percent(model, batches, "val") > 50
    assert (card["adapt"], card["image_size"], card["seed"]) == ("head", SIZE, 0)
    assert card["adapted_from"] == hashlib.sha256(weights.read_bytes()).hexdigest()
    assert card["params"] == sum(each.numel() for each in model.parameters())
    head, rows = card["head"], 32 * (batches.size("train") // 32)
    assert (head["passes"], head["views"], head["features"]) == (2, 2 * rows, 96)
    assert head["val_top1_percent"] == card["val_top1_percent"]
    assert head["weight_decay"] in adapting._DECAYS and 0 < head["held_out_images"] < rows / 4
    assert told[-1] == 1.0 and told == sorted(told)
    images, _ = some_views(batches)
    found = answers(0, 0, 0, images[:20])
    assert torch.equal(found, model(images[:20]).argmax(1))


def test_an_adapted_teacher_is_made_once_and_found_again(batches, weights, tmp_path, monkeypatch):
    config = config_of(weights)
    assert kept_card(config, batches, 0) is None
    answers, card = obtained(config, batches, tmp_path / "study")
    on_disk = kept_card(config, batches, 0)
    assert on_disk is not None and on_disk["id"] == card["id"]

    def refuse(*_: object) -> None:
        raise AssertionError("it was adapted again")

    monkeypatch.setattr(teacher, "fit_head", refuse)
    for folder in (tmp_path / "study", tmp_path / "other", None):
        again, its_card = obtained(config, batches, folder)
        assert its_card == json.loads(json.dumps(card)) and again.id == answers.id
        assert torch.equal(built(again).head.weight, built(answers).head.weight)
    assert not list((tmp_path / "cache").rglob("*.npz")), "features go when the head is there"


def test_the_network_under_the_head_is_the_file_s(adapted, weights):
    """Its first layer, for grey images, is the sum over its colours."""
    before = timm.models.load_state_dict(str(weights))
    after = built(adapted[0]).network.state_dict()
    assert before.keys() - after.keys() == {"fc.weight", "fc.bias"}
    for name, tensor in after.items():
        expected = before[name]
        if name == "conv1.0.weight":
            expected = expected.sum(1, keepdim=True)
        assert torch.allclose(tensor, expected, atol=1e-6), name


def test_views_are_enlarged_and_have_the_colours_that_the_network_knows(batches, adapted):
    model = built(adapted[0])
    images, _ = some_views(batches)
    pixels = images * batches.std[0] + batches.mean[0]
    shown = (pixels / 255 - 0.5) / 0.5
    shown = F.interpolate(shown, (SIZE, SIZE), mode="bicubic", antialias=True)
    with torch.no_grad():
        expected = model.network(shown)
        assert torch.allclose(model.features(images), expected, atol=1e-4)
        assert torch.allclose(model(images), model.head(expected), atol=1e-4)


def test_the_network_s_own_size_is_the_default(weights):
    data = DataConfig(image_size=16, val_share=0.02, train_images=40)
    config = config_of(weights, image_size=None, epochs=1)
    _, card = obtain_teacher(config, data, open_batches(data), RECIPE, None, 0)
    assert card["image_size"] == 160


@pytest.mark.parametrize(("asked", "size"), [(SIZE, [32, 48]), (9, [9, 14])])
def test_rectangles_keep_their_proportions(asked, size, weights):
    data = DATA.model_copy(update={"image_size": (8, 12)})
    batches = open_batches(data)
    config = config_of(weights, image_size=asked)
    answers, card = obtain_teacher(config, data, batches, RECIPE, None, 0)
    assert card["image_size"] == size and card["data"]["image_size"] == [8, 12]
    model, shapes = built(answers), []
    model.network.register_forward_pre_hook(lambda _, given: shapes.append(given[0].shape))
    assert model(some_views(batches)[0]).isfinite().all()
    assert [list(shape[2:]) for shape in shapes] == [size]


def test_networks_of_a_fixed_size_are_adapted_to_rectangles_where_they_can_be(tmp_path):
    seed_torch(3)
    path = tmp_path / "vit.pt"
    source = timm.create_model("test_vit")
    torch.save(source.state_dict(), path)
    data = DATA.model_copy(update={"image_size": (8, 12)})
    batches = open_batches(data)
    config = config_of(path, name="test_vit", image_size=64, epochs=1)
    model = built(obtain_teacher(config, data, batches, RECIPE, None, 0)[0])
    source.set_input_size(img_size=(64, 96))
    assert torch.allclose(model.network.state_dict()["pos_embed"], source.pos_embed)
    for changes, told in (
        (
            {"image_size": 40},
            r"40x60 px \(.*its own size is 160: choose another teacher.image_size",
        ),
        (
            {"name": "levit_128s"},
            "levit_128s: takes squares of 224 px, not 64x96 px; choose another",
        ),
    ):
        with pytest.raises(InputError, match=told):
            create_teacher(config.model_copy(update=changes), batches)


@pytest.mark.parametrize("passes", [1, 3])
def test_an_interrupted_adaptation_computes_no_feature_twice(passes, batches, weights, monkeypatch):
    config = config_of(weights, epochs=passes)
    whole, _ = obtained(config, batches)
    expected = built(whole).head.weight
    other = config_of(weights, epochs=passes, recipe={"threads": 1, "device": "cpu", "lr": 1e-3})
    monkeypatch.setattr(adapting, "_CHUNK_STEPS", 2)
    asked: list[int] = []
    features = Adapted.features

    def counted(self: Adapted, images: Tensor) -> Tensor:
        asked.append(len(images))
        return features(self, images)

    def dies(_: str, done: float) -> None:
        if done > 0.6:
            raise KeyboardInterrupt

    monkeypatch.setattr(Adapted, "features", counted)
    with pytest.raises(KeyboardInterrupt):
        obtained(other, batches, progress=dies)
    answers, card = obtained(other, batches)
    steps = batches.size("train") // 32
    assert asked.index(256) == passes * steps, "val, in batches of 256, comes after them"
    assert torch.equal(built(answers).head.weight, expected), "the learning rate plays no part"
    assert card["head"]["views"] == passes * steps * 32


def test_a_damaged_chunk_of_features_is_computed_again(tmp_path):
    path = tmp_path / "0000-0000000.npz"
    features = torch.rand(8, 3).half()
    adapting._write_chunk(path, features)
    read = adapting._read_chunk(path)
    assert read is not None and torch.equal(read, features)
    raw = bytearray(path.read_bytes())
    for damage in (raw[:50], raw[:-60], b""):
        path.write_bytes(damage)
        assert adapting._read_chunk(path) is None


def test_nothing_of_val_takes_part_in_the_fit(batches, weights, adapted, tmp_path, monkeypatch):
    config = config_of(weights)
    expected = built(adapted[0]).head.weight

    def refuse(*_: object) -> None:
        raise AssertionError("val was looked at")

    model = create_teacher(config, batches)
    assert isinstance(model, Adapted)
    load_first_weights(model, config, batches, weights)
    monkeypatch.setattr(batches, "evaluation", refuse)
    adapting.fit_head(model, config, batches, 0, tmp_path / "features")
    assert torch.equal(model.head.weight, expected)


def test_a_fifth_of_each_class_is_held_out_and_no_class_as_a_whole():
    labels = np.array([0] * 50 + [1] * 7 + [2] * 2 + [3])
    held_out = adapting._held_out(SimpleNamespace(labels=lambda _: labels), 0)
    assert np.bincount(labels[held_out.numpy()], minlength=4).tolist() == [10, 1, 1, 0]


@pytest.mark.parametrize("classes", [2, 4])
def test_the_regression_finds_the_minimum_that_scikit_learn_finds(classes):
    rng = np.random.default_rng(0)
    labels = rng.integers(classes, size=300)
    features = rng.normal(size=(300, 6)) + rng.normal(size=(classes, 6))[labels]
    decay = 0.01
    start, given = torch.zeros(classes, 7), torch.from_numpy(features).float()
    found = adapting._fitted(given, torch.from_numpy(labels), start, decay)
    assert not start.any()
    logits = features @ found[:, :-1].numpy().T + found[:, -1].numpy()
    # Of two classes scikit-learn penalises one vector, the difference of ours.
    strength = 1 / (decay * len(labels)) * (2 if classes == 2 else 1)
    theirs = LogisticRegression(C=strength, tol=1e-8, max_iter=5000).fit(features, labels)
    expected = theirs.predict_log_proba(features)
    ours = torch.from_numpy(logits).log_softmax(1).numpy()
    assert np.abs(ours - expected).max() < 5e-3


def test_all_of_a_network_is_finetuned_from_the_fitted_head_on(batches, weights, adapted):
    _, of_head = adapted
    recipe = {"threads": 1, "device": "cpu", "batch_size": 20}
    config = config_of(weights, adapt="all", recipe=recipe)
    assert config.recipe.epochs == 2 and config.recipe.lr == 3e-4
    reported: list[object] = []
    answers, card = obtained(config, batches, report=reported.append)
    assert len(reported) == len(card["curve"]) == 2 and card["recipe"]["epochs"] == 2
    assert card["val_top1_percent"] == top1_percent(built(answers), batches, "val")
    assert card["head"]["val_top1_percent"] == pytest.approx(of_head["val_top1_percent"], abs=12)
    before = timm.models.load_state_dict(str(weights))["layer1.0.conv1.weight"]
    assert not torch.equal(built(answers).network.state_dict()["layer1.0.conv1.weight"], before)


def test_whatever_makes_an_adapted_teacher_is_part_of_its_name(batches, weights, adapted, tmp_path):
    other = tmp_path / "other.pt"
    seed_torch(4)
    torch.save(timm.create_model("test_resnet", num_classes=7).state_dict(), other)
    recipe = {"threads": 1, "device": "cpu", "crop": "none"}
    configs = [
        config_of(weights),
        config_of(weights, epochs=3),
        config_of(weights, image_size=48),
        config_of(weights, adapt="all", recipe={"threads": 1, "device": "cpu"}),
        config_of(weights, recipe=recipe),
        config_of(other),
    ]
    keys = [teacher._key(config, batches, 0) for config in configs]
    assert len(set(keys)) == len(keys) and keys[0] != teacher._key(configs[0], batches, 1)
    assert adapted[1]["id"] != obtained(configs[2], batches)[1]["id"], (
        "answers of one are not the other's"
    )
    for change in ({"cache": False}, {"top_k": 2}, {"top1_percent": 4.0}, {"auto": True}):
        assert teacher._key(config_of(weights, **change), batches, 0) == keys[0]


def test_teachers_that_are_not_adapted_are_written_as_before():
    assert list(TeacherConfig().model_dump(mode="json")) == [
        "name",
        "options",
        "weights",
        "top1_percent",
        "recipe",
        "cache",
        "top_k",
    ]
    for given in (
        {"weights": "x.pt", "adapt": "all", "epochs": 3},
        {"weights": "x.pt", "adapt": "head", "image_size": 64},
        "auto",
    ):
        config = TeacherConfig.model_validate(given)
        assert TeacherConfig.model_validate(config.model_dump(mode="json")) == config


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"epochs": 3}, "epochs: is that of an adapted teacher"),
        ({"image_size": 64}, "image_size: is that of an adapted teacher"),
        ({"adapt": "head"}, "adapt: head begins with trained weights; set weights to pretrained"),
        ({"adapt": "body"}, "'none', 'head', 'all' or 'own'"),
        (
            {"adapt": "all", "weights": "x.pt", "epochs": 3, "recipe": {"epochs": 4}},
            "epochs: 3 differs from the 4 of recipe.epochs",
        ),
    ],
)
def test_what_does_not_go_together_is_refused(given, told):
    with pytest.raises(ValidationError, match=told):
        TeacherConfig(**given)


def test_networks_of_a_fixed_size_are_adapted_at_another_where_they_can_be(batches, tmp_path):
    seed_torch(3)
    path = tmp_path / "vit.pt"
    source = timm.create_model("test_vit")
    torch.save(source.state_dict(), path)
    config = config_of(path, name="test_vit", image_size=64, epochs=1)
    model = built(obtained(config, batches)[0])
    assert model.network.state_dict()["pos_embed"].shape[1] == 1 + (64 // 16) ** 2
    source.set_input_size(img_size=64)
    assert torch.allclose(model.network.state_dict()["pos_embed"], source.pos_embed)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        (
            {"name": "levit_128s", "image_size": 64},
            "levit_128s: takes images of 224 px; leave teacher.image_size, now 64, out",
        ),
        (
            {"name": "test_vit", "image_size": 40},
            r"test_vit: does not take images of 40 px \(.*patch size.*its own size is 160: leave",
        ),
        (
            {"name": "test_resnet", "options": {"num_classes": 3}},
            "teacher.options.num_classes: is not the network's to set",
        ),
        ({"name": "test_resnett"}, "unknown teacher 'test_resnett'; did you mean 'test_resnet"),
        ({"weights": "nowhere.pt"}, "teacher.weights: no such file nowhere.pt"),
    ],
)
def test_a_network_that_cannot_be_had_is_told_with_what_is_possible(
    changes, told, batches, weights
):
    with pytest.raises(InputError, match=told):
        obtained(config_of(weights, **changes), batches)


def test_a_network_without_a_classifier_is_refused(batches, weights, monkeypatch):
    class Maps(nn.Module):
        pretrained_cfg: ClassVar = {"mean": (0.5,), "std": (0.5,)}

        def forward(self, images: Tensor) -> Tensor:
            return images

    monkeypatch.setattr(timm, "create_model", lambda *_, **__: Maps())
    with pytest.raises(InputError, match=r"has no classifier .* gives \[1, 1, 32, 32\] for one"):
        create_teacher(config_of(weights), batches)


def test_a_plug_in_is_not_adapted(batches, weights, monkeypatch):
    monkeypatch.setattr(
        "levit_search.distill.teacher_network.find_plugin", lambda _: SimpleNamespace()
    )
    monkeypatch.setattr("levit_search.distill.teacher_network.identity", lambda _: {})
    with pytest.raises(InputError, match=r"teacher.adapt: head is for timm's networks; mine is"):
        create_teacher(config_of(weights, name="mine", image_size=None), batches)
    with pytest.raises(InputError, match=r"teacher.adapt: head is for timm's networks; mine is"):
        create_teacher(config_of(weights, name="mine"), batches)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (
            lambda state: state.update({"layer2.0.conv1.weight": torch.zeros(5, 4, 3, 3)}),
            r"has \[5, 4, 3, 3\] as layer2.0.conv1.weight, which is \[\d+, \d+, 3, 3\] in the netw",
        ),
        (
            lambda state: state.pop("layer1.0.bn1.bias"),
            r"lacks layer1.0.bn1.bias, which is \[\d+\] in the network; expected the weights of th",
        ),
        (
            lambda state: state.update({"layer9.weight": torch.zeros(5)}),
            r"has layer9.weight \[5\], and the network has no such tensor",
        ),
        (
            lambda state: state.update({"conv1.0.weight": torch.zeros(16, 5, 3, 3)}),
            r"has \[16, \d, 3, 3\] as conv1.0.weight, which is \[\d+, 1, 3, 3\]",
        ),
    ],
    ids=["shape", "missing", "unknown", "channels"],
)
def test_a_file_that_does_not_fit_is_told_the_tensor_and_both_shapes(
    change, told, batches, weights, tmp_path
):
    state = timm.models.load_state_dict(str(weights))
    change(state)
    path = tmp_path / "changed.pt"
    torch.save(state, path)
    with pytest.raises(InputError, match=f"teacher test_resnet: {path}: {told}"):
        obtained(config_of(path), batches)


def test_pretrained_weights_out_of_reach_name_the_way_out(batches, tmp_path, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    config = config_of("pretrained")
    with pytest.raises(InputError, match=r"out of reach, set teacher\.weights to a file"):
        obtained(config, batches)


# Whether a search keeps its teacher


def record(trial: int, percent: float | None, taught: bool = False, **changes: Any) -> Record:
    values = {"top1_percent": percent} if percent is not None else {}
    state = "complete" if percent is not None else "pruned"
    fields = {"state": state, "values": values, "evaluation": {}, **changes}
    return Record(
        trial=trial,
        architecture=None,
        reason=None,
        reused_from=fields.pop("reused_from", None),
        seconds=1.0,
        taught=taught,
        **fields,
    )


def choice(records: list[Record], teacher_percent: float, images: int) -> dict[str, Any] | None:
    attributes = {
        "teacher": {"name": "net", "val_top1_percent": teacher_percent},
        "data": {"val_images": images},
    }
    return teacher_choice(records, attributes)


def test_a_teacher_is_kept_where_it_is_better_by_more_than_the_noise():
    first = [record(0, 60.0), record(1, 70.0), record(2, 65.0)]
    kept = choice(first, 80.0, 1000)
    assert kept is not None and kept["kept"]
    assert (kept["best_percent"], kept["best_trial"], kept["networks"]) == (70.0, 1, 3)
    assert "the teacher net is kept: it is better by more than the noise of 1,000" in kept["text"]
    assert "80.00 % to the 70.00 % of trial 1, the best of 3 networks" in kept["text"]
    for percent, images in ((80.0, 100), (72.0, 1000), (60.0, 1000), (70.0, 10**6)):
        dropped = choice(first, percent, images)
        assert dropped is not None and not dropped["kept"], (percent, images)
        assert "is left out: it is not better by more than the noise" in dropped["text"]


def test_a_teacher_is_judged_by_untaught_networks_of_the_study_alone():
    stopped = record(1, None, rungs=({"epoch": 1, "top1_percent": 9.0, "goes_on": False},))
    assert choice([record(0, 60.0), stopped], 80.0, 1000) is None, "two are too few"
    assert choice([stopped] * 3, 80.0, 1000) is None, "none has ended by itself"
    assert choice([record(0, 60.0), stopped, stopped], 80.0, 1000) is not None
    others = [
        record(3, 99.0, taught=True),
        record(4, None, state="failed"),
        record(5, 60.0, reused_from=0),
    ]
    assert choice([record(0, 60.0), record(1, 61.0), *others], 80.0, 1000) is None


class TaughtEngine(StubEngine):
    """Its teacher has 95 % on val, or what a test says; remembers who was taught."""

    data: ClassVar[dict[str, Any]] = {"val_images": 10_000, "guess_percent": 10.0}
    teacher_percent = 95.0
    taught: ClassVar[list[tuple[int, bool]]] = []

    def __init__(self, study: Study, sample: Architecture, settled: Settled) -> None:
        super().__init__(study, sample, settled)
        card = {"name": "net", "val_top1_percent": self.teacher_percent}
        self._events[0].content["teacher"] = card

    def submit(self, trial: int, network: Architecture, taught: bool = True) -> None:
        type(self).taught.append((trial, taught))
        super().submit(trial, network)


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> type[TaughtEngine]:
    monkeypatch.setattr(TaughtEngine, "taught", [])
    monkeypatch.setattr(driver, "make_engine", TaughtEngine)
    return TaughtEngine


def untaught(engine: type[TaughtEngine]) -> list[bool]:
    return [not taught for _, taught in engine.taught]


@pytest.mark.parametrize("percent", [95.0, 30.0])
def test_a_search_decides_after_three_networks(percent, engine, space_file, tmp_path, monkeypatch):
    monkeypatch.setattr(engine, "teacher_percent", percent)
    path = space_file(teacher="auto")
    summary, study = run(path, tmp_path / "s", **{"search.trials": 6})
    is_kept = percent == 95.0
    assert untaught(engine) == [True] * 3 + [not is_kept] * 3
    found = study.attributes()["teacher_choice"]
    assert found["kept"] == is_kept and found == summary.teacher_choice
    best = max(record.values["top1_percent"] for record in study.records()[:3])
    assert found["best_percent"] == best and found["teacher_percent"] == percent
    by_trial = {record.trial: record.taught for record in study.records()}
    assert all(by_trial[trial] == taught for trial, taught in engine.taught)
    asked = Retraining(2)
    teaching = config_for(study, asked).teaching
    assert (teaching is not None and not teaching.auto) if is_kept else teaching is None


def test_the_decision_and_those_before_it_outlast_an_interruption(engine, space_file, tmp_path):
    path = space_file(teacher={"auto": True, "weights": "pretrained"})
    _, whole = run(path, tmp_path / "whole", **{"search.trials": 6})
    expected = [(record.trial, record.taught) for record in whole.records()]
    for stop in (2, 3, 4):
        engine.taught.clear()
        run(path, tmp_path / f"s{stop}", **{"search.trials": stop})
        _, study = run(path, tmp_path / f"s{stop}", **{"search.trials": 6})
        assert [(record.trial, record.taught) for record in study.records()] == expected
        assert study.attributes()["teacher_choice"] == whole.attributes()["teacher_choice"]


def test_a_network_that_was_begun_untaught_goes_on_so(engine, space_file, tmp_path, monkeypatch):
    """Killed while it ran, after which the decision was made."""
    path = space_file(teacher="auto")

    class Killed(TaughtEngine):
        def submit(self, trial: int, network: Architecture, taught: bool = True) -> None:
            if len(self.taught) == 2:
                raise KeyboardInterrupt
            super().submit(trial, network, taught)

    monkeypatch.setattr(driver, "make_engine", Killed)
    study = Study.create(tmp_path / "s", read_config(path, {}), ["test"])
    with pytest.raises(KeyboardInterrupt):
        search(study)
    monkeypatch.setattr(driver, "make_engine", TaughtEngine)
    _, study = run(path, tmp_path / "s")
    trials = [trial for trial, _ in engine.taught]
    assert len(set(trials)) == len(trials) == 5
    assert untaught(engine) == [True, True, True, False, False]


def test_a_teacher_that_is_not_left_to_the_search_teaches_all(engine, space_file, tmp_path):
    _, study = run(space_file(teacher={"name": "test_resnet"}), tmp_path / "s")
    assert untaught(engine) == [False] * 5 and "teacher_choice" not in study.attributes()


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"accuracy": "supernet"}, "teacher.auto: is decided by candidates that are trained"),
        ({"objectives": ["params", "flops"]}, "teacher.auto: is decided by candidates that are"),
    ],
)
def test_auto_needs_candidates_that_are_trained(changes, told, space_file):
    with pytest.raises(InputError, match=told):
        read_config(space_file(teacher="auto"), changes)


def test_auto_alone_is_a_pretrained_network_with_a_new_head(space_file):
    config = read_config(space_file(teacher="auto"), {}).teacher
    assert config is not None and config.auto
    assert (config.name, config.weights, config.adapt) == (
        "tf_efficientnet_lite0",
        "pretrained",
        "head",
    )
    changes = {"teacher": "auto", "teacher.name": "test_vit", "teacher.weights": "train"}
    config = read_config(space_file(), changes).teacher
    assert config is not None and config.auto and config.adapt == "none"
    assert (config.name, config.weights) == ("test_vit", "train")


def test_a_real_search_teaches_with_an_adapted_network(weights, space_file, tmp_path, monkeypatch):
    """From the file to the report; the digits are easy, and the teacher may be left out."""
    monkeypatch.setattr(driver, "make_engine", HereEngine)
    given = json.loads(json.dumps(config_of(weights, auto=True).model_dump(mode="json")))
    path = space_file(teacher=given)
    summary, study = run(path, tmp_path / "s", **{"search.trials": 4})
    taught = {record.trial: record.taught for record in study.records() if not record.reused_from}
    choice = study.attributes()["teacher_choice"]
    assert [*taught.values()] == [False] * 3 + [choice["kept"]]
    card = study.attributes()["teacher"]
    assert choice["teacher_percent"] == card["val_top1_percent"] > 30
    assert (study.folder / "teacher").is_dir() and summary.teacher_choice == choice
    from levit_search.report import write_report

    text = write_report(study).read_text()
    assert choice["text"][:60] in text


def test_the_commands_on_teachers_know_adapted_ones(
    weights: Path, cli: Cli, space_file: Callable[..., Path]
) -> None:
    given = config_of(weights).model_dump(mode="json")
    path = space_file(teacher=given)
    filled = cli("teacher", "fill", path, "--epochs", 1)
    assert filled.returncode == 0, filled.stderr
    card = " ".join(filled.stdout.split())
    assert "from resnet.safetensors with a new head" in card
    assert f"px, shown to it at {SIZE} px." in card and "features" in filled.stderr
    shown = cli("teacher", "show", path, "--json")
    assert json.loads(shown.stdout)["teacher"]["adapt"] == "head"
    assert json.loads(shown.stdout)["answers"]["batches_kept"] == [4]


def test_outside_of_a_search_auto_is_refused(cli: Cli, tiny: Architecture, tmp_path: Path) -> None:
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(tiny.model_dump(mode="json")))
    sizes = ("--set", "data.image_size=16", "--set", "data.train_images=100")
    done = cli("train", "tiny.yaml", *sizes, "--set", "teacher=auto")
    assert done.returncode == 2, done.stderr
    assert "teacher.auto: only a search can tell" in done.stderr
