"""Batches: one contract for data in memory and in files, then what each of them does to images."""

import random
from io import BytesIO
from itertools import combinations, product
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from levit_search.batches import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    Batches,
    FileBatches,
    MemoryBatches,
    open_batches,
)
from levit_search.data import Arrays, DataConfig, DataInfo
from levit_search.errors import InputError
from levit_search.recipe import Recipe

SIZE = 16
RECIPE = Recipe(batch_size=8)
PLAIN = Recipe(batch_size=8, crop=False, hflip=False)


def make_folder(root: Path) -> Path:
    """30 training and 6 test images in two classes, of noise and as large as they are asked for."""
    noise = np.random.default_rng(0)
    for part, name, count in product(("train", "val"), ("a", "b"), (15,)):
        (root / part / name).mkdir(parents=True)
        for number in range(count if part == "train" else 3):
            pixels = noise.integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / part / name / f"{number:02}.png")
    return root


def folder_config(root: Path, image_size: int = SIZE) -> DataConfig:
    return DataConfig(name="folder", root=str(root), image_size=image_size)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_folder(tmp_path_factory.mktemp("images"))


@pytest.fixture(params=["memory", "files"])
def batches(request: pytest.FixtureRequest, folder: Path) -> Batches:
    """24 images to fit on in files, and 60 in memory."""
    if request.param == "files":
        return open_batches(folder_config(folder))
    return open_batches(DataConfig(image_size=SIZE, train_images=60))


