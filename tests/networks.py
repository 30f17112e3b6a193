"""Descriptions of the small networks that tests build."""

# A teacher that is created and trained in no time: options of timm's regnety_002.
SMALL_REGNETY = {
    "depth": 4,
    "w0": 48,
    "wa": 40,
    "wm": 1.5,
    "group_size": 48,
    "stem_width": 48,
    "output_stride": 8,
}


def tiny_description(**changes: object) -> dict[str, object]:
    """The smallest network worth running: one stage, 16 px, one channel, ten classes."""
    return {
        "image_size": 16,
        "in_channels": 1,
        "num_classes": 10,
        "stem": {"kind": "conv", "layers": 2},
        "stages": [{"depth": 1, "embed_dim": 16, "num_heads": 2, "key_dim": 8}],
        **changes,
    }


def tiny_space(**sections: object) -> dict[str, object]:
    """A space of 16 networks that train in a second, without a teacher or a clock.

    Its trials are kept in a journal, which takes a quarter of SQLite's time.
    """
    return {
        "name": "tiny",
        "data": {"name": "digits", "image_size": 16, "train_images": 256},
        "architecture": {
            "num_stages": {"choices": [1, 2]},
            "stem": {"kind": "conv", "layers": 2},
            "stages": [
                {"depth": 1, "embed_dim": {"choices": [8, 16]}, "num_heads": 1, "key_dim": 8},
                {
                    "depth": {"range": [1, 2]},
                    "embed_dim": {"choices": [16, 24, 32]},
                    "num_heads": 2,
                    "key_dim": 8,
                },
            ],
        },
        "train": {"epochs": 1, "batch_size": 64, "lr": 5.0e-3, "threads": 1, "device": "cpu"},
        "teacher": None,
        "objectives": ["top1_percent", "flops"],
        "storage": "journal",
        "search": {"trials": 5, "sampler": "tpe", "startup_trials": 3},
        **sections,
    }
