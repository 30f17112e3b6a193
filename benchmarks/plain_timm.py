"""What a network of timm's comes to, trained plainly on a folder of pictures for so many seconds.

    python benchmarks/plain_timm.py FOLDER --seconds 1800 --views plain --json plain.json

The other side of a search that had as much core time. FOLDER has train/CLASS/* and val/CLASS/*;
all of train/ is trained on, from fresh weights with AdamW, label smoothing and a learning rate that
falls as a cosine of the time; val/ is looked at once, at the end. Views are ``plain`` (shifted by
an eighth), ``mirrored`` (and mirrored) or ``randaug`` (and timm's RandAugment, m7).
"""

import argparse
import math
import sys
import time
from pathlib import Path

import timm
import torch
from timm.data.auto_augment import rand_augment_transform
from torch.utils.data import DataLoader
from torchvision import datasets, transforms

from levit_search.files import write_json
from levit_search.study.folder import environment

VIEWS = ("plain", "mirrored", "randaug")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--network", default="resnet10t")
    parser.add_argument("--seconds", type=float, default=220)
    parser.add_argument("--views", choices=VIEWS, default="plain")
    parser.add_argument("--size", type=int, default=64, help="px a side")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    torch.manual_seed(given.seed)
    torch.set_num_threads(given.threads)
    ends = [transforms.ToTensor(), transforms.Normalize((0.5,) * 3, (0.25,) * 3)]
    sized = transforms.Resize((given.size, given.size))
    views = [sized, transforms.RandomCrop(given.size, given.size // 8, padding_mode="edge")]
    if given.views == "mirrored":
        views.append(transforms.RandomHorizontalFlip())
    if given.views == "randaug":
        reach = {"translate_const": given.size // 8}
        views.append(rand_augment_transform("rand-m7-mstd0.5", reach))
    train = datasets.ImageFolder(given.folder / "train", transforms.Compose([*views, *ends]))
    test = datasets.ImageFolder(given.folder / "val", transforms.Compose([sized, *ends]))
    model = timm.create_model(given.network, num_classes=len(train.classes))
    optimizer = torch.optim.AdamW(model.parameters(), lr=given.lr, weight_decay=0.05)
    loss_of = torch.nn.CrossEntropyLoss(label_smoothing=0.1)
    begun, epochs, steps, share = time.perf_counter(), 0, 0, 0.0
    while share < 1:
        model.train()
        for images, labels in DataLoader(train, given.batch_size, shuffle=True, drop_last=True):
            share = (time.perf_counter() - begun) / given.seconds
            if share >= 1:
                break
            warm = min(1.0, (steps + 1) / 100)
            for group in optimizer.param_groups:
                group["lr"] = given.lr * warm * (1 + math.cos(math.pi * share)) / 2
            loss = loss_of(model(images), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            steps += 1
        epochs += 1
    seconds = time.perf_counter() - begun
    model.eval()
    with torch.no_grad():
        right = sum(
            int((model(images).argmax(1) == labels).sum())
            for images, labels in DataLoader(test, given.batch_size)
        )
    percent = 100 * right / len(test)
    print(
        f"{given.network} {given.views}: {percent:.1f} % of {len(test)} after {steps:,} steps, "
        f"{epochs} epochs, {seconds:.0f} s"
    )
    if given.json is not None:
        row = {"test_top1_percent": percent, "test_images": len(test), "steps": steps}
        row |= {"epochs": epochs, "seconds": seconds, "network": given.network}
        row |= {"views": given.views, "threads": given.threads, "seed": given.seed}
        write_json(given.json, {"row": row, "environment": environment(sys.argv)})


if __name__ == "__main__":
    main()
