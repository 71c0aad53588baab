"""How the work of a weight's gradient is cut into blocks: pure functions of shape and device, to frozen records."""

from typing import NamedTuple

from fused_preact.backends.cuda.environment import Device
from fused_preact.backends.cuda.tiles import Problem


class WgradTile(NamedTuple):
    """Pixels at a time, output and input channels of a block; blocks that share out the pixels, a part of the gradient each; bytes."""

    pixels: int
    k: int
    c: int
    parts: int
    shared: int


def shared(parts: int) -> WgradTile:
    """Where each of so many blocks of the input's gradient gives a part."""
    return WgradTile(0, 0, 0, parts, 0)


def wgrad_tile(p: Problem, device: Device) -> WgradTile | None:
    """None if no tile fits the device."""
    return None
