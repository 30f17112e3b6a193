"""Generated pictures: endless, the same for the same seed, and told apart by their classes."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from levit_search.batches import open_batches
from levit_search.data import DataConfig
from levit_search.data import generated as generation
from levit_search.data.generated import KINDS, UNLABELLED, Generated
from levit_search.errors import InputError
from levit_search.recipe import Recipe

SIZE = 16
CPU = torch.device("cpu")


def config(**changes: object) -> DataConfig:
    return DataConfig.model_validate({"name": "generated", "image_size": SIZE, **changes})


@pytest.fixture(autouse=True)
def _few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(generation, "EPOCH_IMAGES", 64)
    monkeypatch.setattr("levit_search.batches.batch.EPOCH_IMAGES", 64)
    monkeypatch.setattr(generation, "_HELD_OUT", 32)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [8, 33])
def test_a_picture_has_the_size_and_depends_on_class_and_numbers_alone(
    kind: str, size: int
) -> None:
    drawn = [KINDS[kind](label, size, np.random.default_rng(5)) for label in (3, 3, 4)]
    assert {(each.mode, each.size) for each in drawn} == {("RGB", (size, size))}
    first, again, other = (each.tobytes() for each in drawn)
    assert first == again
    assert first != other


@pytest.mark.parametrize("kind", KINDS)
def test_a_class_is_told_from_others_by_shape_whatever_the_colours(kind: str) -> None:
    """The nearest of eight classes by the edges of mean pictures beats guessing by far."""

    def edges(label: int, number: int) -> np.ndarray:
        picture = KINDS[kind](label, 32, np.random.default_rng([label, number]))
        pixels = np.asarray(picture, float)
        varied = int(np.argmax(np.ptp(pixels, axis=(0, 1))))
        spectrum = np.abs(np.fft.fft2(pixels[..., varied]))
        spectrum[0, 0] = 0
        return np.log1p(spectrum / spectrum.std()).ravel()

    means = np.stack([np.mean([edges(c, n) for n in range(20)], 0) for c in range(8)])
    right = [
        int(np.argmin(((means - edges(c, n)) ** 2).sum(1)) == c)
        for c in range(8)
        for n in range(20, 26)
    ]
    assert np.mean(right) > 0.4  # of 1 in 8


def test_all_classes_can_be_drawn_with_two_colours_that_differ() -> None:
    for kind, count in generation._NUM_CLASSES.items():
        for label in range(0, count, 7):
            pixels = np.asarray(KINDS[kind](label, SIZE, np.random.default_rng(label)), int)
            assert np.ptp(pixels, axis=(0, 1)).max() > 20, (kind, label)


def test_epochs_show_other_pictures_and_val_stays() -> None:
    batches = open_batches(config())
    recipe = Recipe(batch_size=32, crop="none")

    def shown(seed: int, epoch: int) -> torch.Tensor:
        return torch.cat([each.images for each in batches.train(seed, epoch, recipe, CPU)])

    first, second, other, again = shown(0, 0), shown(0, 1), shown(1, 0), shown(0, 0)
    assert first.shape == (64, 3, SIZE, SIZE)
    assert torch.equal(first, again)
    assert not torch.equal(first, second)
    assert not torch.equal(first, other)
    val = [next(iter(open_batches(config()).evaluation("val", 32, CPU)))[0] for _ in range(2)]
    assert torch.equal(*val)


def test_so_many_pictures_come_again_in_the_same_views() -> None:
    batches = open_batches(config(train_images=128))
    recipe = Recipe(batch_size=32, hflip=True)
    assert [batches.shown(epoch) for epoch in range(5)] == [0, 1, 0, 1, 0]
    views = [next(iter(batches.train(0, epoch, recipe, CPU))).images for epoch in (1, 2, 3)]
    assert torch.equal(views[0], views[2])
    assert not torch.equal(views[0], views[1])


def test_kinds_have_classes_of_their_own_and_unknown_ones_are_refused() -> None:
    assert len(Generated(config(name="generated/textures")).describe().class_names) == 100
    assert len(Generated(config()).describe().class_names) == 400
    with pytest.raises(ValueError, match="generated/contours"):
        config(name="generated/contour")


def test_pictures_of_a_folder_come_without_labels(tmp_path: Path) -> None:
    (tmp_path / "deep" / "er").mkdir(parents=True)
    Image.new("RGB", (40, 20), "red").save(tmp_path / "deep" / "er" / "a.png")
    Image.new("L", (9, 30), 200).save(tmp_path / "b.png")
    batches = open_batches(config(root=str(tmp_path)))
    recipe = Recipe(batch_size=32, crop="none")
    labels = torch.cat([each.targets for each in batches.train(0, 0, recipe, CPU)])
    assert int((labels == UNLABELLED).sum()) == 48
    alone = open_batches(config(name="generated/crops", root=str(tmp_path)))
    labels = torch.cat([each.targets for each in alone.train(0, 0, recipe, CPU)])
    assert (labels == UNLABELLED).all()
    assert alone.info.num_classes == 400
    with pytest.raises(InputError, match=r"data\.root: generated/crops"):
        open_batches(config(name="generated/crops"))
    assert (batches.labels("val") >= 0).all()
    with pytest.raises(InputError, match="cannot be mixed"):
        next(iter(batches.train(0, 0, Recipe(batch_size=32, mixup=0.2), CPU)))


def test_a_folder_without_pictures_and_one_of_damaged_ones_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no folder with pictures"):
        open_batches(config(root=str(tmp_path / "none")))
    (tmp_path / "broken.png").write_bytes(b"no picture")
    with pytest.raises(InputError, match=r"broken\.png"):
        open_batches(config(root=str(tmp_path)))


def test_rectangles_are_the_middle_of_squares() -> None:
    batches = open_batches(config(image_size=[8, 16]))
    assert next(iter(batches.evaluation("val", 4, CPU)))[0].shape == (4, 3, 8, 16)


def test_a_tenth_of_the_pictures_is_grey(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(generation, "_HELD_OUT", 300)
    drawn = Generated(config()).sources()["val"]
    images = np.stack([np.asarray(drawn.open(index)) for index in range(300)])
    assert 15 <= (images == images[..., :1]).all((1, 2, 3)).sum() <= 48
