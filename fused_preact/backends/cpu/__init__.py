"""The cpu backend: the primitives of the contract as native kernels (csrc/cpu).

This module can always be imported; the primitives are there where `unavailable` finds nothing missing.
"""

import torch

from fused_preact.backends.cpu import environment
from fused_preact.backends.records import Case, Unit

TWO_DGRADS = False
DTYPES = (torch.float32, torch.float64, torch.bfloat16)
SMALLEST_GROUP = 8

# Asked once: the primitives below are there or not for good.
_REASON = environment.unavailable()


def unavailable() -> str | None:
    """Why the cpu backend can't be used on this machine, in a sentence, or None."""
    return _REASON


def why_not(case: Case) -> str | None:
    if case.device != "cpu":
        return f"the cpu backend runs on cpu tensors, not on {case.device} tensors"
    for dtype in (case.dtype, case.weight_dtype or case.dtype):
        if dtype not in DTYPES:
            return f"the cpu backend takes float32, bfloat16 and float64, not {str(dtype).removeprefix('torch.')}"
    if case.weight is None:
        return None
    if case.weight_dtype != case.dtype and torch.float64 in (case.dtype, case.weight_dtype):
        return "the cpu backend takes float64 activations with float64 weights only"
    smallest = min(case.weight[0] // case.conv.groups, case.weight[1])
    if case.conv.groups > 1 and smallest < SMALLEST_GROUP:
        return f"the cpu backend takes groups of {SMALLEST_GROUP} channels and more, which fill half a vector, not of {smallest}"
    return None


def why_not_unit(unit: Unit, case: Case) -> str | None:
    """Why a unit is composed of primitives instead, in a sentence, or None."""
    if reason := why_not(case):
        return reason
    if unit.shortcut == "pad":
        return "the cpu backend composes units that pad their shortcut"
    if any(layer.conv.groups > 1 for layer in unit.layers):
        return "the cpu backend composes units with grouped convolutions"
    if case.weight_dtype != case.dtype:
        return "the cpu backend composes units whose input and weights differ in dtype"
    return None if all(case.x) else "the cpu backend composes units of empty activations"


if _REASON is None:
    from fused_preact.backends.cpu.bn import bn_bwd, bn_coeffs, bn_finalize, bn_finalize_update, bn_merge, bn_relu, bn_relu_bwd, bn_stats
    from fused_preact.backends.cpu.conv import bn_relu_conv2d_bwd, bn_relu_conv2d_fwd
    from fused_preact.backends.cpu.launch import allocated_by_torch
    from fused_preact.backends.cpu.unit import unit_bwd, unit_fwd, unit_recompute
