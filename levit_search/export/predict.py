#!/usr/bin/env python3
"""Classify image files with the network in ``model.onnx`` beside this file.

    python predict.py photo.jpg another.png
    python predict.py --top 3 --json photo.jpg
    python predict.py --model model.int8.onnx photo.jpg

This file is all the code there is: it needs Python 3.9 or later, numpy, Pillow and onnxruntime.
How images are prepared, and what the classes are called, is read from the network's own file.
"""

from __future__ import annotations

import argparse
import io
import json
import sys
import warnings
from pathlib import Path
from typing import Any

try:
    import numpy as np
    import onnxruntime
    from PIL import Image, UnidentifiedImageError
except ImportError as missing:
    sys.exit(f"predict.py: {missing}; it needs: pip install numpy pillow onnxruntime")

# In place of this line an export puts the text of that module.
from levit_search.data.decoding import MOST_BYTES, Decoding, decoded, middle, opened


class UserError(Exception):
    """Something that is not as it should be; the message is one line."""


def main() -> int:
    arguments = parse_arguments()
    # Names of files and classes may hold what a terminal cannot show.
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    warnings.simplefilter("ignore")  # Pillow's, of files that it reads all the same
    try:
        network = Network(arguments.model)
    except UserError as error:
        print(f"predict.py: {shown(str(error))}", file=sys.stderr)
        return 2

    answers: list[dict[str, Any]] = []
    failures = 0
    for name in arguments.images:
        try:
            logits = network.logits(read_picture(name, network.decoding))
        except UserError as error:
            print(f"predict.py: {shown(str(error))}", file=sys.stderr)
            failures += 1
            answers.append({"image": name, "error": str(error)})
            continue
        best = network.best(logits, arguments.top)
        answers.append({"image": name, "top": best, "logits": [float(value) for value in logits]})
        if not arguments.json:
            print(shown(name))
            for found in best:
                print(f"  {100 * found['probability']:6.2f} %  {shown(found['class'])}")
    if arguments.json:
        print(json.dumps(answers, indent=2))
    return 2 if failures else 0


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="predict.py",
        description="Classify image files. Exit code 2 if one of them cannot be read.",
    )
    parser.add_argument("images", nargs="+", metavar="IMAGE", help="image files")
    parser.add_argument(
        "--top", type=at_least_one, default=5, metavar="K", help="classes to show (default: 5)"
    )
    parser.add_argument(
        "--json", action="store_true", help="one JSON list with all logits, an entry for each image"
    )
    parser.add_argument(
        "--model",
        type=Path,
        default=Path(__file__).with_name("model.onnx"),
        metavar="PATH",
        help="the network (default: model.onnx beside this file)",
    )
    return parser.parse_args()


def at_least_one(text: str) -> int:
    number = int(text) if text.isdecimal() else 0
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no number from 1")
    return number


def shown(text: str) -> str:
    """``text`` on one line: what is not to be printed is written as an escape sequence."""
    return "".join(
        letter if letter.isprintable() else letter.encode("unicode_escape").decode("ascii")
        for letter in text
    )


