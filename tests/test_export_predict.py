"""``predict.py`` beside an exported network, and the document it follows."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from levit_search.architecture import parse
from levit_search.batches import Batches, open_batches
from levit_search.batches.on_disk import evaluation_view
from levit_search.data import DataConfig, looked_at
from levit_search.data.decoding import Decoding
from levit_search.data.loading import resized
from levit_search.data.sets import Digits
from levit_search.data.sources import FileSource, center_cropped, decode
from levit_search.export import predict
from levit_search.export.formats import preprocessing, write_onnx
from levit_search.export.package import predict_source
from levit_search.export.verification import compared, sample_of
from levit_search.image_size import Sides, plain_size, sides
from levit_search.model import Model, build
from tests.networks import tiny_description
from tests.picture_files import exif, lying, png, saved, tiff, write
from tests.random_networks import randomised

Done = subprocess.CompletedProcess[str]
RNG = np.random.default_rng(5)

RGB = {"data": "x", "mode": "RGB", "image_size": 16, "fit": "square-then-resize"}
RGB |= {"interpolation": "bicubic", "scaled_as": "whole numbers", "layout": "NCHW"}
RGB |= {"mean": [0.5, 0.4, 0.3], "std": [0.2, 0.3, 0.4], "class_names": ["frog", "newt", "toad"]}


def model_for(size: int | Sides, channels: int, classes: int) -> Model:
    torch.manual_seed(0)
    stem = {"kind": "patch", "patch_size": min(sides(size)) // 4}
    shape = {"image_size": size, "in_channels": channels, "num_classes": classes}
    return randomised(build(parse(tiny_description(**shape, stem=stem)))).eval()


def exported(folder: Path, model: Model, prepared: dict[str, Any]) -> Path:
    """A folder as an export leaves it, as far as ``predict.py`` knows of it."""
    folder.mkdir(exist_ok=True)
    write_onnx(model, folder / "model.onnx", prepared, {})
    (folder / "predict.py").write_text(predict_source())
    return folder


@pytest.fixture(scope="module")
def without_torch(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Variables of a process which can import neither torch and its company nor this package."""
    folder = tmp_path_factory.mktemp("absent")
    for name in ("torch", "torchvision", "timm", "levit_search", "onnx"):
        (folder / f"{name}.py").write_text(f"raise ImportError('{name} is not here')")
    return {**os.environ, "PYTHONPATH": str(folder)}


Predicts = Callable[..., Done]


