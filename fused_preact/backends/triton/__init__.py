"""The triton backend: the primitives of the contract as Triton kernels for CUDA, or in Triton's interpreter on the CPU.

This module can always be imported; the primitives are there where `unavailable` finds nothing missing.
"""

from math import prod

import torch

from fused_preact.backends.layout import conv_out_shape
from fused_preact.backends.records import Case
from fused_preact.backends.triton import environment
from fused_preact.backends.triton.environment import interpreted

TWO_DGRADS = False
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
# Offsets inside a tile, and numbers of pixels, are 32-bit.
LIMIT = 2**31


# Asked once: the primitives below are there or not for good.
_REASON = environment.unavailable()


def unavailable() -> str | None:
    """Why the triton backend can't be used on this machine, in a sentence, or None."""
    return _REASON


def why_not(case: Case) -> str | None:
    device = "cpu" if interpreted() else "cuda"
    if case.device != device:
        return f"the triton backend runs on {device} tensors here, not on {case.device} tensors"
    for dtype in (case.dtype, case.weight_dtype or case.dtype):
        if dtype not in DTYPES:
            return f"the triton backend takes float32, bfloat16 and float16, not {str(dtype).removeprefix('torch.')}"
    # Statistics and vectors come here too, and are small.
    shapes = [case.x] if len(case.x) == 4 else []
    if case.weight is not None:
        smallest = min(case.weight[0] // case.conv.groups, case.weight[1])
        if case.conv.groups > 1 and smallest < 16:
            return f"the triton backend takes groups of 16 channels and more, which fill a tensor core, not of {smallest}"
        shapes.append(conv_out_shape(case.x, case.weight, *case.conv[:3]))
    for n, c, h, w in shapes:
        # A tile of 128 pixels touches so many images.
        images = 128 // max(1, min(shape[2] * shape[3] for shape in shapes)) + 2
        # Tiles of up to 4096 pixels are counted from the first to beyond the last.
        if n * h * w >= LIMIT - 4096 or images * h * w * c >= LIMIT:
            return f"the triton backend counts pixels and offsets inside an image with 32 bits, too few for {(n, c, h, w)}"
    if case.weight is not None and prod(case.weight) >= LIMIT - 4096:
        return f"the triton backend counts weights with 32 bits, too few for {tuple(case.weight)}"
    return None


if _REASON is None:
    from fused_preact.backends.triton.bn import bn_bwd, bn_coeffs, bn_finalize, bn_finalize_update, bn_merge, bn_relu, bn_relu_bwd, bn_stats
    from fused_preact.backends.triton.conv import bn_relu_conv2d_bwd, bn_relu_conv2d_fwd
    from fused_preact.backends.triton.tuning import load

    load()
