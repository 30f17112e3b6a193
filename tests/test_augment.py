"""Augmentation of many images at once, held against Pillow, torchvision and timm one by one."""

import random
from collections import Counter
from itertools import product

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from timm.data import Mixup, auto_augment
from timm.data.distributed_sampler import RepeatAugSampler
from timm.data.random_erasing import RandomErasing
from timm.data.transforms import RandomResizedCropAndInterpolation
from torch import Tensor
from torchvision.transforms import functional as pillow

from levit_search.batches.augmentation import (
    Layer,
    Op,
    Windows,
    arguments,
    crop_aspect,
    draw_boxes,
    draw_erased,
    draw_jitter,
    draw_layers,
    erased,
    generator,
    jittered,
    mix,
    rand_augmented,
    resized_boxes,
)
from levit_search.batches.batch import ordered, steps
from levit_search.batches.on_disk import seeded, training_view
from levit_search.image_size import Sides, sides
from levit_search.recipe import RandAugment, Recipe, rand_augment

SIZE = 32
CPU = torch.device("cpu")
FILL = (124, 116, 104)

# timm's names in the order of Op; the second is used where a higher level is a stronger change.
NAMES = {
    Op.AUTO_CONTRAST: ("AutoContrast",) * 2,
    Op.EQUALIZE: ("Equalize",) * 2,
    Op.INVERT: ("Invert",) * 2,
    Op.POSTERIZE: ("Posterize", "PosterizeIncreasing"),
    Op.SOLARIZE: ("Solarize", "SolarizeIncreasing"),
    Op.SOLARIZE_ADD: ("SolarizeAdd",) * 2,
    Op.CONTRAST: ("Contrast", "ContrastIncreasing"),
    Op.BRIGHTNESS: ("Brightness", "BrightnessIncreasing"),
    Op.SHEAR_X: ("ShearX",) * 2,
    Op.TRANSLATE_X: ("TranslateXRel",) * 2,
    Op.SHEAR_Y: ("ShearY",) * 2,
    Op.TRANSLATE_Y: ("TranslateYRel",) * 2,
    Op.ROTATE: ("Rotate",) * 2,
    Op.COLOR: ("Color", "ColorIncreasing"),
    Op.SHARPNESS: ("Sharpness", "SharpnessIncreasing"),
}


def make_images(channels: int, count: int = 6, size: int | Sides = SIZE) -> Tensor:
    """Smooth images with all the values there are, as photographs have them."""
    noise = torch.rand(count, channels, 6, 6, generator=torch.Generator().manual_seed(1))
    images = F.interpolate(noise, sides(size), mode="bicubic", align_corners=False)
    low, high = images.amin((1, 2, 3), keepdim=True), images.amax((1, 2, 3), keepdim=True)
    return ((images - low) / (high - low) * 235 + 10).round().to(torch.uint8)


def as_picture(image: Tensor) -> Image.Image:
    return Image.fromarray(image.permute(1, 2, 0).numpy().squeeze())


def as_tensor(picture: Image.Image) -> Tensor:
    return pillow.pil_to_tensor(picture)


def fill_of(channels: int) -> Tensor:
    return torch.tensor(FILL[:channels], dtype=torch.float32)


# RandAugment


def test_the_operations_are_timms():
    for is_increasing in (False, True):
        names = auto_augment.rand_augment_choices("", is_increasing)
        assert sorted(names) == sorted(name[is_increasing] for name in NAMES.values())
    assert list(NAMES) == list(Op)


