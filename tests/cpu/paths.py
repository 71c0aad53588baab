"""Layers that reach the paths which the cpu kernels choose by size (csrc/cpu: tiles.h, gemm.h, wide.h, wgrad.h, plane.h, dgrad.h)."""

from itertools import cycle, product

from fused_preact.backends.records import Conv
from tests.testing.cases import SAME, LayerCase


def case(
    id: str, why: str, x: tuple[int, ...], k: int, kernel: int | tuple[int, int], stride=1, padding=0, dilation=1, groups=1, **options
):
    """A LayerCase; kernel, stride, padding and dilation of one number are the same for both axes."""
    kernel, *conv = ((v, v) if isinstance(v, int) else v for v in (kernel, stride, padding, dilation))
    return LayerCase(id, why, x, k, kernel, Conv(*conv, groups), **options)


# Outputs of more than STREAM_BYTES go past the caches where they are aligned and their channels fill vectors.
STREAMED = [
    case("streamed-1x1", "y and dx past the caches", (2, 64, 96, 128), 64, 1, residual=True, bias=True),
    case("streamed-3x3", "y and dx past the caches, in the three-taps kernel", (2, 16, 224, 224), 16, 3, padding=1, residual=True),
    case("streamed-phases", "dx of a stride goes past the caches phase by phase", (1, 64, 160, 160), 16, 3, stride=2, padding=1),
    case("streamed-wide-y", "only y is that large, of two panels", (1, 8, 130, 200), 64, 1, residual=True),
    case("large-tail", "too large for the caches, but a vector would cross pixels", (2, 20, 200, 208), 20, 1, residual=True),
]
STREAMED_BFLOAT16 = [case("streamed-phases", "y and dx past the caches, phase by phase", (2, 64, 160, 160), 64, 1, stride=(2, 1))]

# More weights than WIDE_WEIGHTS: all threads work on one tile, and share out its output channels and the rows of dweight.
WIDE = [
    case("wide-over-c", "lanes run over c", (2, 64, 9, 7), 192, 3, padding=1, bias=True),
    case("wide-over-k", "lanes run over k", (2, 80, 9, 7), 160, 3, padding=1),
    case("wide-over-k-tails", "neither side fills a block", (2, 65, 8, 9), 170, 3, padding=1),
    case("wide-over-c-tails", "neither side fills a block", (1, 150, 9, 7), 85, 3, padding=1, residual=True),
    case("wide-few-rows", "fewer blocks of rows than threads, and chains of 7168 channels", (2, 7168, 3, 3), 14, 1),
    case("wide-far-rows", "a thread's rows begin far into the channels", (2, 32, 3, 3), 4400, 3, padding=1),
    case("wide-1x1", "more rows than lanes", (2, 64, 7, 9), 1600, 1),
    case("wide-stride", "z is split by the stride's phases", (2, 80, 9, 11), 160, 3, stride=2, padding=1),
    case("wide-stride-1x1", "phases that no tap reaches", (2, 320, 5, 6), 330, 1, stride=2, residual=True),
    case("wide-dilated", "taps of a row do not lie side by side", (1, 64, 9, 11), 192, 3, padding=2, dilation=2),
    case("wide-groups", "group after group", (1, 256, 7, 7), 256, 3, padding=1, groups=2, bias=True),
    case("wide-pixels", "fewer than a block", (2, 320, 1, 1), 320, 1, bias=True),
    case("wide-images", "tiles of several images, the last of fewer", (23, 64, 7, 9), 176, 3, padding=1, bias=True),
    case("wide-halo", "planes are much larger than the tiles, so a tile has few images", (40, 32, 9, 9), 40, 9, padding=8),
    case("wide-strides", "both strides, a column left over", (23, 48, 14, 4), 244, 3, stride=(3, 2), padding=(1, 0)),
    case("wide-cut-rows", "tiles of some rows, the last of fewer", (2, 40, 34, 37), 288, 3, padding=1, residual=True),
    case("wide-cut-columns", "tiles of a part of a row", (1, 320, 2, 1100), 320, 1),
    case("wide-cut-stride", "tiles of some rows, in phases", (1, 80, 70, 67), 160, 3, stride=2, padding=1, bias=True),
]
WIDE_EDGE = [
    case("most-narrow", "as many weights as a layer may have that is not wide", (1, 256, 5, 5), 384, 1),
    case("least-wide", "a block more", (1, 256, 5, 5), 400, 1),
]