@pytest.fixture
def predicts(without_torch: dict[str, str], tmp_path: Path) -> Predicts:
    """Run the script of a folder in another folder."""

    def run(folder: Path, *arguments: object, **env: str) -> Done:
        return subprocess.run(
            [sys.executable, str(folder / "predict.py"), *map(str, arguments)],
            capture_output=True,
            encoding="utf-8",
            cwd=tmp_path,
            env={**without_torch, **env},
            timeout=60,
        )

    return run


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An export of a network for three classes of coloured pictures of 16 pixels."""
    return exported(tmp_path_factory.mktemp("rgb"), model_for(16, 3, 3), RGB)


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    path = tmp_path / "picture.png"
    noise(20, 24).save(path)
    return path


def noise(width: int, height: int, mode: str = "RGB") -> Image.Image:
    pixels = RNG.integers(0, 256, (height // 4 + 1, width // 4 + 1, 4)).astype(np.uint8)
    smooth = Image.fromarray(pixels, "RGBA").resize((width, height), Image.Resampling.BILINEAR)
    return smooth.convert(mode)


def files_of(folder: Path) -> list[Path]:
    """Pictures of many kinds and sizes."""
    folder.mkdir(parents=True)
    for mode in ("RGB", "RGBA", "L", "LA", "1"):
        noise(61, 37, mode).save(folder / f"{mode}.png")
    noise(40, 90).quantize(17).save(folder / "palette.png")
    noise(33, 32).quantize(5).save(folder / "transparent.png", transparency=2)
    frames = [noise(33, 50) for _ in range(2)]
    frames[0].quantize(9).save(folder / "animated.gif", save_all=True, append_images=frames)
    Image.fromarray(RNG.integers(0, 2**16, (45, 31)).astype(np.uint16)).save(folder / "16 bits.png")
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees
    noise(90, 64).save(folder / "turned.jpg", exif=exif)
    noise(70, 33, "CMYK").save(folder / "printed.jpg")
    noise(32, 32).save(folder / "square.png")
    noise(10, 13).save(folder / "small.png")
    noise(300, 11).save(folder / "long.png")
    noise(201, 303).save(folder / "large.webp")
    return sorted(folder.iterdir())


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return files_of(tmp_path_factory.mktemp("many") / "files")


@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize("size", [16, 32, 97, (16, 24), (37, 61), (97, 32), (8, 100)], ids=str)
def test_pictures_are_prepared_to_the_pixel_as_for_a_set_in_memory(mode, size, many):
    document = {**RGB, "mode": mode, "image_size": plain_size(size)}
    document["fit"] = "square-then-resize" if isinstance(size, int) else "crop-then-resize"
    source = FileSource(Path("/"), [str(path) for path in many], np.zeros(len(many), np.int64))
    for index, path in enumerate(many):
        expected = center_cropped(decode(source, index, Decoding(mode)), size)
        found = predict.prepared(predict.read_picture(str(path), Decoding(mode)), document)
        np.testing.assert_array_equal(found.transpose(2, 0, 1), expected, err_msg=path.name)


@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize(
    ("size", "resize"),
    [
        *((16, 16), (32, 32), (129, 147), (160, 182)),
        *(((16, 24), (16, 24)), ((200, 136), (228, 155)), ((97, 160), (97, 160))),
    ],
    ids=str,
)
def test_pictures_are_prepared_to_the_pixel_as_for_a_set_on_disk(mode, size, resize, many):
    document = {**RGB, "mode": mode, "image_size": plain_size(size), "resize": plain_size(resize)}
    document["fit"] = "resize-then-crop"
    view = evaluation_view(size, len(mode))
    source = FileSource(Path("/"), [str(path) for path in many], np.zeros(len(many), np.int64))
    for index, path in enumerate(many):
        expected = view(decode(source, index, Decoding(mode))).numpy()
        found = predict.prepared(predict.read_picture(str(path), Decoding(mode)), document)
        np.testing.assert_array_equal(found.transpose(2, 0, 1), expected, err_msg=path.name)


@pytest.mark.parametrize("size", [14, 20, 32, (12, 18), (9, 8)], ids=str)
def test_arrays_are_scaled_alike_but_for_how_halves_are_rounded(size):
    images = Digits(DataConfig()).sources()["train"].images[:200]
    expected = resized(images, size)
    document = {**RGB, "mode": "L", "image_size": plain_size(size), "scaled_as": "floats"}
    pictures = [predict.prepared(Image.fromarray(image[0]), document) for image in images]
    apart = np.abs(np.stack(pictures).transpose(0, 3, 1, 2) - expected.astype(int))
    assert apart.max() <= 1 and apart.mean() < 1e-3


def answers_of(done: Done) -> list[dict[str, Any]]:
    assert done.returncode == 0 and not done.stderr, done.stderr
    answers: list[dict[str, Any]] = json.loads(done.stdout)
    return answers


def evaluated(model: Model, batches: Batches, split: str) -> NDArray[np.float32]:
    with torch.no_grad():
        parts = [model(images) for images, _ in batches.evaluation(split, 64, torch.device("cpu"))]
    return torch.cat(parts).numpy()


def test_images_in_memory_saved_at_the_networks_size_get_the_logits_of_evaluation(
    predicts, tmp_path
):
    config = DataConfig(name="digits", image_size=16)
    batches = open_batches(config)
    document = preprocessing(config, batches)
    assert document["fit"] == "square-then-resize" and document["scaled_as"] == "floats"
    assert np.allclose(document["mean"], np.array(batches.mean) / 255)
    model = model_for(16, 1, 10)
    expected = evaluated(model, batches, "val")[:64]
    images, _ = next(batches.evaluation("val", 64, torch.device("cpu")))
    pixels = (images * batches.std[0] + batches.mean[0]).round().to(torch.uint8).numpy()
    for index, image in enumerate(pixels):
        Image.fromarray(image[0]).save(tmp_path / f"{index}.png")
    names = [f"{index}.png" for index in range(len(pixels))]
    done = predicts(exported(tmp_path / "out", model, document), "--json", "--top", 3, *names)
    answers = answers_of(done)
    assert [answer["image"] for answer in answers] == names
    logits = np.array([answer["logits"] for answer in answers])
    np.testing.assert_allclose(logits, expected, atol=1e-4, rtol=0)

    shares = torch.from_numpy(expected).softmax(dim=1).numpy()
    for answer, row in zip(answers, shares, strict=True):
        best = [found["index"] for found in answer["top"]]
        assert best == np.argsort(-row)[:3].tolist()
        assert [found["class"] for found in answer["top"]] == [str(index) for index in best]
        found = [found["probability"] for found in answer["top"]]
        np.testing.assert_allclose(found, row[best], atol=1e-4)


@pytest.mark.parametrize(
    ("in_memory", "size"),
    [(True, 32), (False, 32), (False, 160), (True, (32, 48)), (False, (160, 128))],
    ids=str,
)
@pytest.mark.filterwarnings("ignore:Palette images")
def test_pictures_of_any_kind_get_the_logits_of_evaluation(
    in_memory, size, predicts, many, tmp_path
):
    for part, name in (("train", "frog"), ("train", "newt"), ("val", "newt")):
        (tmp_path / part / name).mkdir(parents=True)
        for number in range(4):
            noise(20, 24).save(tmp_path / part / name / f"{number}.png")
    shutil.copytree(many[0].parent, tmp_path / "val" / "frog")
    config = DataConfig(name="folder", root=str(tmp_path), image_size=size, in_memory=in_memory)
    batches, model = open_batches(config), model_for(size, 3, 2)
    document = preprocessing(config, batches)
    assert document.get("resize") == (
        None if in_memory else {32: 32, 160: 182, (160, 128): [182, 146]}[size]
    )
    expected = evaluated(model, batches, "test")[: len(many)]
    assert expected.std(axis=0).min() > 0.01, "images matter to the logits"
    done = predicts(exported(tmp_path / "out", model, document), "--json", *many)
    logits = np.array([answer["logits"] for answer in answers_of(done)])
    np.testing.assert_allclose(logits, expected, atol=1e-4, rtol=0)


def test_it_shows_the_best_classes_of_each_image(predicts, folder, picture):
    done = predicts(folder, picture, "--top", 2)
    assert done.returncode == 0 and not done.stderr
    name, first, second = done.stdout.splitlines()
    assert name == str(picture)
    assert first.split()[1] == second.split()[1] == "%"
    assert float(first.split()[0]) >= float(second.split()[0])
    assert {first.split()[2], second.split()[2]} < set(RGB["class_names"])
    assert len(predicts(folder, picture).stdout.splitlines()) == 4, "there are three classes"


@pytest.fixture
def bad_files(tmp_path: Path, picture: Path) -> dict[str, str]:
    (tmp_path / "text.png").write_text("no picture\n")
    (tmp_path / "empty.png").touch()
    whole = picture.read_bytes()
    (tmp_path / "torn.png").write_bytes(whole[: len(whole) // 2])
    return {
        "text.png": "not an image",
        "empty.png": "not an image",
        "torn.png": "cannot be read",
        "absent.png": "no such file",
        str(tmp_path): "Is a directory",
    }


def test_what_is_no_image_is_told_in_a_line_and_the_others_are_classified(
    predicts, folder, picture, bad_files
):
    done = predicts(folder, "absent.png")
    assert done.returncode == 2 and not done.stdout
    assert done.stderr == "predict.py: absent.png: no such file\n"
    done = predicts(folder, "--json", picture, *bad_files, picture)
    assert done.returncode == 2
    for line, (name, reason) in zip(done.stderr.splitlines(), bad_files.items(), strict=True):
        assert line.startswith(f"predict.py: {name}: ") and reason in line
    first, *failed, last = json.loads(done.stdout)
    assert first["logits"] == last["logits"] and len(first["logits"]) == 3
    assert [entry["image"] for entry in failed] == list(bad_files)
    assert all("error" in entry and "logits" not in entry for entry in failed)


def test_a_picture_of_too_many_pixels_is_told(predicts, folder, tmp_path):
    Image.new("1", (10_000, 9_000)).save(tmp_path / "huge.png")
    done = predicts(folder, "huge.png")
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1
    assert "pixels" in done.stderr


def test_a_network_that_is_missing_or_none_is_told_in_a_line(predicts, folder, picture, tmp_path):
    shutil.copy(folder / "predict.py", tmp_path)
    (tmp_path / "none.onnx").write_bytes(b"no network")
    bare = tmp_path / "bare.onnx"
    from levit_search.model import export_onnx

    export_onnx(model_for(16, 3, 3), bare, None)
    for arguments, reason in (
        ([], f"{tmp_path / 'model.onnx'}: no such file"),
        (["--model", "none.onnx"], "none.onnx: not an ONNX network"),
        (["--model", bare], "not an exported network"),
    ):
        done = predicts(tmp_path, picture, *arguments)
        assert done.returncode == 2 and not done.stdout
        assert reason in done.stderr and len(done.stderr.splitlines()) == 1
    assert predicts(tmp_path, picture, "--model", folder / "model.onnx").returncode == 0


@pytest.mark.parametrize("top", ["0", "-1", "x"])
def test_a_number_of_classes_that_is_none_is_refused(top, predicts, folder, picture):
    done = predicts(folder, picture, "--top", top)
    assert done.returncode == 2 and repr(top) in done.stderr and "Traceback" not in done.stderr


def test_class_names_of_any_kind_keep_to_their_line(predicts, picture, tmp_path):
    names = ["<b>\"A\" & 'b'</b>", "line\nbreak\x1b[31m", "größe 大", "undecodable \udcff", ""]
    out = exported(tmp_path / "out", model_for(16, 3, 5), {**RGB, "class_names": names})
    answer = answers_of(predicts(out, "--json", picture))[0]
    assert {found["class"] for found in answer["top"]} == set(names)
    for env in ({"PYTHONIOENCODING": "utf-8"}, {"PYTHONIOENCODING": "ascii"}):
        done = predicts(out, picture, **env)
        assert done.returncode == 0 and len(done.stdout.splitlines()) == 6
        assert "<b>\"A\" & 'b'</b>" in done.stdout and "line\\nbreak\\x1b[31m" in done.stdout
        assert "\x1b" not in done.stdout


def test_without_a_package_it_says_what_to_install(predicts, folder, picture, tmp_path):
    (tmp_path / "onnxruntime.py").write_text(
        "raise ModuleNotFoundError('none', name='onnxruntime')"
    )
    done = predicts(folder, picture, PYTHONPATH=str(tmp_path))
    assert done.returncode == 1 and not done.stdout
    assert "none; it needs: pip install numpy pillow onnxruntime" in done.stderr


# Pictures as people have them, each with what the survey of their set finds.


def lying_on_its_side(picture: Image.Image, **options: Any) -> bytes:
    return saved(lying(picture, 6), exif=exif(6), **options)


def logo_on_alpha() -> Image.Image:
    picture = Image.new("RGBA", (40, 30), (255, 255, 255, 0))
    x, y = RNG.integers(0, 20, 2).tolist()
    picture.paste((255, 255, 255, 255), (x, y, x + 12, y + 8))
    return picture


def in_12_bits(channels: int) -> NDArray[np.uint16]:
    values = RNG.integers(0, 4096, (30, 41, channels)).astype(np.uint16)
    values[..., 3:] = np.where(values[..., :1] > 1000, 65535, 0)
    return values


def temperatures() -> NDArray[np.float32]:
    values = RNG.normal(37, 1, (33, 29, 1)).astype(np.float32)
    values[0, 0] = np.nan
    return values


KINDS: dict[str, Callable[[], bytes]] = {
    "turned JPEG": lambda: lying_on_its_side(noise(50, 34), format="JPEG"),
    "turned PNG": lambda: lying_on_its_side(noise(50, 34), format="PNG"),
    "turned TIFF": lambda: lying_on_its_side(noise(50, 34), format="TIFF"),
    "white logos": lambda: saved(logo_on_alpha(), "PNG"),
    "grey with alpha": lambda: saved(noise(40, 31, "LA"), "PNG"),
    "palette": lambda: saved(noise(40, 31).quantize(9), "PNG", transparency=b"\x00\x80\xff"),
    "key": lambda: saved(noise(40, 31, "L"), "PNG", transparency=120),
    "CMYK": lambda: saved(noise(40, 31, "CMYK"), "JPEG"),
    "animated": lambda: saved(
        noise(40, 31), "GIF", save_all=True, append_images=[noise(40, 31), noise(40, 31)]
    ),
    "12 bits of grey": lambda: png(in_12_bits(1)),
    "12 bits of RGB": lambda: tiff(in_12_bits(3), photometric=2, is_packed=True),
    "12 bits of RGBA": lambda: png(in_12_bits(4)),
    "12 bits turned": lambda: tiff(in_12_bits(3), photometric=2, orientation=6),
    "offset": lambda: tiff(RNG.integers(30000, 32000, (30, 41, 1)).astype(np.uint16), ">"),
    "negative": lambda: tiff(RNG.integers(-900, 3000, (30, 41, 1)).astype(np.int16)),
    "floats": lambda: tiff(temperatures(), ">", is_packed=True),
    "one bit": lambda: saved(noise(40, 31, "1"), "PNG"),
    "long": lambda: saved(noise(90, 21), "WEBP"),
}


def set_of(root: Path, make: Callable[[], bytes], count: int = 4) -> Path:
    for part in ("train", "val"):
        for name in ("frog", "newt"):
            for number in range(count):
                write(root / part / name / f"{number}.png", make())
    return root


@pytest.mark.parametrize("in_memory", [True, False])
@pytest.mark.parametrize("make", KINDS.values(), ids=KINDS)
def test_a_set_of_any_kind_is_prepared_to_the_pixel_as_evaluation_does(make, in_memory, tmp_path):
    root = set_of(tmp_path / "set", make)
    given = DataConfig(name="folder", root=str(root), image_size=24, in_memory=in_memory)
    config = looked_at(given)
    batches = open_batches(config)
    document = preprocessing(config, batches)
    document = json.loads(json.dumps(document))  # as it is kept in the network's file
    how = predict.decoding_of(document)
    assert how == config.decoding
    mean, std = (255 * np.array(document[name], np.float32) for name in ("mean", "std"))
    images, _ = next(batches.evaluation("test", 64, torch.device("cpu")))
    expected = images.numpy().transpose(0, 2, 3, 1) * std + mean
    assert np.ptp(expected) > 100, "something is to be seen"
    for path, image in zip(sorted((root / "val").rglob("*.png")), expected, strict=True):
        found = predict.prepared(predict.read_picture(str(path), how), document)
        np.testing.assert_array_equal(found, np.rint(image), err_msg=path.name)


def odd(mode: str) -> Callable[[], bytes]:
    """Pictures of odd sizes, some turned, and transparent ones where there is colour."""
    numbers = iter(range(10**6))

    def make() -> bytes:
        number = next(numbers)
        size = [(331, 173), (97, 240), (301, 301), (64, 90)][number % 4]
        if number % 4 == 1:
            return lying_on_its_side(noise(*size, mode), format="JPEG")
        return saved(noise(*size, "RGBA" if mode == "RGB" and number % 4 == 2 else mode), "PNG")

    return make


@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize(
    "size", [128, *(pytest.param(size, marks=pytest.mark.slow) for size in (96, 160, 224, 300))]
)
def test_the_check_of_an_export_passes_with_pictures_read_from_disk(mode, size, tmp_path):
    root = set_of(tmp_path / "set", odd(mode), count=6)
    given = DataConfig(name="folder", root=str(root), image_size=size, in_memory=False)
    config = looked_at(given)
    batches = open_batches(config)
    assert batches.info.in_channels == len(mode)
    model = model_for(size, len(mode), 2)
    out = exported(tmp_path / "out", model, preprocessing(config, batches))
    found = compared(out, ["predict.py"], sample_of(model, batches), lambda *_: None)
    assert found["predict.py"] <= 1e-4