@pytest.mark.parametrize("is_increasing", [False, True])
@pytest.mark.parametrize("op", Op, ids=lambda op: op.name)
@pytest.mark.parametrize("sign", [-1, 1])
def test_levels_become_the_arguments_that_timm_makes_of_them(op, is_increasing, sign, monkeypatch):
    monkeypatch.setattr(auto_augment.random, "random", lambda: 0.9 if sign < 0 else 0.1)
    to_argument = auto_augment.LEVEL_TO_ARG[NAMES[op][is_increasing]]
    levels = [step / 16 for step in range(161)]
    ours = arguments(
        torch.full((161,), op),
        torch.tensor(levels).double() / 10,
        torch.tensor(sign),
        is_increasing,
    )
    for level, argument in zip(levels, ours.tolist(), strict=True):
        if to_argument is not None:
            (expected,) = to_argument(level, {})
            expected = max(1, expected) if op == Op.POSTERIZE else expected
            assert argument == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize(
    ("channels", "size"), [(1, SIZE), (3, SIZE), (1, (24, 40)), (3, (45, 30))], ids=str
)
@pytest.mark.parametrize("level", [0.0, 0.4, 0.9, 1.0])
@pytest.mark.parametrize("op", Op, ids=lambda op: op.name)
def test_operations_change_images_as_timms_do(op, level, channels, size):
    images = make_images(channels, size=size)
    sign = torch.tensor([-1, 1] * 3)
    values = arguments(torch.full((6,), op), torch.full((6,), level).double(), sign, True)
    changed = rand_augmented(
        images.clone(), [Layer(torch.full((6,), op), values)], fill_of(channels)
    )
    apply = auto_augment.NAME_TO_OP[NAMES[op][1]]
    has_argument = auto_augment.LEVEL_TO_ARG[NAMES[op][1]] is not None
    is_whole = op in (Op.POSTERIZE, Op.SOLARIZE, Op.SOLARIZE_ADD)
    for image, ours, value in zip(images, changed, values.tolist(), strict=True):
        given = [int(value) if is_whole else value] if has_argument else []
        fill = FILL if channels == 3 else FILL[0]
        theirs = apply(as_picture(image), *given, fillcolor=fill, resample=Image.Resampling.BICUBIC)
        difference = (as_tensor(theirs).int() - ours.int()).abs()
        if op == Op.ROTATE:
            # Pillow's bicubic kernel is sharper, and rounding decides what is beyond the edge.
            assert difference.float().mean() < 2 and difference.float().quantile(0.9) <= 3
        else:
            assert difference.max() <= 1


def test_layers_draw_operations_and_levels_as_often_as_timm():
    policy = rand_augment("rand-m9-mstd0.5-inc1-n3")
    assert policy is not None
    count = 30_000
    layers = draw_layers(policy, count, generator(0))
    assert len(layers) == 3
    for layer in layers:
        drawn = Counter(layer.ops.tolist())
        assert drawn[-1] / count == pytest.approx(0.5, abs=0.01)
        assert all(drawn[op] / count == pytest.approx(1 / 30, abs=0.004) for op in Op)
        degrees = layer.arguments[layer.ops == Op.ROTATE]
        assert (degrees > 0).float().mean() == pytest.approx(0.5, abs=0.06)
        assert degrees.abs().mean() == pytest.approx(27, abs=0.2)
        assert degrees.abs().std() == pytest.approx(1.45, abs=0.15)
        assert degrees.abs().max() <= 30
    assert not torch.equal(layers[0].ops, layers[1].ops)


def test_a_huge_spread_stands_for_any_level_below_the_magnitude():
    layer = draw_layers(RandAugment(magnitude=8, magnitude_std=101), 30_000, generator(0))[0]
    degrees = layer.arguments[layer.ops == Op.ROTATE].abs()
    assert degrees.max() <= 24
    assert degrees.mean() == pytest.approx(12, abs=0.7)


def test_an_image_is_changed_by_each_layer_and_others_do_not_matter():
    images = make_images(3, count=40)
    layers = draw_layers(RandAugment(magnitude=9, layers=2), 40, generator(3))
    together = rand_augmented(images.clone(), layers, fill_of(3))
    for index in range(40):
        alone = [Layer(*(part[index : index + 1] for part in layer)) for layer in layers]
        expected = rand_augmented(images[index : index + 1].clone(), alone, fill_of(3))
        assert torch.equal(together[index], expected[0])
    untouched = (layers[0].ops == -1) & (layers[1].ops == -1)
    assert untouched.any() and torch.equal(together[untouched], images[untouched])


