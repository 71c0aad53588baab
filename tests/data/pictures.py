"""Images that tell where each of their pixels comes from."""

from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from fused_preact.data.crops import Box
from fused_preact.data.folder import MEAN, STD


def ramp(width: int, height: int, blue: int = 0) -> Image.Image:
    """Red is the column, green the row, so that a box of it can be told after it was resized too, and blue is `blue`."""
    pixels = torch.empty(height, width, 3, dtype=torch.uint8)
    pixels[..., 0] = torch.arange(width)
    pixels[..., 1] = torch.arange(height)[:, None]
    pixels[..., 2] = blue
    return picture(pixels)


def seen(box: Box, crop: int, mirrored: bool = False) -> Tensor:
    """Columns and rows (crop, crop, 2) of a ramp's box after resizing: filters keep straight lines, but for the image's edges."""
    columns, rows = ((torch.arange(crop) + 0.5) * (b - a) / crop + a - 0.5 for a, b in ((box.left, box.right), (box.top, box.bottom)))
    columns = columns.flip(0) if mirrored else columns
    return torch.stack((columns.expand(crop, crop), rows[:, None].expand(crop, crop)), 2)


def picture(pixels: Tensor) -> Image.Image:
    """(H, W, 3) uint8 as an image."""
    return Image.frombytes("RGB", (pixels.shape[1], pixels.shape[0]), pixels.contiguous().numpy().tobytes())


def pixels(image: Image.Image) -> Tensor:
    """An RGB image as (H, W, 3) uint8."""
    return torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8).view(image.height, image.width, 3)


def undone(images: Tensor) -> Tensor:
    """Normalised images (N, 3, H, W) as (N, H, W, 3) of 0 .. 255."""
    return images.permute(0, 2, 3, 1) * torch.tensor(STD) + torch.tensor(MEAN)


def save(image: Image.Image, path: Path, **options: object) -> Path:
    """Write `image` where no folder need exist."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, **options)
    return path
