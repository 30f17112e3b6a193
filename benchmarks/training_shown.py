"""The tables of ``benchmarks/training.py``."""

from collections.abc import Mapping
from typing import Any


def shown(name: str, found: Mapping[str, Any]) -> str:
    """The table of one part."""
    known = found["settings"]
    head = (
        f"\n{name}: {known['gpu'] or known['cpu']}, {known['cores']} cores, "
        f"torch {known['packages']['torch']}, timm {known['packages']['timm']}, "
        f"{found['seconds']:.0f} s"
    )
    tables = {
        "epoch": shown_epoch,
        "parity": shown_parity,
        "data": shown_data,
        "whole": shown_whole,
    }
    return "\n".join([head, *tables[name](found)])


def shown_epoch(found: Mapping[str, Any]) -> list[str]:
    lines = [
        f"LeViT of {found['network']['params'] / 1e6:.2f}M, {found['teacher']['name']} of "
        f"{found['teacher']['params'] / 1e6:.1f}M with random weights",
        f"{'teacher':14} {'ms an image':>12}  to none",
    ]
    lines += [
        f"{way:14} {row['image_ms']:12.3f}  {spread(row['to_none'])}  ({row['images']} images)"
        for way, row in found["ways"].items()
    ]
    lines += [
        f"store, {kind}: {store['image_bytes']:.0f} bytes a view; pays for itself from "
        f"{spread(store['pays_from_candidates'])} candidates on"
        for kind, store in found["stores"].items()
    ]
    reached = {True: "reached", False: "missed"}
    lines += [
        f"cached, {kind}, at most 1.15: {reached[is_reached]}"
        for kind, is_reached in found["cached_at_most_1.15"].items()
    ]
    return lines


def shown_parity(found: Mapping[str, Any]) -> list[str]:
    lines = ["teaching views  losses  weights   answers apart  losses apart  of epochs  classes"]
    equal = {True: "equal", False: "differ"}
    lines += [
        f"{row['distillation']:8} {row['views']:6} {equal[row['equal_losses']]:>7} "
        f"{equal[row['equal_weights']]:>8} {row['answers_apart']:15.1e} "
        f"{row['losses_apart']:13.1e} {row['epoch_losses_apart']:10.1e} "
        f"{row['classes_answered']:8}"
        for row in found["rows"]
    ]
    reached = {True: "reached", False: "missed"}
    lines.append(
        f"hard bit-equal: {reached[found['hard_is_bit_equal']]}; "
        f"soft within 0.001: {reached[found['soft_within_0.001']]}"
    )
    return lines


def shown_data(found: Mapping[str, Any]) -> list[str]:
    lines = [f"{'path':42} images a second  times the best of timm"]
    lines += [
        f"{name:42} {row['images_per_second']:15.0f}  {spread(row['to_best_of_timm'])}"
        for name, row in found["paths"].items()
    ]
    lines.append(f"at least 5: {'reached' if found['at_least_5'] else 'missed'}")
    return lines


def shown_whole(found: Mapping[str, Any]) -> list[str]:
    lines = [f"LeViT of {found['network']['params'] / 1e6:.2f}M, {found['images']} images in all"]
    accuracy = found["accuracy"]
    for index, side in enumerate(("ours", "timm")):
        sd = accuracy["sds"][index]
        lines.append(
            f"{found['settings_that_won'][side]:42} "
            f"{found['images_per_second'][side]:8.0f} images/s  "
            f"{accuracy['means'][index]:.2f} % on test"
            + (f", sd {sd:.2f}" if sd is not None else "")
        )
    lines.append(
        f"ours / timm {spread(found['ratio'])}; at least 1.5: "
        f"{'reached' if found['at_least_1.5'] else 'missed'}"
    )
    if accuracy["ci95"] is not None:
        low, high = accuracy["ci95"]
        lines.append(
            f"accuracy {accuracy['points']:+.2f} points ({low:+.2f} to {high:+.2f}): "
            f"{'within' if accuracy['within_noise'] else 'beyond'} noise"
        )
    return lines


def spread(found: Mapping[str, Any]) -> str:
    low, high = found["ci95"]
    return f"{found['ratio']:.3f} ({low:.3f}-{high:.3f})"