@pytest.mark.parametrize("mode", ["L", "RGB"])
@pytest.mark.parametrize("policy", ["rand-m9-mstd0.5-inc1", "rand-m0.5-mstd3", "rand-m9-mstd101"])
def test_rand_augment_of_pictures_takes_every_magnitude(mode, policy):
    """Of Pillow 13 on, ``ImageOps.posterize`` refuses to keep no bit at all."""
    picture = as_picture(make_images(3, count=1)[0]).convert(mode)
    recipe = Recipe(crop="none", rand_augment=policy)
    view = training_view(recipe, SIZE, False, list(FILL[: len(mode)]))
    (randomly,) = (step for step in view.transforms if hasattr(step, "ops"))
    for operation, level in product(randomly.ops, [0, 0.1, 2.4, 2.5, 5, 7.5, 9.99, 10]):
        values = () if operation.level_fn is None else operation.level_fn(level, operation.hparams)
        assert operation.aug_fn(picture, *values, **operation.kwargs).mode == mode
        if operation.name.startswith("Posterize"):
            assert 1 <= values[0] <= 4
    with seeded(0):
        assert all(view(picture).shape == (len(mode), SIZE, SIZE) for _ in range(50))


# Crops


@pytest.mark.parametrize(("size", "border"), [((SIZE, SIZE), (4, 4)), ((24, 40), (3, 5))], ids=str)
def test_windows_are_cut_and_mirrored_as_asked(size, border):
    images = make_images(3, size=size)
    drawn = [torch.randint(2 * b + 1, (10,), generator=generator(1)) for b in border]
    corners = torch.stack(drawn, 1)
    indices = torch.randint(6, (10,), generator=generator(2))
    mirrored = torch.tensor([True, False] * 5)
    windows = Windows(images, border)
    views = windows.cut(indices, corners, mirrored)
    (above, left), (height, width) = border, size
    around = (left, left, above, above)
    padded = F.pad(images.float(), around, mode="replicate").to(torch.uint8)
    for view, index, (row, column), is_mirrored in zip(
        views, indices, corners.tolist(), mirrored, strict=True
    ):
        expected = padded[index, :, row : row + height, column : column + width]
        assert torch.equal(view, expected.flip(-1) if is_mirrored else expected)
    straight = windows.cut(indices, corners, None)
    assert torch.equal(straight[1::2], views[1::2])
    assert torch.equal(straight[::2].flip(-1), views[::2])


@pytest.mark.parametrize("channels", [1, 3])
def test_boxes_are_resized_as_pillow_does(channels):
    images = make_images(channels)
    boxes = torch.tensor(
        [
            [0, 0, 32, 32],
            [3, 5, 20, 11],
            [31, 31, 1, 1],
            [0, 30, 9, 2],
            [7, 0, 25, 32],
            [1, 2, 30, 29],
        ]
    )
    resized = resized_boxes(images, boxes)
    for image, view, (top, left, height, width) in zip(
        images, resized, boxes.tolist(), strict=True
    ):
        picture = as_picture(image).crop((left, top, left + width, top + height))
        expected = as_tensor(picture.resize((SIZE, SIZE), Image.Resampling.BICUBIC))
        assert (expected.int() - view.int()).abs().max() <= 1


def test_resized_crops_lie_and_measure_as_timms():
    random.seed(0)
    size, count = 32, 4000
    picture = Image.new("L", (size, size))
    theirs = torch.tensor(
        [
            RandomResizedCropAndInterpolation.get_params(picture, (0.08, 1.0), (3 / 4, 4 / 3))
            for _ in range(count)
        ]
    )
    ours = draw_boxes(count, (0.08, 1.0), (3 / 4, 4 / 3), *[(size, size)] * 3, generator(0))
    assert (ours[:, :2] + ours[:, 2:] <= size).all() and (ours >= 0).all()
    for measure in (lambda box: box, lambda box: box**2, lambda box: box[:, 2] * box[:, 3]):
        one, other = (measure(boxes).float() for boxes in (ours, theirs))
        assert one.mean(0).tolist() == pytest.approx(other.mean(0).tolist(), rel=0.06)


