"""What the convolution kernels of csrc/cuda are compiled for: blocks, by channels summed over and output channels at a time."""

from typing import NamedTuple


class Shape(NamedTuple):
    """Of a block of a convolution's kernel: its tile of pixels, warps, and how many share a multiprocessor's registers, if there is one
    slab or more (0: no such kernel)."""

    height: int
    width: int
    warps: int
    one_slab: int
    slabs: int = 0

    @property
    def pixels(self) -> int:
        return self.height * self.width


class WgradShape(NamedTuple):
    """Of a block of a kernel: the tile of output pixels of each of its groups of 4 warps, output and input channels, and taps."""

    height: int
    width: int
    k: int
    c: int
    taps: int = 1
    groups: int = 1

    @property
    def pixels(self) -> int:
        return self.height * self.width


Shapes = dict[tuple[int, int], Shape]

# What csrc/cuda/bn_relu_conv2d_fwd.cu is compiled for, by input channels at a time and output channels. More of both would spill registers,
# or leave no room for a second block.
FLAT: Shapes = {
    (16, 16): Shape(1, 128, 4, 4),
    (16, 32): Shape(1, 128, 4, 4),
    (16, 64): Shape(1, 128, 4, 3),
    (32, 16): Shape(1, 128, 4, 4),
    (32, 32): Shape(1, 128, 4, 4),
    (32, 64): Shape(1, 128, 4, 3),
    (32, 128): Shape(1, 128, 8, 2),
    (64, 16): Shape(1, 128, 4, 4, 4),
    (64, 32): Shape(1, 128, 4, 3, 3),
    (64, 64): Shape(1, 64, 4, 3, 3),
    (64, 128): Shape(1, 64, 4, 3, 2),
}
FLAT_FLOAT32: Shapes = {
    (64, 16): Shape(1, 128, 4, 3),
    (32, 32): Shape(1, 128, 4, 4, 3),
    (16, 64): Shape(1, 128, 4, 3),
    (32, 64): Shape(1, 64, 4, 4, 3),
}
# bn_relu_conv2d_fwd_window.cu: for 3x3 taps without stride and dilation, and for any.
WINDOW_3X3 = {
    (16, 16): Shape(16, 16, 4, 4),
    (32, 32): Shape(16, 16, 8, 2),
    (64, 32): Shape(8, 8, 4, 3),
    (64, 64): Shape(8, 8, 8, 2),
    (32, 64): Shape(8, 16, 8, 0, 1),
}
WINDOW_ANY = {
    (16, 32): Shape(8, 16, 4, 4),
    (32, 32): Shape(8, 16, 4, 4),
    (32, 64): Shape(8, 16, 8, 2, 2),
}
# Of float32 the same table serves both.
WINDOW_3X3_FLOAT32 = {
    (16, 16): Shape(16, 16, 8, 2),
    (32, 32): Shape(16, 8, 8, 2),
    (16, 32): Shape(8, 8, 4, 0, 3),
    (16, 64): Shape(8, 8, 8, 0, 2),
}
WINDOW_ANY_FLOAT32 = {
    (16, 32): Shape(8, 8, 4, 4, 4),
    (16, 64): Shape(8, 8, 8, 2, 2),
}
# bn_relu_conv2d_dgrad_window.cu, by channels of dy at a time and channels of x.
WINDOW_3X3_GRAD = {
    (16, 16): Shape(16, 16, 4, 4),
    (32, 32): Shape(16, 16, 8, 2),
    (64, 32): Shape(8, 8, 4, 3),
    (64, 64): Shape(8, 8, 8, 2),
    (32, 64): Shape(8, 16, 8, 0, 1),
}
WINDOW_ANY_GRAD = {
    (16, 32): Shape(8, 16, 4, 3),
    (32, 32): Shape(8, 16, 4, 3),
    (32, 64): Shape(8, 16, 8, 1, 1),
}
# bn_relu_conv2d_dgrad.cu, likewise.
FLAT_GRAD = {
    (64, 16): Shape(1, 128, 4, 3),
    (128, 32): Shape(1, 64, 4, 3),
    (16, 64): Shape(1, 128, 4, 3),
    (64, 64): Shape(1, 64, 4, 3, 3),
    (32, 128): Shape(1, 128, 8, 2),
    (64, 128): Shape(1, 64, 4, 2, 2),
    (64, 256): Shape(1, 64, 8, 1),
}
FLAT_GRAD_FLOAT32: Shapes = {
    (64, 16): Shape(1, 128, 4, 3),
    (32, 32): Shape(1, 128, 4, 3, 3),
    (16, 64): Shape(1, 64, 4, 3),
    (32, 64): Shape(1, 64, 4, 3, 3),
}
# The same kernels where they compute dweight too, whose sums take registers; the smallest first.
FLAT_BWD = {
    (64, 16): Shape(1, 128, 4, 3),
    (16, 64): Shape(1, 128, 4, 3),
    (128, 32): Shape(1, 64, 4, 2),
    (64, 64): Shape(1, 64, 4, 2),
    (32, 128): Shape(1, 128, 8, 2),
    (256, 64): Shape(1, 64, 8, 1),
    (64, 256): Shape(1, 64, 8, 1),
}
WINDOW_3X3_BWD = {
    (16, 16): Shape(16, 16, 4, 3),
    (32, 32): Shape(16, 16, 8, 1),
}
# What csrc/cuda/bn_relu_conv2d_wgrad.cu is compiled for. More channels would leave too few blocks where the pixels are few.
FLAT_WGRAD = (
    WgradShape(1, 128, 16, 64),
    WgradShape(1, 128, 64, 16),
    WgradShape(1, 128, 32, 64),
    WgradShape(1, 128, 64, 32),
    WgradShape(1, 64, 64, 64),
)
# bn_relu_conv2d_wgrad_window.cu: for 3x3 taps without stride and dilation, and for any. What two groups add up is one part.
WINDOW_3X3_WGRAD = (WgradShape(32, 8, 16, 16, 9, 2), WgradShape(8, 8, 32, 32, 9, 2), WgradShape(16, 8, 32, 32, 9, 2))
WINDOW_ANY_WGRAD = (WgradShape(8, 8, 64, 64, 1, 2), WgradShape(8, 8, 32, 32, 9, 2))
# Of float32 the next tile takes twice the registers: half as many pixels.
FLAT_WGRAD_FLOAT32 = (
    WgradShape(1, 64, 16, 64),
    WgradShape(1, 64, 64, 16),
    WgradShape(1, 64, 32, 64),
    WgradShape(1, 64, 64, 32),
    WgradShape(1, 64, 64, 64),
)
WINDOW_3X3_WGRAD_FLOAT32 = (WgradShape(16, 8, 16, 16, 9, 2), WgradShape(8, 8, 32, 32, 9, 2))
