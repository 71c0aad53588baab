"""Which part of an image a network sees; the image itself is not needed, only its size."""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Generator

ATTEMPTS = 10
AREA = (0.08, 1.0)
RATIO = (3 / 4, 4 / 3)


class Box(NamedTuple):
    """A rectangle in pixels of the image, whose sides need not lie between pixels; resized to the crop."""

    left: float
    top: float
    right: float
    bottom: float


def aspect(width: int, height: int, crop: int, generator: Generator) -> Box:
    """A box of 8 to 100 % of the image's area, drawn as RandomSizedCrop of fb.resnet.torch does (Szegedy et al., arXiv:1409.4842, sec. 6).

    That code trained the authors' ResNet-200. A factor uniform in 3/4 .. 4/3 multiplies one side of the square of that area and divides
    the other, either of them with the same chance, so that the sides' ratio lies in 9/16 .. 16/9: wider than the 3/4 .. 4/3 of the article
    and of torchvision, whose ratio is log-uniform. After ten boxes that do not fit, it is the centre of the image with its shorter side
    resized to `crop`.
    """
    for area, ratio, turned, x, y in torch.rand(ATTEMPTS, 5, generator=generator, dtype=torch.float64).tolist():
        side, factor = math.sqrt(_between(*AREA, area) * width * height), _between(*RATIO, ratio)
        w, h = max(1, round(side * factor)), max(1, round(side / factor))
        if turned < 0.5:
            w, h = h, w
        if w <= width and h <= height:
            left, top = int(x * (width - w + 1)), int(y * (height - h + 1))
            return Box(left, top, left + w, top + h)
    return views(width, height, crop, crop)[0]


def shorter_side(width: int, height: int, crop: int, generator: Generator) -> Box:
    """A square of `crop` pixels anywhere in the image with its shorter side resized to 256 .. 480 (He et al., arXiv:1512.03385, sec. 3.4).

    These are the sizes for a crop of 224; for another they are in proportion.
    """
    low, high = round(crop * 256 / 224), round(crop * 480 / 224)
    size, x, y = torch.rand(3, generator=generator, dtype=torch.float64).tolist()
    least, shorter = min(width, height), low + int(size * (high - low + 1))
    scaled = round(width * shorter / least), round(height * shorter / least)
    left, top = int(x * (scaled[0] - crop + 1)), int(y * (scaled[1] - crop + 1))
    return _window(width, height, scaled, left, top, crop)


SCALES: dict[str, Callable[[int, int, int, Generator], Box]] = {"aspect": aspect, "shorter-side": shorter_side}


def views(width: int, height: int, crop: int, resize: int, corners: bool = False) -> list[Box]:
    """Squares of `crop` pixels in the image with its shorter side resized to `resize`, at least `crop`.

    The centre; with `corners` also top left, top right, bottom left and bottom right, as TenCrop of fb.resnet.torch orders them.
    """
    # Whole pixels below, as there and in torchvision; RandomScale rounds.
    least = min(width, height)
    scaled = width * resize // least, height * resize // least
    right, bottom = scaled[0] - crop, scaled[1] - crop
    # Half a pixel goes to the left and to the top, as there.
    places = [((right + 1) // 2, (bottom + 1) // 2)]
    if corners:
        places += [(0, 0), (right, 0), (0, bottom), (right, bottom)]
    return [_window(width, height, scaled, left, top, crop) for left, top in places]


def _between(low: float, high: float, share: float) -> float:
    return low + (high - low) * share


def _window(width: int, height: int, scaled: tuple[int, int], left: int, top: int, crop: int) -> Box:
    """The square of `crop` pixels at (left, top) of the image once resized to `scaled`, in pixels of the image as it is.

    So what lies outside of it is never resized: cutting afterwards takes 1.7 times as long.
    """
    # Multiplied first, so that the far edge of the image comes out exactly.
    horizontal = (left * width / scaled[0], (left + crop) * width / scaled[0])
    vertical = (top * height / scaled[1], (top + crop) * height / scaled[1])
    return Box(horizontal[0], vertical[0], horizontal[1], vertical[1])