def gathered(pairs: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    return torch.cat([images for images, _ in pairs]), torch.cat([labels for _, labels in pairs])


def epoch(batches: Batches, seed: int, number: int, recipe: Recipe = RECIPE) -> Tensor:
    return gathered(list(batches.train(seed, number, recipe)))[0]


def as_set(images: Tensor) -> set[bytes]:
    return {image.numpy().tobytes() for image in images}


def test_batches_have_the_shapes_and_types_of_the_contract(batches):
    channels, count = batches.info.in_channels, batches.size("train")
    pairs = list(batches.train(0, 0, RECIPE))
    assert len(pairs) == count // 8
    for images, labels in [*pairs, *batches.evaluation("test", 1000)]:
        assert images.shape[1:] == (channels, SIZE, SIZE) and images.dtype == torch.float32
        assert labels.shape == (len(images),) and labels.dtype == torch.int64


def test_a_last_short_batch_is_left_out_unless_it_is_the_only_one(batches):
    count = batches.size("train")
    for batch_size, lengths in [(count - 1, [count - 1]), (count, [count]), (count + 1, [count])]:
        recipe = Recipe(batch_size=batch_size)
        assert [len(labels) for _, labels in batches.train(0, 0, recipe)] == lengths


def test_seed_and_epoch_decide_every_pixel(batches):
    images, labels = gathered(list(batches.train(0, 1, RECIPE)))
    torch.manual_seed(99)
    random.seed(99)
    np.random.seed(99)
    next(batches.train(0, 2, RECIPE))
    list(batches.evaluation("val", 5))
    again, labels_again = gathered(list(batches.train(0, 1, RECIPE)))
    assert torch.equal(images, again) and torch.equal(labels, labels_again)


def test_another_seed_or_epoch_gives_another_order_and_other_views(batches):
    whole = Recipe(batch_size=batches.size("train"))
    still = whole.model_copy(update={"crop": False, "hflip": False})
    keys = [(0, 0), (0, 1), (1, 0), (1, 1)]
    for recipe, all_alike in ((still, True), (whole, False)):
        orders = [epoch(batches, *key, recipe) for key in keys]
        for one, other in combinations(orders, 2):
            assert not torch.equal(one, other)
            assert (as_set(one) == as_set(other)) == all_alike


def test_the_process_keeps_its_random_state(batches):
    torch.manual_seed(5)
    random.seed(5)
    np.random.seed(5)
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
    list(batches.train(0, 0, RECIPE))
    list(batches.evaluation("val", 4))
    assert random.getstate() == before[1]
    assert np.random.get_state()[1].tolist() == before[2]
    assert torch.equal(torch.get_rng_state(), before[0])


@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_evaluation_gives_every_image_once_in_one_order(batches, split):
    images, labels = gathered(list(batches.evaluation(split, 5)))
    assert len(labels) == batches.size(split)
    at_once, labels_at_once = gathered(list(batches.evaluation(split, 1000)))
    assert torch.equal(images, at_once) and torch.equal(labels, labels_at_once)
    assert len(as_set(images)) == len(labels)


def test_without_augmentation_training_shows_the_images_themselves(batches):
    whole = PLAIN.model_copy(update={"batch_size": batches.size("train")})
    shown, labels = gathered(list(batches.train(0, 0, whole)))
    if isinstance(batches, FileBatches):
        expected = file_images(batches)
    else:
        expected, _ = gathered(list(batches.evaluation("train", 1000)))
    order = [int((expected - image).abs().flatten(1).amax(1).argmin().item()) for image in shown]
    assert sorted(order) == list(range(len(expected)))
    torch.testing.assert_close(shown, expected[order])
    in_order = gathered(list(batches.evaluation("train", 1000)))[1]
    assert torch.equal(labels, in_order[order])


def file_images(batches: FileBatches) -> Tensor:
    """The training images as they stand in their files, ImageNet's colours normalised."""
    paths = batches._files["train"].paths
    pixels = np.stack([np.asarray(Image.open(path)) for path in paths]) / 255
    normalised = (pixels - IMAGENET_MEAN) / IMAGENET_STD
    return torch.from_numpy(normalised).permute(0, 3, 1, 2).float()


def noise_in_memory(hflip: bool, count: int = 64) -> MemoryBatches:
    noise = np.random.default_rng(1)
    images = noise.integers(0, 256, (count, 1, SIZE, SIZE), dtype=np.uint8)
    labels = np.arange(count, dtype=np.int64)
    split = Arrays(images, labels)
    info = DataInfo(1, tuple(str(label) for label in labels), hflip=hflip)
    return MemoryBatches(info, {"train": split, "val": split, "test": split}, SIZE)


def test_training_images_in_memory_have_mean_zero_and_unit_deviation():
    shown = epoch(noise_in_memory(hflip=False), 0, 0, PLAIN)
    assert shown.mean().item() == pytest.approx(0, abs=1e-4)
    assert shown.std().item() == pytest.approx(1, abs=1e-4)


def test_cropped_images_in_memory_are_shifts_by_an_eighth_with_a_black_border():
    batches = noise_in_memory(hflip=False)
    plain = gathered(list(batches.evaluation("train", 64)))[0]
    border = SIZE // 8
    padded = torch.nn.functional.pad(plain, (border,) * 4, value=plain.min().item())
    seen = set()
    for images, labels in batches.train(0, 0, RECIPE):
        for image, label in zip(images, labels, strict=True):
            shifts = [
                (y, x)
                for y, x in product(range(2 * border + 1), repeat=2)
                if torch.equal(image, padded[label, :, y : y + SIZE, x : x + SIZE])
            ]
            assert len(shifts) == 1
            seen |= set(shifts)
    assert {y for y, _ in seen} == {x for _, x in seen} == set(range(2 * border + 1))
    assert any(y != x for y, x in seen)


def test_each_seed_and_epoch_shifts_images_in_memory_in_its_own_way():
    """One image many times over, so that the order makes no difference."""
    image = np.random.default_rng(2).integers(0, 256, (1, 1, SIZE, SIZE), dtype=np.uint8)
    split = Arrays(image.repeat(32, axis=0), np.zeros(32, np.int64))
    info = DataInfo(1, ("a", "b"), hflip=False)
    batches = MemoryBatches(info, {"train": split, "val": split, "test": split}, SIZE)
    shown = [epoch(batches, *key) for key in [(0, 0), (0, 1), (1, 0), (1, 1)]]
    assert not any(torch.equal(a, b) for a, b in combinations(shown, 2))


@pytest.mark.parametrize(
    ("allowed_by_data", "hflip", "mirrors"),
    [(True, None, True), (False, None, False), (False, True, True), (True, False, False)],
)
@pytest.mark.parametrize("in_files", [False, True], ids=["memory", "files"])
def test_images_are_mirrored_where_data_or_recipe_say_so(
    in_files, allowed_by_data, hflip, mirrors, folder
):
    recipe = Recipe(batch_size=8, crop=False, hflip=hflip)
    if in_files:
        batches = open_batches(folder_config(folder))
        batches.info = batches.info._replace(hflip=allowed_by_data)
    else:
        batches = noise_in_memory(hflip=allowed_by_data)
    plain = as_set(epoch(batches, 0, 0, recipe.model_copy(update={"hflip": False})))
    shown = epoch(batches, 0, 0, recipe)
    is_plain = [bool(as_set(image[None]) & plain) for image in shown]
    is_mirrored = [bool(as_set(image.flip(-1)[None]) & plain) for image in shown]
    assert all(a != b for a, b in zip(is_plain, is_mirrored, strict=True))
    assert 0.2 < sum(is_mirrored) / len(shown) < 0.8 if mirrors else not any(is_mirrored)


def test_digits_are_never_mirrored_unless_the_recipe_insists():
    batches = open_batches(DataConfig(image_size=8, train_images=60))
    whole = Recipe(batch_size=60, crop=False)
    plain = as_set(epoch(batches, 0, 0, whole))
    assert plain == as_set(gathered(list(batches.evaluation("train", 60)))[0])
    insisted = as_set(epoch(batches, 0, 0, whole.model_copy(update={"hflip": True})))
    assert 0 < len(insisted - plain) < 60


@pytest.mark.parametrize("size", [8, SIZE, 20])
@pytest.mark.parametrize("kind", ["memory", "files"])
def test_images_come_in_the_size_asked_for(kind, size, folder):
    config = DataConfig(image_size=size) if kind == "memory" else folder_config(folder, size)
    batches = open_batches(config)
    for pairs in (batches.train(0, 0, RECIPE), batches.evaluation("val", 4)):
        assert next(iter(pairs))[0].shape[2:] == (size, size)


def test_file_views_do_not_depend_on_the_number_of_loader_workers(folder):
    batches = open_batches(folder_config(folder))
    alone = epoch(batches, 0, 0, Recipe(batch_size=12))  # two batches: read in this process
    for workers in (1, 2):
        torch.set_num_threads(workers)
        assert torch.equal(epoch(batches, 0, 0, Recipe(batch_size=2)), alone)


def broken_png() -> bytes:
    """Pixels that stop before they are all there, which Pillow reports in a way of its own."""
    pixels = np.random.default_rng(0).integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)
    file = BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    content = file.getvalue()
    length_at = content.index(b"IDAT") - 4
    return content[:length_at] + (100).to_bytes(4, "big") + content[length_at + 4 :]


@pytest.mark.parametrize(
    "content", [b"", b"no image", broken_png()], ids=["empty", "text", "broken PNG"]
)
def test_an_unreadable_image_is_named(content, tmp_path):
    root = make_folder(tmp_path)
    batches = open_batches(folder_config(root))
    damaged = root / "val" / "b" / "01.png"
    damaged.write_bytes(content)
    with pytest.raises(InputError, match=str(damaged)):
        list(batches.evaluation("test", 4))


def test_an_unreadable_image_is_named_in_one_line_when_a_worker_meets_it(tmp_path):
    root = make_folder(tmp_path)
    batches = open_batches(folder_config(root))
    for path in (root / "train").rglob("*.png"):
        path.write_bytes(b"no image")
    with pytest.raises(InputError, match=str(root)) as raised:
        list(batches.train(0, 0, Recipe(batch_size=2)))  # twelve batches: read by a worker
    assert "Traceback" not in str(raised.value)
