"""Compile what the triton backend launches, for a GPU that is not there, and read the machine code.

    python -m tests.triton.aot CAPABILITY DTYPE LAYER...

calls the backend's own primitives on meta tensors, so that kernels, constants, signatures and compiler options are those of real
launches; a driver without a device takes the binaries. Prints one JSON list of what it saw. Not under TRITON_INTERPRET.
"""

import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch
from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.runtime import driver

from fused_preact.backends.triton import bn, conv, environment, tiles
from fused_preact.models.shapes import LAYER_SHAPES, LayerShape

# Dynamic shared memory of one program: A100, consumer Ampere and Ada, H100 and H200, B200, consumer Blackwell.
SHARED = {80: 163 * 1024, 86: 99 * 1024, 89: 99 * 1024, 90: 227 * 1024, 100: 227 * 1024, 120: 99 * 1024}


class Driver:
    """Stands in for a GPU of the given compute capability: compiles, and keeps the binaries instead of loading them."""

    def __init__(self, capability: int) -> None:
        self.capability = capability
        self.binaries: dict[str, tuple[str, bytes, int]] = {}
        self.launcher_cls = lambda source, metadata: lambda *args: None
        self.utils = SimpleNamespace(load_binary=self._load, get_device_properties=lambda device: {"max_shared_mem": SHARED[capability]})

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self.capability, 32)

    def _load(self, name: str, binary: bytes, shared: int, device: int) -> tuple:
        self.binaries[f"{name}-{hash(binary)}"] = name, binary, shared
        return None, None, 0, 0, 1024


def machine_code(binary: bytes) -> dict[str, Any]:
    """Registers, stack, and the instructions that tell how a kernel computes and reads memory."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(binary)
        file.flush()

        def dump(option: str) -> str:
            return subprocess.run([knobs.nvidia.cuobjdump.path, option, file.name], capture_output=True, text=True, check=True).stdout

        usage, sass = dump("-res-usage"), dump("-sass")
    registers, stack = map(int, re.search(r"REG:(\d+) STACK:(\d+)", usage).groups())
    instructions = re.findall(r"\b(HGMMA|HMMA|UTCHMMA|LDL|STL)\b|\b((?:LDG|STG|LDGSTS)\.[\w.]+)", sass)
    counts: dict[str, int] = {}
    for plain, access in instructions:
        name = plain or f"{access.split('.')[0]} {width(access)}"
        counts[name] = counts.get(name, 0) + 1
    return {"registers": registers, "stack": stack, "instructions": counts}


def width(access: str) -> int:
    """Bytes of a global access by its SASS name."""
    for suffix, size in (("128", 16), ("64", 8), ("U16", 2), ("S16", 2), ("U8", 1), ("S8", 1)):
        if f".{suffix}" in access:
            return size
    return 4


def launches(shape: LayerShape, dtype: torch.dtype) -> list[Callable[[], object]]:
    """What a training step launches for a layer: forward (with the residual where it ends a unit), backward, and its norm's passes."""
    layer, images = shape.layer, 64 if "preact_resnet200" in shape.networks else 128
    kind = {"dtype": dtype, "device": "meta"}

    def activation(channels: int, size: int) -> torch.Tensor:
        return torch.empty(images, channels, size, size, **kind).to(memory_format=torch.channels_last)

    x, y = activation(layer.in_channels, layer.size), activation(layer.out_channels, (layer.size - 1) // layer.stride + 1)
    weight = torch.empty(layer.out_channels, layer.in_channels, layer.kernel, layer.kernel, **kind).to(memory_format=torch.channels_last)
    vectors, coeffs = torch.empty(5, layer.in_channels, device="meta"), torch.empty(4, layer.in_channels, device="meta")
    geometry = ((layer.stride,) * 2, (layer.padding,) * 2, (1, 1), 1, True)
    # The last convolution of a bottleneck widens it; its dy is the unit's own, that of the others is deferred.
    ends = layer.out_channels > layer.in_channels and layer.stride == 1
    dy = (y, None, None, None) if ends else (y, y, torch.empty(4, layer.out_channels, device="meta"), None)
    return [
        lambda: conv.bn_relu_conv2d_fwd(x, vectors, weight, None, y if ends else None, *geometry, True, None),
        lambda: conv.bn_relu_conv2d_bwd(*dy, x, vectors, weight, *geometry, None, "g", None, None, False, True, False),
        lambda: bn.bn_bwd(x, x, coeffs, x),
        lambda: bn.bn_stats(x),
        lambda: bn.bn_relu(x, vectors, True),
        lambda: bn.bn_relu_bwd(x, x, vectors, True),
    ]


def main(capability: int, dtype: torch.dtype, layers: list[str]) -> None:
    environment.capability = lambda index: capability
    # The kernels must be able to do what is left to torch's library, too.
    tiles.materialises = lambda problem: False
    torch.backends.cudnn.conv.fp32_precision = "tf32"
    rows = []
    for shape in (shape for shape in LAYER_SHAPES if shape.id in layers):
        device = Driver(capability)
        driver.set_active(device)
        for launch in launches(shape, dtype):
            launch()
        for name, binary, shared in device.binaries.values():
            rows.append({"layer": shape.id, "kernel": name, "shared": shared} | machine_code(binary))
    json.dump(rows, sys.stdout)


if __name__ == "__main__":
    main(int(sys.argv[1]), getattr(torch, sys.argv[2]), sys.argv[3:])