# One vector of channels on both sides, and rows of whole blocks.
THREE_TAPS = [
    case("three-taps", "the 3x3 of ResNet-164's first stage", (2, 16, 18, 32), 16, 3, padding=1, residual=True, bias=True),
    case("three-taps-tails", "channels do not fill the vector", (2, 11, 16, 16), 13, 3, padding=1),
    case("three-taps-unpadded", "rows of x are longer than those of y, which are whole blocks", (2, 16, 18, 18), 16, 3),
    case("three-taps-padding2", "rows of x are shorter than those of y, which are whole blocks", (2, 16, 14, 14), 16, 3, padding=2),
    case("three-taps-unpadded-columns", "one axis only", (2, 16, 16, 18), 16, 3, padding=(1, 0)),
    case("three-taps-unpadded-rows", "one axis only", (2, 16, 18, 16), 16, 3, padding=(0, 1), residual=True),
    case("three-taps-x-of-blocks", "rows of x are whole blocks, those of y are not", (2, 16, 16, 16), 16, 3),
    case("three-taps-row-stride", "stride along the other axis", (2, 16, 17, 32), 16, 3, stride=(2, 1), padding=1),
    case("three-taps-row-dilation", "dilation along the other axis", (2, 16, 17, 16), 16, 3, padding=(2, 1), dilation=(2, 1)),
    case("three-taps-one-row", "a 1x3 kernel", (2, 16, 9, 16), 16, (1, 3), padding=(0, 1)),
    case("three-taps-cut", "rows of several tiles, all whole", (1, 16, 3, 512), 16, 3, padding=1),
    case("three-taps-cut-odd", "the last tile of a row is not", (1, 16, 4, 301), 16, 3, padding=1),
    case("three-taps-cut-unpadded", "the last tile of a row owns more of x", (1, 16, 6, 322), 16, 3),
]

# Planes of 64 channels, pixels in one row, one vector of lanes.
NARROW = [
    case("narrow-fwd", "the first 1x1 of a narrow bottleneck", (2, 64, 9, 7), 16, 1),
    case("narrow-dgrad", "the last 1x1 of a narrow bottleneck", (2, 16, 9, 7), 64, 1, residual=True),
    case("narrow-tails", "channels do not fill the vectors", (2, 50, 5, 5), 5, 1, bias=True),
    case("narrow-third-vector", "after a panel of two vectors", (2, 64, 7, 7), 48, 1),
    case("narrow-few-pixels", "a block reads past the plane", (3, 64, 1, 1), 16, 1),
    case("narrow-3x3", "images of one row", (2, 64, 1, 40), 16, 3, padding=1),
    case("narrow-3x3-stride", "images of one row, split by a stride", (2, 60, 1, 41), 16, 3, stride=2, padding=1),
    case("narrow-long-chain", "more taps than a chain of additions", (2, 16, 1, 33), 64, (1, 7), padding=(0, 3)),
]