class Network:
    """An exported network, with what it knows of its images and classes."""

    def __init__(self, path: Path) -> None:
        if not path.is_file():
            raise UserError(f"{path}: no such file; --model names the network")
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4  # it would report errors that are told here
        options.add_free_dimension_override_by_name("batch", 1)
        try:
            # The content, since onnxruntime takes no path but in UTF-8.
            self.session = onnxruntime.InferenceSession(
                path.read_bytes(), options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # onnxruntime has a class for each kind, all without a parent
            raise UserError(f"{path}: not an ONNX network ({first_line(error)})") from None
        metadata = self.session.get_modelmeta().custom_metadata_map
        try:
            self.preprocessing: dict[str, Any] = json.loads(metadata["preprocessing"])
            self.class_names: list[str] = json.loads(metadata["class_names"])
            self.decoding = decoding_of(self.preprocessing)
        except (KeyError, TypeError, ValueError):
            raise UserError(
                f"{path}: its metadata do not say how images are prepared; not an exported network"
            ) from None

    def logits(self, picture: Image.Image) -> np.ndarray:
        """One number for each class."""
        pixels = prepared(picture, self.preprocessing)
        # Mean and standard deviation are of values from 0 to 1.
        mean, std = (
            np.array([255 * value for value in self.preprocessing[name]], np.float32)
            for name in ("mean", "std")
        )
        normalised = (pixels.astype(np.float32) - mean) * (1 / std)
        batch = normalised.transpose(2, 0, 1)[np.newaxis]  # [1, channels, rows, columns]
        (logits,) = self.session.run(["logits"], {"images": np.ascontiguousarray(batch)})
        return np.asarray(logits[0])

    def best(self, logits: np.ndarray, top: int) -> list[dict[str, Any]]:
        """The most probable classes, the best first."""
        shares = np.exp(logits.astype(np.float64) - logits.max())
        shares /= shares.sum()
        return [
            {
                "class": self.class_names[index],
                "index": int(index),
                "probability": float(shares[index]),
            }
            for index in np.argsort(-shares, kind="stable")[:top]
        ]


def decoding_of(preprocessing: dict[str, Any]) -> Decoding:
    """How the network's pictures are decoded."""
    how = Decoding(preprocessing["mode"])
    return Decoding(
        how.mode,
        preprocessing.get("ground", how.ground),
        tuple(preprocessing.get("integer_range", how.integers)),
        tuple(preprocessing.get("float_range", how.floats)),
    )


def read_picture(name: str, how: Decoding) -> Image.Image:
    """The picture in a file, of an animation the first, as 8 bits of grey or RGB."""
    try:
        with Path(name).open("rb") as file:
            content = file.read(MOST_BYTES + 1)
        return decoded(opened(content), how)
    except FileNotFoundError:
        raise UserError(f"{name}: no such file") from None
    except UnidentifiedImageError:
        raise UserError(f"{name}: not an image") from None
    except Exception as error:  # damaged files: readers of each format raise what they like
        raise UserError(f"{name}: cannot be read ({first_line(error)})") from None


def first_line(error: Exception) -> str:
    reason = getattr(error, "strerror", None) or str(error)
    return (reason.strip().splitlines() or [type(error).__name__])[0]


def prepared(picture: Image.Image, preprocessing: dict[str, Any]) -> np.ndarray:
    """Whole numbers from 0 to 255 [rows, columns, channels] in the network's size."""
    size = preprocessing["image_size"]
    rows, columns = (size, size) if isinstance(size, int) else size
    width, height = picture.size
    if preprocessing["fit"] != "resize-then-crop":
        box = middle(picture.size, (columns, rows))
        return scaled(picture, (columns, rows), box, preprocessing["scaled_as"])
    resize = preprocessing["resize"]
    if not isinstance(resize, int):  # both sides are to be covered
        ratio = min(height / resize[0], width / resize[1])
        target = (round(width / ratio), round(height / ratio))
    elif width <= height:
        target = (resize, int(resize * height / width))
    else:
        target = (int(resize * width / height), resize)
    resized = scaled(picture, target, (0, 0, width, height), preprocessing["scaled_as"])
    left, top = round((target[0] - columns) / 2), round((target[1] - rows) / 2)
    return resized[top : top + rows, left : left + columns]


def scaled(
    picture: Image.Image,
    target: tuple[int, int],
    box: tuple[float, float, float, float],
    scaled_as: str,
) -> np.ndarray:
    """The part of a picture within ``box``, in ``target`` pixels: [rows, columns, channels]."""
    bicubic = Image.Resampling.BICUBIC
    if picture.size == target:  # nothing to scale; the box is the whole picture
        pixels = np.asarray(picture)
    elif scaled_as == "floats":
        channels = [
            np.asarray(channel.convert("F").resize(target, bicubic, box=box))
            for channel in picture.split()
        ]
        pixels = np.stack(channels, axis=-1).round().clip(0, 255)
    else:
        pixels = np.asarray(picture.resize(target, bicubic, box=box))
    return pixels[:, :, np.newaxis] if pixels.ndim == 2 else pixels


if __name__ == "__main__":
    sys.exit(main())
