"""The CUDA launchers, called on CPU tensors in the simulator."""

import ctypes
from ctypes import c_bool, c_char_p, c_float, c_int32, c_int64, c_uint64, c_void_p

import torch
from torch import Tensor

from tests.ptxsim.simulator import Launch, simulator

DTYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}


class Target(ctypes.Structure):
    _fields_ = [("device", c_int32), ("stream", c_uint64)]


class Grid(ctypes.Structure):
    _fields_ = [("columns", c_int32), ("rows", c_int32), ("blocks", c_int32)]


class Elementwise(ctypes.Structure):
    _fields_ = [
        ("target", Target), ("grid", Grid), ("dtype", c_int32), ("pixels", c_int64), ("channels", c_int32), ("relu", c_bool),
        ("x", c_void_p), ("bn", c_void_p), ("bn_pitch", c_int64), ("grad", c_void_p), ("coeffs", c_void_p), ("add", c_void_p),
        ("out", c_void_p), ("sums", c_void_p), ("tiles", c_int32),
    ]  # fmt: skip


class ConvTile(ctypes.Structure):
    _fields_ = [(name, c_int32) for name in ("pixels", "slab", "out", "blocks", "shared")]


class BnReluConv2dFwd(ctypes.Structure):
    _fields_ = [
        ("target", Target), ("tile", ConvTile), ("dtype", c_int32), ("pixels", c_int64), ("c", c_int32), ("k", c_int32), ("relu", c_bool),
        ("x", c_void_p), ("bn", c_void_p), ("bn_pitch", c_int64), ("weight", c_void_p), ("bias", c_void_p), ("residual", c_void_p),
        ("y", c_void_p), ("stats", c_void_p), ("stats_tiles", c_int32),
    ]  # fmt: skip


class BnFinalize(ctypes.Structure):
    _fields_ = [
        ("target", Target), ("tiles", c_int32), ("channels", c_int32), ("stats", c_void_p), ("gamma", c_void_p), ("beta", c_void_p),
        ("running_mean", c_void_p), ("running_var", c_void_p), ("momentum", c_float), ("eps", c_float), ("frozen", c_bool),
        ("bn", c_void_p), ("bn_pitch", c_int64),
    ]  # fmt: skip


class BnCoeffs(ctypes.Structure):
    _fields_ = [
        ("target", Target), ("tiles", c_int32), ("channels", c_int32), ("sums", c_void_p), ("bn", c_void_p), ("bn_pitch", c_int64),
        ("coeffs", c_void_p), ("dgamma", c_void_p), ("dbeta", c_void_p),
    ]  # fmt: skip


# The record of a launcher, and which of its fields it writes.
RECORDS = {
    "bn_stats": (Elementwise, {"sums"}),
    "bn_relu": (Elementwise, {"out"}),
    "bn_relu_bwd": (Elementwise, {"out", "sums"}),
    "bn_bwd": (Elementwise, {"out"}),
    "bn_relu_conv2d_fwd": (BnReluConv2dFwd, {"y", "stats"}),
    "bn_merge": (BnFinalize, {"bn"}),
    "bn_finalize": (BnFinalize, {"bn", "running_mean", "running_var"}),
    "bn_coeffs": (BnCoeffs, {"coeffs", "dgamma", "dbeta"}),
}


def grid(channels: int, dtype: torch.dtype, blocks: int, threads: int = 256) -> Grid:
    """Up to 32 chunks across, the rest of the threads down."""
    columns = min(32, channels // (16 // dtype.itemsize))
    return Grid(columns, threads // columns, blocks)


def launch(name: str, config: dict | None = None, **fields: object) -> Launch:
    """Fills the record from tensors and numbers, runs it, and says what it did. Whatever the simulator objects to fails the test."""
    record, written = RECORDS[name]
    sim = simulator()
    library = sim.load("launchers")
    sim.clear(**config or {})
    args = record()
    for field, value in fields.items():
        if isinstance(value, Tensor):
            array = value.detach().reshape(-1).view(torch.uint8).numpy()
            assert array.ctypes.data == value.data_ptr()
            sim.memory(array, field, field in written)
            value = value.data_ptr()
        setattr(args, field, value)
    function = getattr(library, name)
    function.restype = c_char_p
    error = function(ctypes.byref(args))
    assert not sim.report()
    assert error is None, error
    done = sim.launches()[-1]
    sim.clear()
    return done
