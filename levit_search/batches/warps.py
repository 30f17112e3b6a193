"""Images sheared, moved and turned, many at once, each by its own amount, as Pillow does it.

Shapes: B images, C channels, S pixels a side. What comes from beyond the image has the colour
``fill`` [C].
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from levit_search.batches.crops import cubic


def lines_shifted(images: Tensor, offsets: Tensor, fill: Tensor) -> Tensor:
    """uint8 [B, C, S, S]: pixel x of line y comes from x + ``offsets`` [B, S] of that line.

    A shear or a move along the lines shifts each of them as a whole: the new line is made of four
    stretches of the old one, each with one weight for all of its pixels.
    """
    count, channels, size, _ = images.shape
    offsets = offsets.clamp(-size, size)  # beyond that there is nothing to see
    first = offsets.floor()
    weights = cubic(((offsets - first)[..., None] - torch.arange(-1, 3)).abs(), -1.0)
    border = size + 2
    width = size + 2 * border
    padded = F.pad(images.float(), (border, border, 0, 0), mode="replicate")
    places = torch.arange(count * channels * size).view(count, channels, size) * width
    places += (first.long() + (border - 1))[:, None]
    device = images.device
    weights, places = weights[:, None].float().to(device), places.flatten().to(device)
    stretches = padded.flatten().unfold(0, size + 3, 1).index_select(0, places)
    stretches = stretches.view(count, channels, size, size + 3)
    shifted = stretches[..., :size] * weights[..., :1]
    for tap in (1, 2, 3):
        shifted.addcmul_(stretches[..., tap : tap + size], weights[..., tap : tap + 1])
    inside = torch.arange(size) + 0.5 + offsets[..., None]
    return _filled(shifted, ((inside >= 0) & (inside < size)).to(device), fill)


def rotated(images: Tensor, degrees: Tensor, fill: Tensor) -> Tensor:
    """uint8 [B, C, S, S] turned around the middle, against the clock by ``degrees`` [B]."""
    angle = torch.deg2rad(degrees.float())
    cosine, sine = angle.cos(), angle.sin()
    zero = torch.zeros_like(angle)
    rows = torch.stack((cosine, -sine, zero, sine, cosine, zero), 1).view(-1, 2, 3)
    grid = F.affine_grid(rows, list(images.shape), align_corners=False)
    turned = F.grid_sample(
        images.float(), grid, mode="bicubic", padding_mode="border", align_corners=False
    )
    return _filled(turned, ((grid >= -1) & (grid < 1)).all(-1), fill)


def _filled(values: Tensor, inside: Tensor, fill: Tensor) -> Tensor:
    """uint8 of ``values`` where they are ``inside`` [B, S, S]."""
    fill = fill.view(1, -1, 1, 1)
    values = values.round_().clamp_(0, 255)
    return values.sub_(fill).mul_(inside[:, None]).add_(fill).to(torch.uint8)
