"""Tiles are pure functions of shape, dtype and device."""

from itertools import product
from math import ceil

import pytest
import torch

from fused_preact.backends import backend
from fused_preact.backends.cuda.environment import A100, Device
from fused_preact.backends.cuda.shapes import (
    FLAT,
    FLAT_BWD,
    FLAT_GRAD,
    FLAT_WGRAD,
    WINDOW_3X3_BWD,
    WINDOW_3X3_GRAD,
    WINDOW_3X3_WGRAD,
    WINDOW_ANY_GRAD,
    WINDOW_ANY_WGRAD,
)
from fused_preact.backends.cuda.tiles import (
    THREADS,
    Axis,
    bn_grid,
    dgrad_tile,
    flat_fwd_bytes,
    flat_fwd_tile,
    fwd_tile,
    materialises,
    shares_wgrad,
    transposed_window_side,
    window_side,
)
from fused_preact.backends.cuda.wgrad_tiles import wgrad_tile
from fused_preact.backends.layout import tiles
from fused_preact.backends.records import Case, Conv
from fused_preact.models.shapes import LAYER_SHAPES
from tests.cuda.kernels import needs_simulator, problem

H200, RTX4090 = Device(132, 227 << 10), Device(128, 99 << 10)
devices = pytest.mark.parametrize("device", [A100, H200, RTX4090], ids=["a100", "h200", "rtx4090"])
LAYERS = {s.id: s.layer for s in LAYER_SHAPES}
POINTWISE = {name: layer for name, layer in LAYERS.items() if (layer.kernel, layer.stride) == (1, 1)}


@devices
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("channels", [1, 3, 8, 17, 24, 64, 272, 2048])
@pytest.mark.parametrize("pixels", [1, 63, 1000, 8192, 131072, 10**8])
def test_bn_grid(pixels, channels, dtype, device):
    for count in (0, tiles((1, channels, pixels, 1))):
        grid = bn_grid(channels, pixels, dtype, count, device)
        assert THREADS // 2 < grid.columns * grid.rows <= THREADS
        assert 1 <= grid.blocks <= max(count, pixels)
        assert not count or grid.blocks <= count


@pytest.mark.parametrize("pixels", [1024, 4096])
def test_small_activations_have_few_tiles(pixels):
    """Whose means, in float32, tell by how much they differ."""
    assert bn_grid(64, pixels, torch.float32, tiles((1, 64, pixels, 1)), A100).blocks == pixels // 1024


@devices
@pytest.mark.parametrize("c", [8, 16, 24, 64, 256, 1000, 2048])
@pytest.mark.parametrize("k", [8, 16, 40, 128, 2048])
@pytest.mark.parametrize("pixels", [1, 65, 8192, 131072, 10**7])
def test_flat_fwd_tile(pixels, c, k, device):
    tile = flat_fwd_tile(pixels, c, k, tiles((1, k, pixels, 1)), device)
    _, size, _, *resident = FLAT[tile.slab, tile.out]
    assert tile.pixels == size
    assert tile.shared == flat_fwd_bytes(tile.slab, tile.out, c) <= device.shared_limit
    assert 1 <= tile.blocks <= min(tiles((1, k, pixels, 1)), ceil(pixels / size))
    # All at once.
    assert tile.blocks * ceil(k / tile.out) <= max(device.multiprocessors * resident[c > tile.slab], ceil(k / tile.out))
    # Nobody waits for a block that has two tiles more than others.
    pieces = ceil(pixels / size)
    assert (tile.blocks - 1) * ceil(pieces / tile.blocks) < pieces


def test_two_blocks_a_multiprocessor():
    """Of shared memory, at every 1x1 layer of the networks; the compiler keeps registers to it."""
    assert POINTWISE
    for name, layer in POINTWISE.items():
        tile = flat_fwd_tile(10**6, layer.in_channels, layer.out_channels, 512, A100)
        assert 2 * (tile.shared + 1024) <= 164 << 10, name


def test_no_tile():
    """The vectors of a norm are all in shared memory."""
    assert flat_fwd_tile(10**6, 65536, 64, 512, A100) is None


