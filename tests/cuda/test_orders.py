"""No kernel depends on the order of threads and blocks, nor on when its copies arrive: the same bits, and no race, in all of them."""

from itertools import product

import pytest
import torch

from fused_preact.backends.cuda.environment import A100
from fused_preact.backends.cuda.tiles import dgrad_tile, fwd_tile
from fused_preact.backends.cuda.wgrad_tiles import shared, wgrad_tile
from tests.cuda import test_bn, test_bn_relu_conv2d_dgrad, test_bn_relu_conv2d_fwd, test_bn_relu_conv2d_wgrad
from tests.cuda.kernels import nan, needs_simulator, run
from tests.cuda.test_bn_relu_conv2d_fwd import POINTWISE, WINDOWS, tile_of
from tests.ptxsim.simulator import FORWARD, RANDOM, REVERSE

pytestmark = needs_simulator


def bn(name):
    def launch(config):
        given = test_bn.Given((24, 3, 5, 13), torch.bfloat16)
        tiles, rows = given.tiles, given.rows
        reads, writes = {
            "bn_stats": ({}, {"stats": nan(tiles, 3, 24)}),
            "bn_relu_bwd": ({"dz": rows(given.dz), "bn": given.bn}, {"g": given.empty(), "sums": nan(tiles, 2, 24)}),
            "bn_bwd": ({"g": rows(given.dz), "coeffs": torch.randn(4, 24)}, {"dx": given.empty()}),
        }[name]
        run(name, config, x=rows(given.x), **reads, **writes, **given.common)
        return list(writes.values())

    return launch


def finalize(config):
    torch.manual_seed(0)
    buffers, bn = dict(zip(("running_mean", "running_var"), torch.rand(2, 40), strict=True)), nan(5, 40)
    run("bn_finalize", config, tiles=21, channels=40, momentum=0.1, eps=1e-5, stats=torch.rand(21, 3, 40), bn=bn, **buffers)
    return [bn, *buffers.values()]


def coeffs(config):
    torch.manual_seed(0)
    results = {"coeffs": nan(4, 40), "dgamma": nan(40), "dbeta": nan(40)}
    run("bn_coeffs", config, tiles=21, channels=40, sums=torch.randn(21, 2, 40), bn=torch.rand(5, 40), **results)
    return list(results.values())


def conv(dtype, slab, out, c, **how):
    def launch(config):
        given = test_bn_relu_conv2d_fwd.Given(dtype, c, out + 8, (3, 10, 13), **how)
        y, stats, _ = given(tile_of(slab, out, c, 3, dtype), stats_tiles=4, config=config)
        return [y, stats]

    return launch


def conv_window(dtype, c, k, conv):
    def launch(config):
        given = test_bn_relu_conv2d_fwd.Given(dtype, c, k, (3, 10, 13), conv=conv)
        y, stats, _ = given(fwd_tile(given.problem, 3, A100), stats_tiles=4, config=config)
        return [y, stats]

    return launch


def wgrad(dtype, c, k, conv, deferred):
    def launch(config):
        given = test_bn_relu_conv2d_wgrad.Given(dtype, c, k, (3, 10, 13), deferred, conv)
        dweight, _ = given(wgrad_tile(given.problem, A100)._replace(parts=2), memory_format=torch.contiguous_format, config=config)
        return [dweight]

    return launch


def dgrad(dtype, c, k, conv, deferred, with_wgrad=False):
    def launch(config):
        given = test_bn_relu_conv2d_dgrad.Given(dtype, c, k, (3, 10, 13), deferred, conv=conv)
        tile = dgrad_tile(given.problem, 3, A100, with_wgrad)
        found = given(tile, "g", wgrad=shared(tile.blocks if with_wgrad else 0), sums_tiles=4, config=config)
        return [t for t in (*found[:2], given.dweight) if t is not None]

    return launch


def same_bits(a, b):
    return torch.equal(a.contiguous().view(torch.uint8), b.contiguous().view(torch.uint8))


KERNELS = {
    **{name: bn(name) for name in ("bn_stats", "bn_relu_bwd", "bn_bwd")},
    "bn_finalize": finalize,
    "bn_coeffs": coeffs,
    "conv-one-slab": conv(torch.bfloat16, 32, 16, 24),
    "conv-slabs": conv(torch.bfloat16, 64, 32, 136),
    "conv-many-slabs-fp16": conv(torch.float16, 64, 64, 272),
    "conv-eight-warps": conv(torch.float16, 32, 128, 32, residual=False),
    "conv-float32": conv(torch.float32, 32, 64, 24),
    "conv-float32-slabs": conv(torch.float32, 32, 32, 72),
    "conv-float32-3x3": conv_window(torch.float32, 20, 12, WINDOWS["3x3"]),
    "conv-large-mean": conv(torch.bfloat16, 16, 64, 16, offset=50.0),
    "dgrad-flat": dgrad(torch.bfloat16, 40, 64, POINTWISE, True),
    "dgrad-flat-slabs": dgrad(torch.float16, 136, 136, POINTWISE, True),
    "dgrad-3x3": dgrad(torch.bfloat16, 24, 32, WINDOWS["3x3"], True),
    "dgrad-3x3-slabs": dgrad(torch.float16, 72, 72, WINDOWS["3x3"], False),
    "dgrad-stride2": dgrad(torch.bfloat16, 24, 40, WINDOWS["3x3-stride2"], True),
    "dgrad-float32": dgrad(torch.float32, 20, 40, POINTWISE, True),
    "dgrad-float32-3x3": dgrad(torch.float32, 24, 12, WINDOWS["3x3"], True),
    "both-gradients": dgrad(torch.bfloat16, 64, 16, POINTWISE, True, True),
    "both-gradients-wide": dgrad(torch.float16, 256, 64, POINTWISE, True, True),
    "both-gradients-3x3": dgrad(torch.bfloat16, 16, 16, WINDOWS["3x3"], True, True),
    "both-gradients-3x3-eight-warps": dgrad(torch.float16, 24, 32, WINDOWS["3x3"], False, True),
    "wgrad-flat-shared-pixels": wgrad(torch.bfloat16, 64, 16, POINTWISE, False),
    "wgrad-flat-deferred": wgrad(torch.float16, 72, 64, POINTWISE, True),
    "wgrad-3x3-narrow": wgrad(torch.bfloat16, 16, 8, WINDOWS["3x3"], False),
    "wgrad-3x3-deferred": wgrad(torch.float16, 24, 40, WINDOWS["3x3"], True),
    "wgrad-stride2": wgrad(torch.bfloat16, 40, 24, WINDOWS["3x3-stride2"], True),
    "wgrad-float32": wgrad(torch.float32, 64, 20, POINTWISE, True),
    "wgrad-float32-3x3": wgrad(torch.float32, 16, 8, WINDOWS["3x3"], False),
    "wgrad-1x1-stride2": wgrad(torch.bfloat16, 72, 24, WINDOWS["1x1-stride2"], False),
}
# Program order with copies as late as they may be is what all other tests run.
CONFIGS = [c for c in product((FORWARD, REVERSE, RANDOM), (False, True)) if c != (FORWARD, False)]


@pytest.mark.parametrize("name", KERNELS)
def test_same_bits(name):
    wanted = KERNELS[name]({})
    for order, at_once in CONFIGS:
        found = KERNELS[name]({"order": order, "seed": 5, "copies_at_once": at_once})
        assert all(map(same_bits, found, wanted)), (order, at_once)
