"""From files to pixels: what worker processes do."""

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor
from torch.utils.data import Dataset

from fused_preact._extras import require
from fused_preact.data.crops import SCALES, Box, views
from fused_preact.data.source import DataError, generator

# ImageNet's principal components of colour (Krizhevsky et al. 2012, sec. 4.1), for values of 0 .. 1, as fb.resnet.torch has them: a row for
# each channel, a column for each component.
COMPONENTS = ((-0.5675, 0.7192, 0.4009), (-0.5808, -0.0045, -0.8140), (-0.5836, -0.6948, 0.4203))
EIGENVALUES = (0.2175, 0.0188, 0.0045)
LIGHTING_STD = 0.1
# Others that Pillow knows are none of photographs, and for one, PostScript, it would run a program: whatever a file is called.
FORMATS = ("JPEG", "PNG", "BMP", "GIF", "PPM", "TIFF", "WEBP")


class Numbered(NamedTuple):
    """A file, the number of its class and its own in the data set."""

    path: str
    label: int
    number: int


class Look(NamedTuple):
    """What is taken of an image: `boxes`, mirrored or not, and what is added to its channels (for values of 0 .. 255)."""

    boxes: Sequence[Box]
    mirrored: bool = False
    colour: tuple[float, float, float] | None = None


class Chooser(Protocol):
    """Chooses the look of an image by its size and its number; as many boxes for each, all with a colour or none."""

    def __call__(self, width: int, height: int, number: int) -> Look: ...


class Drawn(NamedTuple):
    """A look drawn from (seed, epoch, the image's number) and from nothing else."""

    crop: int
    scale: str
    lighting: bool
    seed: int
    epoch: int

    def __call__(self, width: int, height: int, number: int) -> Look:
        draws = generator(self.seed, self.epoch, number)
        box = SCALES[self.scale](width, height, self.crop, draws)
        mirrored = torch.rand((), generator=draws).item() < 0.5
        return Look([box], mirrored, _colour(draws) if self.lighting else None)


class Viewed(NamedTuple):
    """The look of evaluation: see `crops.views`."""

    crop: int
    resize: int
    corners: bool

    def __call__(self, width: int, height: int, number: int) -> Look:
        return Look(views(width, height, *self))


class Pixels(NamedTuple):
    """A batch of V boxes an image: `crops` (N, V, crop, crop, 3) uint8, `labels` (N,) int64, `colours` (N, 3) float32 or None."""

    crops: Tensor
    labels: Tensor
    colours: Tensor | None


class Reader(Dataset[Pixels | DataError]):
    """Its items are batches, asked for by their images; a DataError is one too, because DataLoader would add a worker's traceback to it."""

    def __init__(self, crop: int, choose: Chooser) -> None:
        self.crop, self.choose = crop, choose

    def __getitem__(self, images: Sequence[Numbered]) -> Pixels | DataError:
        pixels, colours = bytearray(), []
        try:
            for image in images:
                crops, colour = read(image, self.crop, self.choose)
                pixels += crops
                colours.append(colour)
        except DataError as error:
            return error
        crops = torch.frombuffer(pixels, dtype=torch.uint8).view(len(images), -1, self.crop, self.crop, 3)
        return Pixels(crops, torch.tensor([image.label for image in images]), None if colours[0] is None else torch.tensor(colours))


def read(image: Numbered, crop: int, choose: Chooser) -> tuple[bytes, tuple[float, float, float] | None]:
    """The boxes that `choose` wants of a file, each resized to crop * crop * 3 bytes of RGB, one after the other, and its colour.

    Bicubic, as in fb.resnet.torch, but smoothed where it shrinks. Grey, palette and CMYK images become RGB, transparency is dropped, an
    animation is its first frame, and of 16 bits the upper 8 count. The orientation in EXIF is not heeded, nor is it by torchvision's
    ImageFolder or fb.resnet.torch. Raises DataError for what cannot be decoded.
    """
    pillow = require("PIL.Image")
    try:
        with pillow.open(image.path, formats=FORMATS) as opened:
            look = choose(*opened.size, image.number)
            shrunk = _shrink(opened, look.boxes, crop)
            rgb = _rgb(opened)
            crops = [rgb.resize((crop, crop), pillow.Resampling.BICUBIC, tuple(side / shrunk for side in box)) for box in look.boxes]
    # Damaged files make Pillow's decoders raise whatever they stumble over.
    except Exception as error:
        reason = str(error) if isinstance(error, OSError) else f"{type(error).__name__}: {error}"
        raise DataError(f"expected an image that can be decoded in {image.path}, got {reason}") from error
    if look.mirrored:
        crops = [part.transpose(pillow.Transpose.FLIP_LEFT_RIGHT) for part in crops]
    return b"".join(part.tobytes() for part in crops), look.colour


def _shrink(image: Any, boxes: Sequence[Box], crop: int) -> float:
    """Let a JPEG be decoded at 1/2, 1/4 or 1/8 of its size, which is returned inverted, where that leaves twice the pixels that are wanted.

    Photographs of 2000x1500 are read twice as fast by it. Resizing to 224x224 from twice the size changes a value by 0.4 of 255 on the
    average, from once the size by 1.3, which would be seen.
    """
    width, height = image.size
    least = min(box.right - box.left for box in boxes), min(box.bottom - box.top for box in boxes)
    drafted = image.draft(None, (2 * crop * width / least[0], 2 * crop * height / least[1]))
    return width / drafted[1][2] if drafted else 1.0


def _rgb(image: Any) -> Any:
    if image.mode == "F":
        raise ValueError("floating-point pixels, whose range is not known")
    if image.mode == "I" or image.mode.startswith("I;16"):
        # Pillow would cut off what exceeds 255.
        image = image.convert("I").point(lambda value: value * (1 / 256)).convert("L")
    # About a transparent colour of a palette, Pillow warns.
    image.info.pop("transparency", None)
    # convert would copy what is RGB already, a tenth of the time that an image takes.
    return image if image.mode == "RGB" else image.convert("RGB")


def _colour(draws: torch.Generator) -> tuple[float, float, float]:
    """What AlexNet's noise adds to the channels of an image, for values of 0 .. 255; no tensor, so that no batch size changes its bits."""
    strengths = [
        255 * LIGHTING_STD * value * draw for value, draw in zip(EIGENVALUES, torch.randn(3, generator=draws).tolist(), strict=True)
    ]
    red, green, blue = (sum(a * b for a, b in zip(row, strengths, strict=True)) for row in COMPONENTS)
    return red, green, blue
