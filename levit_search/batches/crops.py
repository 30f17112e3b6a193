"""Cutting views out of many images at once: shifted, mirrored, resized.

Shapes: N images of a set, B of a batch, C channels, S pixels a side.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

_AT_ONCE = 2**22  # pixels that are resized at once, in floating point


class Windows:
    """Images uint8 [N, C, S, S] with a black border, to be cut out at any place."""

    def __init__(self, images: Tensor, border: int) -> None:
        _, self._channels, self._size, _ = images.shape
        self._width = self._size + 2 * border
        # Entry i is the line of S pixels that begins at the i-th of all pixels: a view, not a copy.
        self._lines = F.pad(images, (border,) * 4).flatten().unfold(0, self._size, 1)
        first = torch.arange(self._channels)[:, None] * self._width + torch.arange(self._size)
        self._firsts = (first * self._width).to(images.device)

    def cut(self, indices: Tensor, corners: Tensor, mirrored: Tensor | None) -> Tensor:
        """Views uint8 [B, C, S, S] on the images' device.

        Args (all on the CPU):
            indices: the images, int64 [B].
            corners: row and column of the bordered image at which each view begins, int64 [B, 2].
            mirrored: which views to turn left to right, bool [B]; None for none of them.
        """
        device = self._lines.device
        if mirrored is not None:  # those to be turned come last, so that they are one slice
            order = mirrored.argsort()
            back = order.argsort().to(device)
            indices, corners = indices[order], corners[order]
        first = (indices * self._channels * self._width + corners[:, 0]) * self._width
        starts = (first + corners[:, 1]).to(device)[:, None, None] + self._firsts
        lines = self._lines.index_select(0, starts.flatten())
        views = lines.view(len(indices), self._channels, self._size, self._size)
        if mirrored is None:
            return views
        turned = views[len(views) - int(mirrored.sum()) :]
        turned.copy_(turned.flip(-1))
        return views.index_select(0, back)


class Resizer:
    """Boxes of images resized to the whole, bicubic as Pillow does it.

    A crop is never larger than what it becomes, so that nothing has to be smoothed away, and each
    pixel of the view is made of four of the box along each axis. An axis is a matrix product.
    """

    def __init__(self, size: int, device: torch.device) -> None:
        self._size = size
        self._firsts, self._weights = (part.to(device) for part in _taps(size))
        self._taps = torch.arange(4, device=device)

    def __call__(self, images: Tensor, boxes: Tensor) -> Tensor:
        """uint8 [B, C, S, S]: of each image its box [B, 4] (top, left, height, width)."""
        at_once = max(1, _AT_ONCE // images[0].numel())
        parts = zip(images.split(at_once), boxes.split(at_once), strict=True)
        return torch.cat([self._resized(*part) for part in parts])

    def _resized(self, images: Tensor, boxes: Tensor) -> Tensor:
        count, channels, size, _ = images.shape
        rows, columns = (self._matrices(boxes[:, axis], boxes[:, axis + 2]) for axis in (0, 1))
        wide = torch.bmm(images.reshape(count, channels * size, size).float(), columns.mT)
        wide = wide.view(count, channels, size, size).transpose(1, 2).reshape(count, size, -1)
        whole = torch.bmm(rows, wide).round_().clamp_(0, 255).to(torch.uint8)
        return whole.view(count, size, channels, size).transpose(1, 2).contiguous()

    def _matrices(self, starts: Tensor, lengths: Tensor) -> Tensor:
        """float32 [B, S, S] from the pixels of an axis to those of the view."""
        firsts = self._firsts.index_select(0, lengths - 1) + starts[:, None]
        # Pixels beyond the image have no weight, wherever it is added.
        places = (firsts[..., None] + self._taps).clamp_(0, self._size - 1)
        weights = self._weights.index_select(0, lengths - 1)
        matrices = weights.new_zeros(len(starts), self._size, self._size)
        return matrices.scatter_add_(2, places, weights)


def _taps(size: int) -> tuple[Tensor, Tensor]:
    """For each length of a box up to S and each pixel of the view: the first of the four pixels
    that it is made of, int64 [S, S], and their weights, float32 [S, S, 4]."""
    lengths = torch.arange(1, size + 1, dtype=torch.float64)[:, None]
    centres = (torch.arange(size, dtype=torch.float64) + 0.5) * (lengths / size)
    firsts = (centres - 0.5).floor().long() - 1
    pixels = firsts[..., None] + torch.arange(4)
    weights = cubic((pixels + 0.5 - centres[..., None]).abs(), -0.5)
    weights *= (pixels >= 0) & (pixels < lengths[..., None])
    return firsts, (weights / weights.sum(-1, keepdim=True)).float()


def cubic(distance: Tensor, slope: float) -> Tensor:
    """Keys' convolution kernel (1981) with the derivative ``slope`` at distance 1."""
    near = ((slope + 2) * distance - (slope + 3)) * distance**2 + 1
    far = ((distance - 5) * distance + 8) * distance - 4
    return torch.where(distance < 1, near, torch.where(distance < 2, slope * far, 0.0))
