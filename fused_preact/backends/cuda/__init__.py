"""The cuda backend: the primitives of the contract as native kernels (csrc/cuda), or in a simulator on the CPU.

This module can always be imported; the primitives are there where `unavailable` finds nothing missing.
"""

import torch

from fused_preact.backends.cuda import environment
from fused_preact.backends.records import Case, Unit

TWO_DGRADS = False
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
SMALLEST_GROUP = 8

# Asked once: the primitives below are there or not for good.
_REASON = environment.unavailable()


def unavailable() -> str | None:
    """Why the cuda backend can't be used on this machine, in a sentence, or None."""
    return _REASON


def why_not(case: Case) -> str | None:
    device = "cpu" if environment.simulated() else "cuda"
    if case.device != device:
        return f"the cuda backend runs on {device} tensors here, not on {case.device} tensors"
    for dtype in (case.dtype, case.weight_dtype or case.dtype):
        if dtype not in DTYPES:
            return f"the cuda backend takes float32, bfloat16 and float16, not {str(dtype).removeprefix('torch.')}"
    if case.weight is not None and case.conv.groups > 1:
        smallest = min(case.weight[0] // case.conv.groups, case.weight[1])
        if smallest < SMALLEST_GROUP:
            return f"the cuda backend takes groups of {SMALLEST_GROUP} channels and more, not of {smallest}"
    return None


def why_not_unit(unit: Unit, case: Case) -> str | None:
    """Why a unit is composed of primitives instead, in a sentence, or None."""
    return why_not(case) or refusal(unit, case)


if _REASON is None:
    from fused_preact.backends.cuda.bn import bn_bwd, bn_coeffs, bn_finalize, bn_finalize_update, bn_merge, bn_relu, bn_relu_bwd, bn_stats
    from fused_preact.backends.cuda.conv import bn_relu_conv2d_bwd, bn_relu_conv2d_fwd
    from fused_preact.backends.cuda.unit import unit_bwd, unit_fwd, unit_recompute
    from fused_preact.backends.cuda.unit_plan import refusal
