"""Random erasing (Zhong et al. 2020) as in timm's ``pixel`` mode: a box of noise in some images."""

import torch
from torch import Tensor

from levit_search.batches.boxes import Proportions, draw_boxes
from levit_search.batches.order import generator

_PROPORTIONS = Proportions(area=(0.02, 1 / 3), aspect=(0.3, 1 / 0.3))  # timm's defaults
_NOISE = 2**20  # random numbers, of which each box shows some stretch
_NOISE_SEED = 2020


class Eraser:
    """Erases images [B, C, S, S] on one device.

    Args:
        image: channels and sides of an image.
        device: theirs.
    """

    def __init__(self, image: torch.Size, device: torch.device) -> None:
        self._image = image
        noise = torch.randn(_NOISE + image.numel(), generator=generator(_NOISE_SEED))
        self._patches = noise.to(device).unfold(0, image.numel(), 1)
        self._pixels = torch.arange(image[-1], device=device)

    def __call__(self, images: Tensor, boxes: Tensor) -> Tensor:
        """Normalised ``images`` float32 [B, C, S, S] with ``boxes`` erased, in place."""
        which = boxes[:, 2].nonzero()[:, 0]
        places, boxes = which.to(images.device), boxes[which].to(images.device)
        first, sides = boxes[:, 0:2, None], boxes[:, 2:4, None]
        rows, columns = ((self._pixels >= first) & (self._pixels < first + sides)).unbind(1)
        inside = (rows[:, :, None] & columns[:, None, :])[:, None]
        noise = self._patches.index_select(0, boxes[:, 4]).view(-1, *self._image)
        erased = torch.where(inside, noise, images.index_select(0, places))
        return images.index_copy_(0, places, erased)


def draw_erased(count: int, size: int, probability: float, chance: torch.Generator) -> Tensor:
    """Boxes int64 [B, 5]: top, left, height, width, where the noise begins; no height for none."""
    boxes = draw_boxes(count, _PROPORTIONS, size, size - 1, 0, chance)
    boxes[torch.rand(count, generator=chance) >= probability, 2:] = 0
    return torch.cat((boxes, torch.randint(_NOISE, (count, 1), generator=chance)), 1)