def test_shapes_of_the_kernels_are_powers_of_two():
    assert all(n & (n - 1) == 0 for numbers in product(*FLAT) for n in numbers)


def problem_of(layer, n=8):
    pair = [(number, number) for number in (layer.stride, layer.padding, 1)]
    return problem((n, layer.in_channels, layer.size, layer.size), (layer.out_channels, layer.in_channels, *(layer.kernel,) * 2), *pair)


@devices
@pytest.mark.parametrize("itemsize", [2, 4])
@pytest.mark.parametrize("layer", LAYERS.values(), ids=LAYERS)
def test_every_layer_of_the_networks_has_kernels(layer, itemsize, device):
    """Forward and both gradients, but for wide 3x3 convolutions, which go through torch's library."""
    p = problem_of(layer)._replace(itemsize=itemsize)
    if materialises(p):
        assert layer.kernel == 3
        assert min(layer.in_channels, layer.out_channels) >= 128
        return
    for tile in (fwd_tile(p, 512, device), dgrad_tile(p, 512, device), wgrad_tile(p, device)):
        assert tile is not None
        assert 0 < tile.shared <= device.shared_limit


@devices
@pytest.mark.parametrize("layer", LAYERS.values(), ids=LAYERS)
@pytest.mark.parametrize("n", [1, 3, 128])
def test_dgrad_tile(n, layer, device):
    """No more blocks than there are tiles: each would leave a tile of sums unwritten; of both gradients, all channels in a block."""
    p = problem_of(layer, n)
    if materialises(p):
        return
    both = shares_wgrad(p, "g", device)
    tile = dgrad_tile(p, 512, device, both)
    alone = FLAT_GRAD if p.pointwise else WINDOW_3X3_GRAD if p.dense_3x3 else WINDOW_ANY_GRAD
    together = FLAT_BWD if p.pointwise else WINDOW_3X3_BWD
    height, width, *_ = (together if both else alone)[tile.slab, tile.out]
    down, across = (1, p.y.size * p.x.size * n) if p.pointwise else (ceil(p.y.size / p.y.stride), ceil(p.x.size / p.x.stride))
    assert tile.blocks <= ceil(down / height) * ceil(across / width) * (1 if p.pointwise else n)
    assert not both or (p.c <= tile.out and p.k <= tile.slab)


