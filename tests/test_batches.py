"""Batches: one contract for data in memory and on disk, then what each of them does to images."""

import gc
import math
import multiprocessing.synchronize
import os
import random
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from io import BytesIO
from itertools import combinations, islice, product
from multiprocessing import shared_memory
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from levit_search import architecture
from levit_search.batches import Batch, Batches, on_disk, open_batches
from levit_search.batches.batch import MemoryBatches
from levit_search.batches.on_disk import DiskBatches
from levit_search.data import Arrays, DataConfig, DataInfo
from levit_search.errors import InputError, TrialError
from levit_search.image_size import Sides, sides, size_text
from levit_search.model import build
from levit_search.recipe import Recipe
from levit_search.train import fit
from tests.networks import tiny_description

SIZE = 16
CPU = torch.device("cpu")
SHORT = Recipe(batch_size=8, workers=0)
PLAIN = Recipe(batch_size=8, workers=0, crop="none", hflip=False)
LEVIT = Recipe(recipe="levit", batch_size=8, workers=0)
VIEWS = {
    "short": SHORT,
    "plain": PLAIN,
    "jitter": Recipe(batch_size=8, workers=0, crop="resized", color_jitter=0.4, random_erasing=0.5),
    "levit": LEVIT,
}


def make_folder(root: Path, mode: str = "RGB") -> Path:
    """30 training and 6 test images in two classes, of noise and as large as they are asked for."""
    noise = np.random.default_rng(0)
    for part, name, count in product(("train", "val"), ("a", "b"), (15,)):
        (root / part / name).mkdir(parents=True)
        for number in range(count if part == "train" else 3):
            pixels = noise.integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)
            picture = Image.fromarray(pixels).convert(mode)
            picture.save(root / part / name / f"{number:02}.png")
    return root


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """One for all tests of this file: what was found in the folders that they share stays known."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.getbasetemp() / "batches"))


def folder_config(
    root: Path, image_size: int | Sides = SIZE, in_memory: bool = False
) -> DataConfig:
    return DataConfig(name="folder", root=str(root), image_size=image_size, in_memory=in_memory)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_folder(tmp_path_factory.mktemp("images"))


@pytest.fixture(scope="module")
def gray_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_folder(tmp_path_factory.mktemp("gray"), "L")


@pytest.fixture(params=["digits", "memory", "pictures", "gray pictures"])
def batches(request: pytest.FixtureRequest, folder: Path, gray_folder: Path) -> Batches:
    """24 images to fit on in a folder, and 60 digits."""
    if request.param == "digits":
        return open_batches(DataConfig(image_size=SIZE, train_images=60))
    root = gray_folder if request.param == "gray pictures" else folder
    return open_batches(folder_config(root, in_memory=request.param == "memory"))


@pytest.fixture(params=VIEWS)
def recipe(request: pytest.FixtureRequest) -> Recipe:
    return VIEWS[request.param]


def shown(batches: Batches, seed: int, epoch: int, recipe: Recipe, first_step: int = 0) -> Batch:
    """The batches of an epoch, in one."""
    return gathered(list(batches.train(seed, epoch, recipe, CPU, first_step)))


def gathered(pairs: list[Batch] | list[tuple[Tensor, Tensor]]) -> Batch:
    return Batch(torch.cat([pair[0] for pair in pairs]), torch.cat([pair[1] for pair in pairs]))


def evaluated(batches: Batches, split: str = "train", batch_size: int = 1000) -> Batch:
    return gathered(list(batches.evaluation(split, batch_size, CPU)))


def as_set(images: Tensor) -> set[bytes]:
    return {image.numpy().tobytes() for image in images}


def is_same(one: Batch, other: Batch) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def test_batches_have_the_shapes_and_types_of_the_contract(batches, recipe):
    channels, count = batches.info.in_channels, batches.size("train")
    pairs = list(batches.train(0, 0, recipe, CPU))
    assert len(pairs) == batches.steps(recipe) == count // 8
    assert batches.batch_size(recipe) == 8
    for images, targets in pairs:
        assert images.shape == (8, channels, SIZE, SIZE) and images.dtype == torch.float32
        assert images.isfinite().all() and images.is_contiguous()
        if recipe is LEVIT:
            assert targets.shape == (8, batches.info.num_classes)
            torch.testing.assert_close(targets.sum(1), torch.ones(8))
        else:
            assert targets.shape == (8,) and targets.dtype == torch.int64
    images, labels = evaluated(batches, "test")
    assert images.shape[1:] == (channels, SIZE, SIZE) and images.dtype == torch.float32
    assert labels.shape == (len(images),) and labels.dtype == torch.int64


def test_a_last_short_batch_is_left_out_unless_it_is_the_only_one(batches):
    count = batches.size("train")
    for batch_size, lengths in [(count - 1, [count - 1]), (count, [count]), (count + 1, [count])]:
        recipe = SHORT.model_copy(update={"batch_size": batch_size})
        assert [len(batch.images) for batch in batches.train(0, 0, recipe, CPU)] == lengths


def test_images_that_are_paired_up_come_in_even_numbers():
    batches = open_batches(DataConfig(image_size=8, train_images=59))
    recipe = Recipe(batch_size=64, mixup=0.8)
    assert batches.batch_size(recipe) == 58 and batches.steps(recipe) == 1
    assert [len(batch.images) for batch in batches.train(0, 0, recipe, CPU)] == [58]


def test_seed_and_epoch_decide_every_pixel(batches, recipe):
    once = shown(batches, 0, 1, recipe)
    torch.manual_seed(99)
    random.seed(99)
    np.random.seed(99)
    next(batches.train(0, 2, recipe, CPU))
    evaluated(batches, "val", 5)
    assert is_same(shown(batches, 0, 1, recipe), once)


def test_an_epoch_may_be_entered_at_any_batch(batches, recipe):
    whole = list(batches.train(3, 1, recipe, CPU))
    for first_step in (0, 1, len(whole) - 1):
        rest = list(batches.train(3, 1, recipe, CPU, first_step))
        assert len(rest) == len(whole) - first_step
        assert all(is_same(*pair) for pair in zip(rest, whole[first_step:], strict=True))
    assert list(batches.train(3, 1, recipe, CPU, len(whole))) == []


def test_several_epochs_may_be_under_way_at_once(batches, recipe):
    apart = [shown(batches, 0, epoch, recipe) for epoch in (0, 1)]
    pairs = list(
        zip(
            batches.train(0, 0, recipe, CPU),
            batches.train(0, 1, recipe, CPU),
            strict=True,
        )
    )
    for expected, together in zip(apart, zip(*pairs, strict=True), strict=True):
        assert is_same(gathered(list(together)), expected)


def test_another_seed_or_epoch_gives_another_order_and_other_views(batches):
    whole = SHORT.model_copy(update={"batch_size": batches.size("train")})
    still = whole.model_copy(update={"crop": "none", "hflip": False})
    keys = [(0, 0), (0, 1), (1, 0), (1, 1)]
    for recipe, all_alike in ((still, True), (whole, False)):
        orders = [shown(batches, *key, recipe).images for key in keys]
        for one, other in combinations(orders, 2):
            assert not torch.equal(one, other)
            assert (as_set(one) == as_set(other)) == all_alike


@pytest.mark.parametrize(
    "change",
    [
        {"crop": "resized"},
        {"color_jitter": 0.4},
        {"rand_augment": "rand-m9-n8"},
        {"random_erasing": 1.0},
        {"mixup": 0.8},
        {"cutmix": 1.0},
    ],
    ids=lambda change: next(iter(change)),
)
def test_each_part_of_a_recipe_changes_the_views_and_each_epoch_anew(batches, change):
    recipe = PLAIN.model_copy(update=change)
    plain = as_set(shown(batches, 0, 0, PLAIN).images)
    views = [as_set(shown(batches, *key, recipe).images) for key in [(0, 0), (0, 1), (1, 0)]]
    for one, other in combinations([plain, *views], 2):
        assert len(one & other) < len(plain) / 2


def test_repeated_images_get_views_of_their_own(batches):
    recipe = SHORT.model_copy(update={"repeated_augmentation": 2, "crop": "resized"})
    images, labels = shown(batches, 0, 0, recipe)
    assert len(images) == batches.steps(recipe) * 8
    assert torch.equal(labels[::2], labels[1::2])
    assert len(as_set(images)) > 0.9 * len(images)


def test_the_process_keeps_its_random_state(batches, recipe):
    torch.manual_seed(5)
    random.seed(5)
    np.random.seed(5)
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
    for workers in (0, 1):
        shown(batches, 0, 0, recipe.model_copy(update={"workers": workers}))
    evaluated(batches, "val", 4)
    assert random.getstate() == before[1]
    assert np.random.get_state()[1].tolist() == before[2]
    assert torch.equal(torch.get_rng_state(), before[0])


@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_evaluation_gives_every_image_once_in_one_order(batches, split):
    images, labels = evaluated(batches, split, 5)
    assert len(labels) == batches.size(split)
    assert is_same(evaluated(batches, split), Batch(images, labels))
    assert len(as_set(images)) == len(labels)


def test_without_augmentation_training_shows_the_images_themselves(batches):
    whole = PLAIN.model_copy(update={"batch_size": batches.size("train")})
    images, labels = shown(batches, 0, 0, whole)
    expected, in_order = evaluated(batches)
    order = [int((expected - image).abs().flatten(1).amax(1).argmin().item()) for image in images]
    assert sorted(order) == list(range(len(expected)))
    assert torch.equal(images, expected[order])
    assert torch.equal(labels, in_order[order])


def test_the_identity_of_the_data_is_that_of_its_training_images_and_their_size(folder):
    def data_id(**changes: object) -> str:
        config = folder_config(folder).model_copy(update=changes)
        return open_batches(config).data_id

    ids = [data_id(), data_id(image_size=8), data_id(train_images=10), data_id(in_memory=True)]
    assert len(set(ids)) == 4 and ids[0] == data_id()


def test_a_size_left_out_is_that_of_the_data(folder):
    for config in (DataConfig(), folder_config(folder).model_copy(update={"image_size": None})):
        batches = open_batches(config)
        assert evaluated(batches, "val").images.shape[-1] == batches.info.image_size


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU; torch sees none")
def test_a_gpu_is_shown_what_a_cpu_is(batches, recipe):
    gpu = torch.device("cuda")
    for one, other in zip(
        batches.train(0, 0, recipe, gpu), batches.train(0, 0, recipe, CPU), strict=True
    ):
        assert one.images.device.type == one.targets.device.type == "cuda"
        # Resizing and turning may round a pixel the other way.
        difference = (one.images.cpu() - other.images).abs()
        assert (difference > 0.05).float().mean() < 0.02
        torch.testing.assert_close(one.targets.cpu(), other.targets)
    images, labels = gathered(list(batches.evaluation("val", 5, gpu)))
    expected = evaluated(batches, "val")
    torch.testing.assert_close(images.cpu(), expected.images)
    assert torch.equal(labels.cpu(), expected.targets)


# In memory


def noise_in_memory(hflip: bool, count: int = 64, channels: int = 1) -> MemoryBatches:
    noise = np.random.default_rng(1)
    images = noise.integers(0, 256, (count, channels, SIZE, SIZE), dtype=np.uint8)
    labels = np.arange(count, dtype=np.int64)
    split = Arrays(images, labels)
    info = DataInfo(channels, tuple(str(label) for label in labels), hflip, SIZE)
    return MemoryBatches(info, {"train": split, "val": split, "test": split})


@pytest.mark.parametrize("channels", [1, 3])
def test_training_images_in_memory_have_mean_zero_and_unit_deviation(channels):
    images = shown(noise_in_memory(hflip=False, channels=channels), 0, 0, PLAIN).images
    for channel in images.unbind(1):
        assert channel.mean().item() == pytest.approx(0, abs=1e-4)
        assert channel.std().item() == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize("channels", [1, 3])
def test_shifted_images_in_memory_are_moved_by_an_eighth_and_go_on_as_at_their_edge(channels):
    batches = noise_in_memory(hflip=False, channels=channels)
    border = SIZE // 8
    padded = torch.nn.functional.pad(evaluated(batches).images, (border,) * 4, mode="replicate")
    seen = set()
    for image, label in zip(*shown(batches, 0, 0, SHORT), strict=True):
        shifts = [
            (y, x)
            for y, x in product(range(2 * border + 1), repeat=2)
            if torch.allclose(image, padded[label, :, y : y + SIZE, x : x + SIZE], atol=1e-5)
        ]
        assert len(shifts) == 1
        seen |= set(shifts)
    assert {y for y, _ in seen} == {x for _, x in seen} == set(range(2 * border + 1))
    assert any(y != x for y, x in seen)


def arrays_in_memory(images: NDArray[np.uint8]) -> MemoryBatches:
    """Images [N, C, S, S] of two classes in turn."""
    split = Arrays(images, np.arange(len(images)) % 2)
    info = DataInfo(images.shape[1], ("a", "b"), True, images.shape[-1])
    return MemoryBatches(info, {"train": split, "val": split, "test": split})


def noisy(channels: int, low: int, high: int) -> NDArray[np.uint8]:
    noise = np.random.default_rng(3)
    return noise.integers(low, high + 1, (48, channels, SIZE, SIZE), dtype=np.uint8)


def with_last_channel(last: NDArray[np.uint8] | int) -> NDArray[np.uint8]:
    images = noisy(3, 0, 255)
    images[:, 2:] = last
    return images


def with_one_pixel_apart() -> NDArray[np.uint8]:
    images = with_last_channel(255)
    images[0, 2, 0, 0] = 0
    return images


DULL = {
    "one value": with_last_channel(255),
    "two values next to each other": with_last_channel(noisy(1, 254, 255)),
    "one pixel apart": with_one_pixel_apart(),
    "all channels of one value": np.full((48, 3, SIZE, SIZE), 128, np.uint8),
    "grey of one value": np.zeros((48, 1, SIZE, SIZE), np.uint8),
}


@pytest.mark.parametrize("recipe", [SHORT, PLAIN, LEVIT], ids=["short", "plain", "levit"])
@pytest.mark.parametrize("images", DULL.values(), ids=DULL)
def test_channels_that_tell_nothing_do_no_harm(images, recipe):
    batches = arrays_in_memory(images)
    for shown_images in (shown(batches, 0, 0, recipe).images, evaluated(batches).images):
        assert shown_images.isfinite().all() and shown_images.abs().max() < 50
    of_any_colour = torch.tensor([0.0, 255.0])[:, None] - torch.tensor(batches.mean)
    assert (of_any_colour / torch.tensor(batches.std)).abs().max() < 50


def test_a_channel_of_one_value_is_divided_by_what_the_others_are():
    batches = arrays_in_memory(with_last_channel(7))
    assert batches.mean[2] == 7
    assert batches.std[2] == pytest.approx((batches.std[0] + batches.std[1]) / 2)


def test_images_of_little_contrast_are_normalised_like_others():
    batches = arrays_in_memory(noisy(3, 98, 108))
    images = shown(batches, 0, 0, PLAIN).images
    assert all(2.5 < deviation < 3.5 for deviation in batches.std)
    assert images.std().item() == pytest.approx(1, abs=1e-3)


def test_a_network_trains_where_no_image_differs_from_another():
    batches = arrays_in_memory(DULL["all channels of one value"])
    network = architecture.parse(tiny_description(in_channels=3, num_classes=2))
    training = fit(build(network), batches, Recipe(epochs=1, batch_size=16), 0)
    assert math.isfinite(training.curve[-1].train_loss)


@pytest.mark.parametrize("recipe", [SHORT, LEVIT], ids=["short", "levit"])
def test_an_epoch_in_memory_may_be_entered_where_many_batches_are_made_at_once(recipe):
    batches = open_batches(DataConfig(image_size=8))
    whole = list(batches.train(0, 0, recipe, CPU))
    assert len(whole) == 143
    for first_step in (1, 126, 127, 128, 129, 142):
        rest = batches.train(0, 0, recipe, CPU, first_step)
        pairs = zip(islice(rest, 2), whole[first_step:], strict=False)
        assert all(is_same(*pair) for pair in pairs)


@pytest.mark.parametrize(
    ("allowed_by_data", "hflip", "mirrors"),
    [(True, None, True), (False, None, False), (False, True, True), (True, False, False)],
)
@pytest.mark.parametrize("on_disk", [False, True], ids=["memory", "pictures"])
def test_images_are_mirrored_where_data_or_recipe_say_so(
    on_disk, allowed_by_data, hflip, mirrors, folder
):
    batches = open_batches(folder_config(folder, in_memory=not on_disk))
    batches.info = batches.info._replace(hflip=allowed_by_data)
    plain = as_set(shown(batches, 0, 0, PLAIN).images)
    images = shown(batches, 0, 0, PLAIN.model_copy(update={"hflip": hflip})).images
    is_plain = [bool(as_set(image[None]) & plain) for image in images]
    is_mirrored = [bool(as_set(image.flip(-1)[None]) & plain) for image in images]
    assert all(a != b for a, b in zip(is_plain, is_mirrored, strict=True))
    assert 0.2 < sum(is_mirrored) / len(images) < 0.8 if mirrors else not any(is_mirrored)


def test_digits_are_never_mirrored_unless_the_recipe_insists():
    batches = open_batches(DataConfig(image_size=8, train_images=60))
    whole = Recipe(batch_size=60, crop="none")
    plain = as_set(shown(batches, 0, 0, whole).images)
    assert plain == as_set(evaluated(batches).images)
    insisted = as_set(shown(batches, 0, 0, whole.model_copy(update={"hflip": True})).images)
    assert 0 < len(insisted - plain) < 60


@pytest.mark.parametrize("size", [8, SIZE, 20, (16, 24), (130, 136)], ids=str)
@pytest.mark.parametrize("kind", ["digits", "memory", "pictures"])
def test_images_come_in_the_size_asked_for(kind, size, folder):
    config = folder_config(folder, size, in_memory=kind == "memory")
    batches = open_batches(DataConfig(image_size=size) if kind == "digits" else config)
    for recipe in (SHORT, LEVIT):
        assert next(batches.train(0, 0, recipe, CPU)).images.shape[2:] == sides(size)
    assert evaluated(batches, "val").images.shape[2:] == sides(size)
    assert batches.image_size == size
    assert batches.data_id.endswith(f"-{size_text(size)}")


def test_the_same_part_of_a_picture_is_shown_in_memory_and_on_disk(tmp_path):
    """A picture of a wide target is cut above and below, in training without crops as well."""
    for part, name in product(("train", "val"), ("a", "b")):
        (tmp_path / part / name).mkdir(parents=True)
        for number in range(4):
            pixels = np.full((40, 30), 40 * number, np.uint8)
            pixels[10:30], pixels[17:23] = 100 + 10 * number, 250
            Image.fromarray(pixels).save(tmp_path / part / name / f"{number}.png")
    plain = Recipe(batch_size=2, workers=0, crop="none", hflip=False)
    for in_memory in (True, False):
        batches = open_batches(folder_config(tmp_path, (16, 24), in_memory))
        for images in (evaluated(batches).images, shown(batches, 0, 0, plain).images):
            pixels = (images * batches.std[0] + batches.mean[0]).round()
            assert (pixels >= 90).all(), "the dark rows at both ends are cut off"
            assert (pixels[:, :, 7:9] > 240).all(), "the bright ones are in the middle"


def test_shifted_rectangles_are_moved_by_an_eighth_of_each_side():
    noise = np.random.default_rng(1)
    images = noise.integers(0, 256, (96, 1, 16, 40), dtype=np.uint8)
    split = Arrays(images, np.arange(96) % 2)
    info = DataInfo(1, ("a", "b"), False, (16, 40))
    batches = MemoryBatches(info, {"train": split, "val": split, "test": split})
    padded = torch.nn.functional.pad(evaluated(batches).images, (5, 5, 2, 2), mode="replicate")
    seen = set()
    for image in shown(batches, 0, 0, SHORT).images:
        places = [
            (y, x)
            for y, x in product(range(5), range(11))
            if (padded[:, :, y : y + 16, x : x + 40] - image).abs().amax((1, 2, 3)).min() < 1e-5
        ]
        assert len(places) == 1
        seen |= set(places)
    assert {y for y, _ in seen} == set(range(5)) and {x for _, x in seen} == set(range(11))


# On disk


def test_pictures_are_normalised_by_the_colours_of_imagenet(folder):
    batches = open_batches(folder_config(folder))
    pictures = batches._splits["train"]
    pixels = np.stack([np.asarray(pictures.open(index)) for index in range(len(pictures))]) / 255
    normalised = (pixels - (0.485, 0.456, 0.406)) / (0.229, 0.224, 0.225)
    expected = torch.from_numpy(normalised).permute(0, 3, 1, 2).float()
    torch.testing.assert_close(evaluated(batches).images, expected)


def test_shifted_pictures_are_moved_by_an_eighth_and_go_on_as_at_their_edge(folder):
    batches = open_batches(folder_config(folder))
    border = SIZE // 8
    plain = evaluated(batches).images
    padded = torch.nn.functional.pad(plain, (border,) * 4, mode="replicate")
    windows = as_set(
        torch.cat(
            [
                padded[:, :, y : y + SIZE, x : x + SIZE]
                for y, x in product(range(2 * border + 1), repeat=2)
            ]
        )
    )
    images = shown(batches, 0, 0, SHORT.model_copy(update={"hflip": False})).images
    assert as_set(images) <= windows and not as_set(images) <= as_set(plain)


def test_large_pictures_are_cut_to_their_middle(tmp_path):
    root = make_folder(tmp_path)
    for path in root.rglob("*.png"):
        picture = Image.new("RGB", (300, 200))
        picture.paste((255, 255, 255), (100, 50, 200, 150))  # half of the height, in the middle
        picture.save(path)
    for size, share in ((64, 0.5), (128, 0.5 / 0.875)):
        image = evaluated(open_batches(folder_config(root, size)), "val").images[0, 0]
        for line in (image[size // 2], image[:, size // 2]):
            assert (line > 0).float().mean().item() == pytest.approx(share, abs=2 / size)


def test_views_of_pictures_do_not_depend_on_the_number_of_workers(folder, recipe):
    batches = open_batches(folder_config(folder))
    alone = shown(batches, 0, 0, recipe)
    for workers in (1, 2):
        several = recipe.model_copy(update={"workers": workers})
        assert is_same(shown(batches, 0, 0, several), alone)
        next(batches.train(0, 1, several, CPU))  # workers that were left in the middle
        assert is_same(shown(batches, 0, 0, several), alone)


def test_workers_stay_from_one_epoch_to_the_next(folder):
    batches = open_batches(folder_config(folder))
    assert isinstance(batches, DiskBatches)
    recipe = SHORT.model_copy(update={"workers": 1})
    kept = []
    for epoch in range(2):
        shown(batches, 0, epoch, recipe)
        evaluated(batches, "val")
        kept.append([readers for _, readers in batches._idle.values()])
    assert kept[0] == kept[1] and len(kept[0]) == 2


def broken_png() -> bytes:
    """Pixels that stop before they are all there, which Pillow reports in a way of its own."""
    pixels = np.random.default_rng(0).integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)
    file = BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    content = file.getvalue()
    length_at = content.index(b"IDAT") - 4
    return content[:length_at] + (100).to_bytes(4, "big") + content[length_at + 4 :]


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize(
    "content", [b"", b"no image", broken_png()], ids=["empty", "text", "broken PNG"]
)
@pytest.mark.filterwarnings("ignore:.*unreadable")
def test_unreadable_pictures_beyond_the_limit_are_named_in_one_line(content, workers, tmp_path):
    root = make_folder(tmp_path)
    config = folder_config(root).model_copy(update={"max_unreadable": 0})
    batches = open_batches(config)
    for path in (root / "train").rglob("*.png"):
        path.write_bytes(content)
    with pytest.raises(InputError, match=str(root)) as raised:
        shown(batches, 0, 0, SHORT.model_copy(update={"workers": workers}))
    assert "\n" not in str(raised.value)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*unreadable")
def test_pictures_after_an_unreadable_one_are_shown_all_the_same(tmp_path):
    root = make_folder(tmp_path)
    batches = open_batches(folder_config(root))
    (root / "val" / "b" / "01.png").write_bytes(b"no image")
    images, labels = evaluated(batches, "test", 4)
    assert len(images) == 6 and len(as_set(images)) == 5
    assert labels.tolist() == [0, 0, 0, 1, 1, 1]


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_each_unreadable_picture_is_a_warning_once_where_it_is_asked_for(workers, tmp_path):
    root = make_folder(tmp_path)
    batches = open_batches(folder_config(root))
    damaged = {batches._splits["train"].name(index) for index in (1, 4)}
    for name in damaged:
        path = root / name
        path.write_bytes(path.read_bytes()[:100])
    recipe = SHORT.model_copy(update={"workers": workers})
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        for epoch in range(2):
            shown(batches, 0, epoch, recipe)
            evaluated(batches, "train")
    told = [str(warning.message) for warning in warned]
    assert len(told) == 2
    for name in damaged:
        (text,) = (text for text in told if text.startswith(str(root / name)))
        assert "unreadable" in text and text.endswith("; another is taken")


def test_unreadable_pictures_count_together_whichever_split_and_process_they_are_of(tmp_path):
    root = make_folder(tmp_path)
    batches = open_batches(folder_config(root).model_copy(update={"max_unreadable": 2}))
    for split in ("train", "val", "test"):
        (root / batches._splits[split].name(0)).write_bytes(b"")
    with pytest.warns(match="unreadable"):
        list(batches.train(0, 0, SHORT.model_copy(update={"workers": 2}), CPU))
    with pytest.warns(match="unreadable"):
        evaluated(batches, "val")
    with pytest.raises(InputError, match=r"^data\.max_unreadable: more than 2 images") as raised:
        evaluated(batches, "test")
    assert str(raised.value).count(str(root)) == 3


@pytest.mark.filterwarnings("ignore:.*unreadable")
def test_a_class_of_which_nothing_can_be_read_any_more_is_an_error(tmp_path):
    root = make_folder(tmp_path)
    batches = open_batches(folder_config(root))
    for path in (root / "val" / "b").iterdir():
        path.unlink()
    with pytest.raises(InputError, match=r"all images of a class are unreadable: .*no such file"):
        evaluated(batches, "test")


def slow_view(*_: object) -> Callable[[Image.Image], Tensor]:
    def view(_: Image.Image) -> Tensor:
        time.sleep(60)
        raise AssertionError

    return view


def killed_view(*_: object) -> Callable[[Image.Image], Tensor]:
    def view(_: Image.Image) -> Tensor:
        os.kill(os.getpid(), signal.SIGKILL)
        raise AssertionError

    return view


def faulty_view(*_: object) -> Callable[[Image.Image], Tensor]:
    def view(_: Image.Image) -> Tensor:
        raise ZeroDivisionError("by\nnought")

    return view


@pytest.mark.slow
@pytest.mark.parametrize(
    ("view", "told"),
    [
        (slow_view, "takes longer than 2 s"),
        (killed_view, "a process that reads pictures ended with SIGKILL"),
        (faulty_view, "pictures cannot be read .ZeroDivisionError: by nought."),
    ],
)
def test_a_reading_process_that_is_of_no_more_use_is_an_error_soon(view, told, folder, monkeypatch):
    monkeypatch.setattr(on_disk, "_PATIENCE_S", 2)
    batches = open_batches(folder_config(folder))
    with monkeypatch.context() as patched:
        patched.setattr(on_disk, "evaluation_view", view)
        begun = time.monotonic()
        with pytest.raises(TrialError, match=f"^data: .*{told}") as raised:
            evaluated(batches)
    assert "\n" not in str(raised.value)
    assert time.monotonic() - begun < 20
    evaluated(batches)  # by a new one


def test_a_reading_process_that_ends_between_two_passes_is_replaced(folder):
    batches = open_batches(folder_config(folder))
    expected = evaluated(batches)
    ((_, loader),) = batches._idle.values()
    (reader,) = loader._readers
    reader.process.kill()
    reader.process.join()
    assert is_same(evaluated(batches), expected)


def test_no_view_passes_through_shared_memory(folder, monkeypatch):
    """Of which a container has little; torch's own way of handing tensors over takes it."""

    def refused(*_: object) -> None:
        raise AssertionError("shared memory is asked for")

    monkeypatch.setattr(torch.UntypedStorage, "_share_fd_cpu_", refused)
    monkeypatch.setattr(torch.UntypedStorage, "_share_filename_cpu_", refused)
    monkeypatch.setattr(shared_memory, "SharedMemory", refused)
    monkeypatch.setattr(multiprocessing.synchronize.SemLock, "__init__", refused)
    batches = open_batches(folder_config(folder))
    shown(batches, 0, 0, SHORT.model_copy(update={"workers": 2}))


