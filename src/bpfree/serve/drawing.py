"""A drawing becomes an image in the form of a data set: of its size, with the ink where training images have it.

Two recipes are used. They are those of the data sets on which people draw.

- MNIST (LeCun et al. 1998, "Gradient-based learning applied to document recognition"): the ink is scaled to fit into a
  box of 20/28 of the image, and its centre of mass is moved to the centre of the image.
- Small images, such as the digits of scikit-learn (Alpaydin, Kaynak 1998, https://doi.org/10.24432/C50P49): the ink is
  scaled to the height of a bitmap of four times the size, and each pixel is the share of its 4x4 bits that have ink.
  Those digits are narrow and their lines are thick: wide ink is pressed together, and lines get one bit on each side.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

_BOX = 20 / 28  # of the side of an image
_SMALL = 16  # an image with sides up to this length is made from a bitmap
_BLOCK = 4  # bits along the side of one pixel
_WIDEST = 5 / 8  # of the width of a small image
_PRESSED = 2  # the most that the width is pressed together against the height
_INK = 0.1  # a value above it is ink


def to_form(drawing: Tensor, size: tuple[int, int]) -> Tensor:
    """Return a drawing as an image, with values from 0 (paper) to 1 (ink).

    Args:
        drawing: [h, w] with values from 0 to 1, of any size.
        size: (H, W) of the image.

    Returns:
        float32 [H, W]; zeros for a drawing without ink.

    Example:
        >>> dot = torch.zeros(28, 28).index_put((torch.tensor([2]), torch.tensor([3])), torch.ones(()))
        >>> to_form(dot, (8, 8)).shape
        torch.Size([8, 8])
    """
    ink = cropped(drawing.float().clamp(0, 1))
    if ink is None:
        return torch.zeros(size)
    if max(size) <= _SMALL:
        bits = (_bitmap(ink, (_BLOCK * size[0], _BLOCK * size[1])) >= 0.5).float()
        return F.avg_pool2d(bits[None, None], _BLOCK)[0, 0]
    box = (_BOX * size[0], _BOX * size[1])
    scale = min(box[0] / ink.shape[0], box[1] / ink.shape[1])
    return by_mass(_scaled(ink, scale * ink.shape[0], scale * ink.shape[1]), size)


def cropped(drawing: Tensor) -> Tensor | None:
    """Cut the empty edges off a drawing [h, w], and return the rest; None for a drawing without ink."""
    rows, columns = (drawing > _INK).nonzero(as_tuple=True)
    if not len(rows):
        return None
    return drawing[int(rows.min()) : int(rows.max()) + 1, int(columns.min()) : int(columns.max()) + 1]


def _bitmap(ink: Tensor, size: tuple[int, int]) -> Tensor:
    """Return the ink [h, w] in the middle of a bitmap (H, W), as high as it and narrow, with thick lines."""
    width = min(_WIDEST * size[1], size[0] / ink.shape[0] * ink.shape[1])
    height = min(size[0], _PRESSED * width / ink.shape[1] * ink.shape[0])
    scaled = _scaled(ink, height, width)
    middle = _placed(scaled, size, (size[0] - scaled.shape[0]) // 2, (size[1] - scaled.shape[1]) // 2)
    return F.max_pool2d(middle[None, None], 3, stride=1, padding=1)[0, 0]


def _scaled(ink: Tensor, height: float, width: float) -> Tensor:
    """Return the ink [h, w] scaled to a height and a width."""
    size = (max(1, round(height)), max(1, round(width)))
    scaled = F.interpolate(ink[None, None], size=size, mode="bilinear", antialias=True, align_corners=False)
    return scaled[0, 0].clamp(0, 1)


def by_mass(ink: Tensor, size: tuple[int, int]) -> Tensor:
    """Return an image with the centre of mass of the ink at its centre; what would lie outside is pushed inside.

    Args:
        ink: [h, w], not larger than the image.
        size: (H, W) of the image.
    """
    total = ink.sum()
    offsets = []
    for side, sums in zip(size, (ink.sum(1), ink.sum(0)), strict=True):
        middle = float((sums * (torch.arange(len(sums)) + 0.5)).sum() / total)
        offsets.append(min(max(round(side / 2 - middle), 0), side - len(sums)))
    return _placed(ink, size, *offsets)


def _placed(ink: Tensor, size: tuple[int, int], top: int, left: int) -> Tensor:
    height, width = ink.shape
    return F.pad(ink, (left, size[1] - left - width, top, size[0] - top - height))