# Rows of more than 256 pixels are cut.
COLUMNS = [
    case(
        "columns", "the last tile of a row is narrower, and has a halo of rows", (1, 8, 5, 300), 8, 3, padding=1, residual=True, bias=True
    ),
    case("columns-257", "one more than a whole row", (1, 8, 3, 257), 8, 3, padding=1),
    case("columns-odd-channels", "and tails of channels", (1, 17, 3, 301), 5, 3, padding=1),
    case("columns-unpadded", "x is wider than y", (1, 8, 6, 303), 8, 3, residual=True),
    case("columns-padding2", "x is narrower than y", (1, 8, 4, 299), 8, 3, padding=2),
    case("columns-padding9", "a tile of outputs that own no input", (1, 4, 3, 250), 4, 3, padding=(1, 9)),
    case("columns-stride2", "the stride's phases are narrower too", (1, 8, 5, 600), 8, 3, stride=2, padding=1),
    case("columns-stride2-odd", "and the last owns a left-over input", (1, 8, 6, 603), 8, 3, stride=2, residual=True),
    case("columns-1x1-stride2", "phases without taps", (1, 8, 3, 601), 40, 1, stride=2),
    case("columns-dilated", "halo of dilated taps", (1, 8, 7, 300), 8, 3, padding=2, dilation=2),
    case("columns-dilated-stride2", "dilation and stride", (1, 8, 9, 602), 8, 3, stride=2, padding=3, dilation=3),
    case("columns-7x7", "the last tile owns six more", (1, 4, 9, 310), 4, 7),
    case("columns-wide", "planes too large for a row", (1, 136, 3, 270), 24, 3, padding=1),
    case("columns-groups", "groups", (1, 24, 3, 290), 24, 3, padding=1, groups=3),
    case("columns-of-images", "more than one image", (3, 5, 2, 260), 7, 3, padding=1, residual=True),
    case("row-1000", "images of one long row", (1, 8, 1, 1000), 8, 3, padding=1),
    case("row-300-images", "several of them", (3, 8, 1, 300), 24, 3, padding=1, residual=True),
    case("row-stride3", "and a stride", (2, 8, 1, 500), 8, (1, 5), stride=(1, 3), padding=(0, 1)),
    case("column-1000", "images of one column", (1, 8, 1000, 1), 8, 3, padding=1),
]