@pytest.mark.parametrize("size", [(12, 12), (33, 33), (12, 33), (33, 12)], ids=str)
def test_boxes_of_every_length_are_resized_as_pillow_does(size):
    height, width = size
    images = make_images(1, count=width, size=size)
    boxes = torch.tensor([[0, width - side, height, side] for side in range(1, width + 1)])
    for image, view, (*_, side) in zip(
        images, resized_boxes(images, boxes), boxes.tolist(), strict=True
    ):
        picture = as_picture(image).crop((width - side, 0, width, height))
        expected = as_tensor(picture.resize((width, height), Image.Resampling.BICUBIC))
        assert (expected.int() - view.int()).abs().max() <= 1


def test_the_smallest_boxes_have_a_pixel():
    boxes = draw_boxes(50, (0.001, 0.002), (3 / 4, 4 / 3), *[(8, 8)] * 3, generator(0))
    assert (boxes[:, 2:] == 1).all() and (boxes[:, :2] < 8).all()


def test_boxes_that_never_fit_are_the_whole_image():
    for size in ((32, 32), (32, 20)):
        found = draw_boxes(5, (1.0, 1.0), (1.3, 1.4), size, (20, 20), size, generator(0))
        assert found.tolist() == [[0, 0, *size]] * 5


def test_boxes_lie_anywhere_in_a_rectangle_and_have_its_proportions_up_to_a_third():
    size = (24, 48)
    boxes = draw_boxes(4000, (0.08, 1.0), crop_aspect(size), size, size, size, generator(0))
    ends = boxes[:, :2] + boxes[:, 2:]
    assert (boxes[:, :2].amin(0) == 0).all() and ends.amax(0).tolist() == [24, 48]
    stretched = boxes[:, 2] / 24 / (boxes[:, 3] / 48)
    large = boxes[:, 2] >= 12  # whose rounding to whole pixels matters little
    assert stretched[large].log().abs().max() < np.log(4 / 3) + 0.09
    assert stretched.log().mean().abs() < 0.02
    shares = boxes[:, 2] * boxes[:, 3] / (24 * 48)
    assert shares.min() < 0.1 and shares.max() > 0.95


# Colours


@pytest.mark.parametrize("channels", [1, 3])
def test_jitter_is_torchvisions_for_the_same_factors(channels):
    images = make_images(channels)
    order, factors = draw_jitter(6, 0.4, generator(0))
    changes = [pillow.adjust_brightness, pillow.adjust_contrast, pillow.adjust_saturation]
    for image, ours, which, by in zip(
        images, jittered(images, order, factors), order.tolist(), factors.tolist(), strict=True
    ):
        picture = as_picture(image)
        for change, factor in zip(which, by, strict=True):
            picture = changes[change](picture, factor)
        assert (as_tensor(picture).float() - ours).abs().max() <= 4  # it drops fractions each time


def test_jitter_takes_each_order_and_the_factors_of_its_strength():
    order, factors = draw_jitter(6000, 0.4, generator(0))
    assert len({tuple(row) for row in order.tolist()}) == 6
    assert factors.min() >= 0.6 and factors.max() <= 1.4
    assert factors.mean() == pytest.approx(1, abs=0.01)
    assert factors.std() == pytest.approx(0.8 / 12**0.5, abs=0.01)


# Erasing


@pytest.mark.parametrize("size", [(SIZE, SIZE), (24, 40)], ids=str)
def test_as_much_is_erased_as_by_timm(size):
    count = 3000
    random.seed(0)
    torch.manual_seed(0)
    theirs = RandomErasing(0.25, mode="pixel", device="cpu")(torch.zeros(count, 1, *size))
    boxes = draw_erased(count, size, 0.25, generator(0))
    ours = erased(torch.zeros(count, 1, *size), boxes)
    shares = [(images != 0).float().mean((1, 2, 3)) for images in (ours, theirs)]
    touched = [share[share > 0] for share in shares]
    for share in touched:
        assert len(share) / count == pytest.approx(0.25, abs=0.025)
        assert share.min() > 0.01 and share.max() < 0.36
    assert touched[0].mean() == pytest.approx(touched[1].mean().item(), rel=0.05)
    assert touched[0].std() == pytest.approx(touched[1].std().item(), rel=0.08)
    lines = [(images != 0).any(-1).sum((1, 2)).float() for images in (ours, theirs)]
    assert lines[0].mean() == pytest.approx(lines[1].mean().item(), rel=0.08)


