"""What goes wrong on a device comes back as a Python exception with the operator, its sizes and CUDA's words."""

import pytest
import torch

from fused_preact.backends.cuda.tiles import ConvTile, flat_fwd_bytes
from tests.cuda.kernels import nan, needs_simulator, problem, run

pytestmark = needs_simulator
X = torch.randn(8, 16)
NORM = {"dtype": torch.float32, "pixels": 8, "channels": 16, "x": X, "bn": torch.rand(5, 16)}


def conv(tile, c=16, k=16, **given):
    x, weight = torch.randn(8, c).bfloat16(), torch.randn(k, c).bfloat16()
    own = problem((1, c, 2, 4), (k, c, 1, 1), (1, 1), (0, 0), (1, 1))
    fields = {"dtype": torch.bfloat16, "conv": own, "tiles": 1, "x": x, "weight": weight, "y": nan(8, k).bfloat16()}
    return run("bn_relu_conv2d_fwd", tile=tile, **fields | given)


def tile(c=16):
    return ConvTile(128, 16, 16, 1, flat_fwd_bytes(16, 16, c))


def test_a_launch_that_is_refused():
    with pytest.raises(RuntimeError, match=r"^bn_relu of 8 pixels x 16 channels failed on cuda:0: invalid configuration argument$"):
        run("bn_relu", grid=(4, 64, 70000), z=nan(8, 16), **NORM)


def test_a_kernel_that_fails():
    """Here because the result is too small, which the simulator sees; the next launch is not affected."""
    with pytest.raises(
        RuntimeError, match=r"bn_relu of 8 pixels x 16 channels failed on cuda:0: unspecified launch failure: .*past the end of 'z'"
    ):
        run("bn_relu", grid=(4, 64, 1), z=nan(7, 16), **NORM)
    z = nan(8, 16)
    run("bn_relu", grid=(4, 64, 1), z=z, **NORM)
    assert z.isfinite().all()


def test_a_device_that_is_not_there():
    from fused_preact import _cuda

    with pytest.raises(RuntimeError, match=r"^bn_merge of 1 tiles x 8 channels failed on cuda:3: invalid device ordinal$"):
        _cuda.bn_merge(3, 0, 1, 8, X.data_ptr(), X.data_ptr())


@pytest.mark.parametrize(
    ("other", "reason"),
    [
        (tile()._replace(out=48), "no kernel was compiled for the tile"),
        (tile()._replace(shared=100), "the tile's shared memory is not what the kernel takes"),
    ],
    ids=["tile", "memory"],
)
def test_a_tile_that_no_kernel_has(other, reason):
    with pytest.raises(RuntimeError, match=rf"^bn_relu_conv2d_fwd of 1 images of 2x4, 1x1, 16 channels to 16 failed on cuda:0: {reason}$"):
        conv(other)


def test_more_shared_memory_than_the_device_has():
    c = 100000
    wide = ConvTile(128, 64, 16, 1, flat_fwd_bytes(64, 16, c))
    with pytest.raises(RuntimeError, match=r"^bn_relu_conv2d_fwd of 1 images of 2x4, 1x1, 100000 channels to 16 failed on cuda:0: invalid"):
        conv(wide, c)


IMPOSSIBLE = {
    "no-channels": lambda: run("bn_merge", tiles=1, channels=0, stats=X, merged=nan(3, 16)),
    "threads": lambda: run("bn_relu", grid=(64, 64, 1), z=nan(8, 16), **NORM),
    "no-tile-for-a-block": lambda: run("bn_stats", **NORM | {"bn": None}, grid=(4, 64, 3), tiles=2, stats=nan(2, 3, 16)),
    "no-result": lambda: run("bn_relu", grid=(4, 64, 1), **NORM),
    "half-a-buffer": lambda: run("bn_finalize", tiles=1, channels=16, eps=1e-5, stats=X, running_mean=nan(16), bn=nan(5, 16)),
    "no-coeffs": lambda: run("bn_coeffs", tiles=1, channels=16, sums=X, bn=X, dgamma=nan(16), dbeta=nan(16)),
    "channels-of-a-conv": lambda: conv(tile(), 16, 12),
    "channels-of-float32": lambda: conv(tile(), 16, 10, dtype=torch.float32),
    "no-tiles-of-statistics": lambda: conv(tile()._replace(blocks=2), stats=nan(1, 3, 16)),
}


@pytest.mark.parametrize("call", IMPOSSIBLE.values(), ids=IMPOSSIBLE)
def test_a_record_that_is_impossible(call):
    with pytest.raises(ValueError, match=r"^bn_.* of .*: "):
        call()