def test_pictures_come_as_they_are_read_whatever_the_batch_and_the_number_of_processes(
    folder, monkeypatch
):
    monkeypatch.setattr(on_disk, "_MOST_AT_ONCE", 3)
    batches = open_batches(folder_config(folder))
    expected = evaluated(batches, "train", 1000)
    for workers, batch_size in product((1, 2, 5), (1, 7, 1000)):
        batches._workers = workers
        assert is_same(evaluated(batches, "train", batch_size), expected)


def test_processes_that_read_end_with_what_they_read_for(folder):
    batches = open_batches(folder_config(folder))
    shown(batches, 0, 0, SHORT.model_copy(update={"workers": 2}))
    processes = [r.process for _, loader in batches._idle.values() for r in loader._readers]
    assert len(processes) == 2
    del batches
    gc.collect()
    for process in processes:
        process.join(10)
        assert not process.is_alive()


KILLED = """
import os, signal, sys
import torch
from levit_search.batches import open_batches
from levit_search.data import DataConfig
from levit_search.recipe import Recipe

config = DataConfig(name="folder", root=sys.argv[1], image_size=16, in_memory=False)
batches, recipe = open_batches(config), Recipe(batch_size=8, workers=3)
views = batches.train(0, 0, recipe, torch.device("cpu"))
next(views)
list(batches.evaluation("val", 8, torch.device("cpu")))
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.slow
def test_processes_that_read_end_with_a_process_that_is_killed(folder):
    # They have its standard output, which is read to the end.
    command = [sys.executable, "-c", KILLED, str(folder)]
    ended = subprocess.run(command, capture_output=True, timeout=100, check=False)
    assert ended.returncode == -signal.SIGKILL