def convolution(c, k, kernel=1, stride=1):
    return problem((8, c, 16, 16), (k, c, kernel, kernel), (stride, stride), (kernel // 2,) * 2, (1, 1))


# 113 and 137 KB.
@pytest.mark.parametrize(("c", "k"), [(128, 32), (256, 64)])
def test_both_gradients_where_shared_memory_has_room(c, k):
    assert shares_wgrad(convolution(c, k), "g", A100)
    assert not shares_wgrad(convolution(c, k), "g", RTX4090)
    assert not shares_wgrad(convolution(c, k), "dx", A100)


SHARED = {
    "16-16": (convolution(16, 16), (64, 16)),
    "64-32": (convolution(64, 32), (64, 64)),
    "32-64": (convolution(32, 64), (128, 32)),
    "64-256": (convolution(64, 256), (256, 64)),
    "192-48": (convolution(192, 48), (64, 256)),
    "half-of-a-large-block": (convolution(128, 64), None),
    "more-than-a-block": (convolution(256, 72), None),
    "3x3-16": (convolution(16, 8, 3), (16, 16)),
    "3x3-24": (convolution(24, 16, 3), (32, 32)),
    "3x3-64": (convolution(64, 64, 3), None),
    "3x3-stride2": (convolution(16, 16, 3, 2), None),
    "5x5": (convolution(16, 16, 5), None),
}


@pytest.mark.parametrize(("p", "shape"), SHARED.values(), ids=SHARED)
def test_shapes_of_both_gradients(p, shape):
    """The smallest that has all channels; no large one half of which would be zeros."""
    assert shares_wgrad(p, "g", A100) == (shape is not None)
    if shape:
        tile = dgrad_tile(p, 512, A100, True)
        assert (tile.slab, tile.out) == shape


@needs_simulator
@pytest.mark.parametrize("layer", LAYERS.values(), ids=LAYERS)
def test_no_layer_of_the_networks_is_refused(layer):
    """In bfloat16, all convolutions but the stems."""
    x, weight = (8, layer.in_channels, layer.size, layer.size), (layer.out_channels, layer.in_channels, layer.kernel, layer.kernel)
    conv = Conv((layer.stride,) * 2, (layer.padding,) * 2)
    assert backend("cuda").why_not(Case("cpu", torch.bfloat16, x, weight, torch.bfloat16, conv)) is None


@pytest.mark.parametrize(
    ("axis", "outputs", "wanted"),
    [
        (Axis(9, 9, 3, 1, 1, 1), 4, (6, 6)),
        (Axis(9, 5, 3, 2, 1, 1), 4, (9, 5)),
        (Axis(9, 5, 1, 2, 0, 1), 4, (4, 4)),
        (Axis(9, 9, 3, 1, 2, 2), 4, (8, 8)),
        (Axis(9, 5, 3, 2, 2, 2), 4, (6, 6)),
        (Axis(9, 3, 1, 3, 0, 1), 4, (4, 4)),
    ],
    ids=["3", "3-stride2", "1-stride2", "3-dilated", "3-stride2-dilated", "1-stride3"],
)
def test_sides_of_windows(axis, outputs, wanted):
    """Of a tile of outputs, and transposed; what no output reads has no place: of a stride of 1x1 every pixel is the next that counts."""
    assert (window_side(axis, outputs), transposed_window_side(axis, outputs)) == wanted


@devices
@pytest.mark.parametrize("n", [1, 3, 128])
@pytest.mark.parametrize("layer", [pytest.param(layer, id=name) for name, layer in LAYERS.items() if layer.in_channels % 8 == 0])
def test_wgrad_tile(layer, n, device):
    p = problem_of(layer, n)
    tile = wgrad_tile(p, device)
    shapes = FLAT_WGRAD if p.pointwise else WINDOW_3X3_WGRAD if p.dense_3x3 else WINDOW_ANY_WGRAD
    # 8 warps a multiprocessor fit.
    shape = next(s for s in shapes if (s.pixels, s.k, s.c) == (tile.pixels, tile.k, tile.c))
    assert tile.shared * 2 // shape.groups + 2048 <= device.shared_limit
    pieces = n * ceil(p.y.out / shape.height) * ceil(p.x.out / shape.width)
    turns = ceil(ceil(p.n * p.y.out * p.x.out / shape.pixels) if p.pointwise else pieces / shape.groups)
    assert 1 <= tile.parts <= turns
    # Nobody waits for a block that has two turns more than others.
    assert (tile.parts - 1) * ceil(turns / tile.parts) < turns
    # All at once, and their parts do not outweigh the activations, unless they are too few blocks.
    blocks = ceil(p.k / tile.k) * ceil(p.c / tile.c) * ceil(p.taps / shape.taps)
    assert (tile.parts - 1) * blocks < device.multiprocessors * 2 // shape.groups
    activations = 2 * n * (p.y.size * p.x.size * p.c + p.y.out * p.x.out * p.k)
    assert 16 * tile.parts * p.k * p.taps * p.c <= activations or (tile.parts - 1) * blocks < device.multiprocessors // 2


@pytest.mark.parametrize(("channels", "size", "parts"), [(16, 32, 128), (32, 16, 64), (64, 8, 16)])
def test_parts_of_a_3x3_convolution(channels, size, parts):
    p = problem((128, channels, size, size), (channels, channels, 3, 3), (1, 1), (1, 1), (1, 1))
    assert wgrad_tile(p, H200).parts == parts


def test_no_wgrad_tile():
    """Of more taps than a window has room for, and of a window that shared memory has no room for."""
    assert wgrad_tile(problem((1, 8, 64, 64), (8, 8, 8, 8), (1, 1), (0, 0), (1, 1)), A100) is None
    assert wgrad_tile(problem((1, 8, 64, 64), (8, 8, 3, 3), (1, 1), (64, 64), (64, 64)), A100) is None
