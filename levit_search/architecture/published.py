"""The paper's networks by name: the LeViTs, the grafts and the ablations (Graham et al. 2021)."""

from functools import cache
from typing import Any

from levit_search.architecture.graft import Graft
from levit_search.architecture.levit import Levit
from levit_search.errors import UnknownNameError

_IMAGENET = {"image_size": 224, "in_channels": 3, "num_classes": 1000}

# embed_dim, num_heads, key_dim, depth, drop_path: Table 2. LeViT-384's second shrinking block has
# 512 / 32 = 16 heads as in the released code (the table prints 18).
_LEVITS: dict[str, tuple[tuple[int, ...], tuple[int, ...], int, tuple[int, ...], float]] = {
    "LeViT-128S": ((128, 256, 384), (4, 6, 8), 16, (2, 3, 4), 0.0),
    "LeViT-128": ((128, 256, 384), (4, 8, 12), 16, (4, 4, 4), 0.0),
    "LeViT-192": ((192, 288, 384), (3, 5, 6), 32, (4, 4, 4), 0.0),
    "LeViT-256": ((256, 384, 512), (4, 6, 8), 32, (4, 4, 4), 0.0),
    "LeViT-384": ((384, 512, 768), (6, 9, 12), 32, (4, 4, 4), 0.1),
}

# ResNet-50 stages, DeiT-Small layers, distillation token: Table 1. The published parameters of the
# three grafts are those with a distillation token and head, of both ends those without.
_GRAFTS: dict[str, tuple[int, int, bool]] = {
    "graft-0-12": (0, 12, False),
    "graft-1-9": (1, 9, True),
    "graft-2-6": (2, 6, True),
    "graft-3-3": (3, 3, True),
    "graft-4-0": (4, 0, False),
}

# What each ablation of LeViT-128S changes: Table 5, which counts one head throughout. A4 differs
# from the base in training only (no teacher).
_NARROW = {"key_dim": 30, "attn_ratio": 1, "mlp_ratio": 4}
_ABLATIONS: dict[str, dict[str, Any]] = {
    "ablation-base": {},
    "ablation-A1": {"stages": [{"depth": 11, "embed_dim": 114, "num_heads": 3, "key_dim": 19}]},
    "ablation-A2": {"stem": {"kind": "patch", "patch_size": 16}},
    "ablation-A3": {"norm": "layer"},
    "ablation-A4": {},
    "ablation-A5": {"position": "embedding"},
    "ablation-A6": {
        "stages": [
            {"depth": 2, "embed_dim": 120, "num_heads": 4, **_NARROW},
            {"depth": 3, "embed_dim": 180, "num_heads": 6, **_NARROW},
            {"depth": 4, "embed_dim": 240, "num_heads": 8, **_NARROW},
        ],
        "shrinks": [{"num_heads": 16, **_NARROW}, {"num_heads": 24, **_NARROW}],
    },
    "ablation-A7": {"attention_activation": "none"},
}

LEVITS = tuple(_LEVITS)
GRAFTS = tuple(_GRAFTS)
ABLATIONS = tuple(_ABLATIONS)


def published_names() -> tuple[str, ...]:
    """The names :func:`published` knows: LeViTs, smallest first, then grafts, then ablations."""
    return LEVITS + GRAFTS + ABLATIONS


@cache
def published(name: str) -> Levit | Graft:
    """A published network at 224 px and 1000 classes.

    The LeViTs of Table 2 have both heads. Grafts (Table 1) and ablations (Table 5) have the heads
    that the published parameters count: grafts with stages and layers two, all others one.

    Raises:
        InputError: the name is none of :func:`published_names`.
    """
    if name in _LEVITS:
        widths, heads, key_dim, depths, drop_path = _LEVITS[name]
        stages = [
            {"depth": depth, "embed_dim": width, "num_heads": head_count, "key_dim": key_dim}
            for depth, width, head_count in zip(depths, widths, heads, strict=True)
        ]
        stem = {"kind": "conv", "layers": 4}
        return Levit.model_validate(
            {**_IMAGENET, "stem": stem, "stages": stages, "drop_path": drop_path}
        )
    if name in _GRAFTS:
        stages_kept, depth, distillation = _GRAFTS[name]
        return Graft.model_validate(
            {
                **_IMAGENET,
                "donor": {"name": "resnet50", "stages": stages_kept},
                "trunk": {"depth": depth, "embed_dim": 384, "num_heads": 6, "mlp_ratio": 4},
                "distillation": distillation,
            }
        )
    if name in _ABLATIONS:
        changes = _ABLATIONS[name]
        base = published("LeViT-128S").model_dump(mode="json")
        if "stages" in changes:  # stem and shrinking blocks follow from the stages
            del base["shrinks"]
            base["stem"] = {"kind": "conv", "layers": 4}
        return Levit.model_validate({**base, "distillation": False, **changes})
    raise UnknownNameError("architecture", name, published_names())