@pytest.mark.parametrize("size", [(SIZE, SIZE), (40, 24)], ids=str)
def test_erased_boxes_hold_noise_and_the_rest_is_left(size):
    images = torch.full((400, 3, *size), 7.0)
    boxes = draw_erased(400, size, 0.5, generator(0))
    changed = erased(images.clone(), boxes)
    noise = []
    for image, (top, left, height, width, _) in zip(changed, boxes.tolist(), strict=True):
        box = image[:, top : top + height, left : left + width]
        noise.append(box.flatten())
        outside = image.clone()
        outside[:, top : top + height, left : left + width] = 7
        assert (outside == 7).all() and (box != 7).all()
    values = torch.cat(noise)
    assert values.mean() == pytest.approx(0, abs=0.01)
    assert values.std() == pytest.approx(1, abs=0.01)


# Mixing


def mixed(
    recipe: Recipe, key: int, labels: Tensor, size: Sides = (SIZE, SIZE)
) -> tuple[Tensor, Tensor]:
    """Each image has its number as the value of all its pixels."""
    images = torch.arange(float(len(labels))).view(-1, 1, 1, 1).repeat(1, 3, *size)
    return mix(images, labels, len(labels), recipe, (key,))


@pytest.mark.parametrize("size", [(SIZE, SIZE), (24, 40)], ids=str)
@pytest.mark.parametrize("strengths", [{"mixup": 0.8}, {"cutmix": 1.0}])
def test_images_are_mixed_with_those_from_the_end_as_their_targets_say(strengths, size):
    labels = torch.arange(8)
    recipe = Recipe(label_smoothing=0.0, **strengths)
    for key in range(20):
        images, targets = mixed(recipe, key, labels, size)
        torch.testing.assert_close(targets.sum(1), torch.ones(8))
        share = targets[0, 0].item()
        expected = share * labels + (1 - share) * labels.flip(0)
        torch.testing.assert_close(images.mean((1, 2, 3)), expected)
        if recipe.cutmix:
            assert set(images[0].flatten().tolist()) <= {0.0, 7.0}


def test_mixed_targets_are_smoothed():
    _, targets = mixed(Recipe(mixup=0.8, label_smoothing=0.2), 0, torch.arange(8))
    assert targets.min().item() == pytest.approx(0.2 / 8)
    torch.testing.assert_close(targets.sum(1), torch.ones(8))


@pytest.mark.parametrize(("mixup", "cutmix"), [(0.8, 0.0), (0.0, 1.0), (0.8, 1.0)])
def test_shares_are_spread_as_by_timm(mixup, cutmix):
    labels = torch.arange(2)
    recipe = Recipe(batch_size=2, mixup=mixup, cutmix=cutmix, label_smoothing=0.0)
    theirs = Mixup(mixup, cutmix, switch_prob=0.5, label_smoothing=0.0, num_classes=2)
    np.random.seed(0)
    count = 2000
    shares: list[list[float]] = [[], []]
    for key in range(count):
        shares[0].append(mix(torch.zeros(2, 1, 8, 8), labels, 2, recipe, (key,))[1][0, 0].item())
        shares[1].append(theirs(torch.zeros(2, 1, 8, 8), labels)[1][0, 0].item())
    for quantile in (0.1, 0.25, 0.5, 0.75, 0.9):
        ours, others = (np.quantile(share, quantile) for share in shares)
        assert ours == pytest.approx(others, abs=0.05)


# Order


def test_repeats_follow_each_other_as_in_timms_sampler():
    recipe = Recipe(batch_size=8, repeated_augmentation=3)
    sampler = RepeatAugSampler(range(50), num_replicas=1, rank=0, num_repeats=3, selected_round=0)
    order = ordered(50, recipe, 0, 0)
    assert order.shape == (6, 8) and steps(50, recipe) == 6
    for indices in (order.flatten().tolist(), list(sampler)[:48]):
        assert len(set(indices)) == 16
        assert all(len(set(indices[first : first + 3])) == 1 for first in range(0, 48, 3))


def test_without_repeats_each_image_is_shown_once():
    order = ordered(50, Recipe(batch_size=8), 0, 0).flatten().tolist()
    assert len(set(order)) == len(order) == 48
    assert order != sorted(order)