# The last tile owns what a stride or a missing padding leaves over.
LEFT_OVER = [
    case("stride2-33", "an odd number", (2, 8, 33, 33), 12, 3, stride=2, padding=1, residual=True),
    case("stride2-33x7", "non-square", (1, 8, 33, 7), 12, 3, stride=2, padding=1),
    case("stride2-unpadded", "an even number", (2, 8, 10, 12), 8, 3, stride=2, bias=True),
    case("stride3-1x1", "two rows and columns that nobody reads", (2, 8, 12, 15), 8, 1, stride=3),
    case("stride5-1x1", "four rows and columns that nobody reads", (2, 8, 25, 21), 8, 1, stride=5, residual=True),
    case("stride5-3x3", "phases without taps", (2, 8, 23, 22), 8, 3, stride=5, padding=1),
    case("stride5-larger-than-x", "one output", (2, 8, 4, 3), 8, 1, stride=5),
    case("stride2x3", "strides differ", (2, 8, 13, 17), 8, 3, stride=(2, 3), padding=(0, 1)),
    case("7x7-unpadded", "six rows and columns more than y", (2, 8, 21, 23), 8, 7),
    case("7x7-stride2", "ImageNet's stem", (1, 3, 45, 39), 24, 7, stride=2, padding=3),
    case("tall-kernel", "a kernel as tall as x", (2, 8, 9, 9), 8, (9, 1)),
]
PADDED = [
    case("padding3", "rows of y that see no x", (2, 8, 6, 5), 8, 3, padding=3, residual=True),
    case("padding7", "tiles of y that see no x, and own none", (2, 8, 5, 3), 8, 3, padding=7),
    case("padding-1x1", "a border of zeros", (2, 8, 6, 5), 24, 1, padding=2),
    case("padding-1x1-stride2", "x in odd places", (2, 8, 12, 9), 8, 1, stride=2, padding=3),
    case("padding-stride2", "and more than the kernel's reach", (2, 8, 7, 8), 8, 3, stride=2, padding=4),
    case("padding-one-axis", "non-square", (2, 8, 7, 4), 8, (1, 3), padding=(3, 0)),
]
DILATED = [
    case("dilation2-stride2", "taps of one phase only", (2, 8, 15, 14), 8, 3, stride=2, padding=2, dilation=2),
    case("dilation3-stride2", "taps alternate between the phases", (2, 8, 17, 14), 8, 3, stride=2, padding=3, dilation=3, residual=True),
    case("dilation2-stride3", "neither divides the other", (2, 8, 16, 19), 8, 3, stride=3, padding=1, dilation=2),
    case("dilation2-stride3-2x2", "one phase of z is read by no tap", (2, 8, 16, 19), 8, 2, stride=3, dilation=2),
    case("dilation4-small", "taps reach over the whole image", (2, 8, 7, 7), 8, 3, padding=4, dilation=4),
    case("dilation1x3", "dilations differ", (2, 8, 7, 11), 8, 3, padding=(1, 2), dilation=(1, 3)),
]
KERNELS = [
    case("2x2-stride2", "even kernel", (2, 8, 9, 8), 8, 2, stride=2),
    case("4x3", "even and odd", (2, 8, 9, 8), 8, (4, 3), padding=(2, 0), residual=True),
    case("5x1", "non-square", (1, 17, 9, 5), 20, (5, 1), padding=(2, 0)),
    case("1x5", "non-square", (1, 17, 3, 20), 20, (1, 5), stride=(1, 2), padding=(0, 2)),
    case("5x5", "more taps than a chain", (2, 48, 6, 7), 8, 5, padding=2),
]
# Float additions are chained no longer than 192 steps.
CHAINS = [
    case("c192", "one chain", (2, 192, 5, 5), 8, 1),
    case("c193", "one chain and a padded rest", (2, 193, 5, 5), 8, 1),
    case("c384", "one chain of pairs", (1, 384, 5, 5), 17, 1, bias=True),
    case("c512", "chains of the widest 1x1", (2, 512, 7, 7), 24, 1, residual=True),
    case("c2048", "ResNet-200's last stage", (1, 2048, 4, 4), 24, 1),
    case("k2048", "chains of dgrad", (1, 24, 4, 4), 2048, 1, residual=True),
    case("c512-3x3", "chains across taps", (1, 512, 4, 5), 8, 3, padding=1),
    case("c208-3x3", "a chain and a rest in each tap", (2, 208, 5, 4), 17, 3, padding=1),
    case("mean-1000", "cancellation in a long reduction", (2, 300, 6, 6), 24, 1, offset=1000.0),
]
GROUPS = [
    case("groups-of-8", "half a vector", (2, 64, 9, 9), 64, 3, padding=1, groups=8, bias=True, residual=True),
    case("groups-of-24", "a vector and a half", (2, 72, 7, 7), 72, 3, padding=1, groups=3),
    case("groups-8-to-24", "the sides differ", (2, 32, 7, 9), 96, 3, stride=2, padding=1, groups=4),
    case("groups-24-to-8", "the sides differ", (1, 72, 7, 9), 24, 1, groups=3, residual=True),
    case("groups-of-16-blocks", "three taps in groups", (1, 48, 6, 16), 48, 3, padding=1, groups=3),
]

# Every pair of odd channel counts, the image sizes and kernels in turns.
COUNTS, KERNEL = (3, 17, 65, 48, 80), cycle([(1, Conv()), (3, SAME), (3, Conv((2, 2), (1, 1))), (3, Conv())])
CHANNELS = [
    LayerCase(f"{c}to{k}-{h}px-{r}x{r}-s{conv.stride[0]}-p{conv.padding[0]}", "odd sizes", (1, c, h, h + 4), k, (r, r), conv, bias=k == 17)
    for (c, k, h), (r, conv) in zip(product(COUNTS, COUNTS, (7, 1, 33)), KERNEL, strict=False)
    if h >= r or conv.padding[0]
]

SMALL = [*WIDE_EDGE, *THREE_TAPS, *NARROW, *COLUMNS, *LEFT_OVER, *PADDED, *DILATED, *KERNELS, *CHAINS, *GROUPS]
