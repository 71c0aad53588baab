"""What the triton backend launches compiles for GPUs that are not there: no spills, tensor cores, wide accesses."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from fused_preact.models.shapes import LAYER_SHAPES, Layer

pytest.importorskip("triton", reason="needs triton")
from tests.triton.aot import SHARED

ROOT = Path(__file__).resolve().parents[2]
LAYERS = {shape.id: shape.layer for shape in LAYER_SHAPES}
TENSOR_CORES = {80: "HMMA", 90: "HGMMA", 100: "UTCHMMA"}
# Rows of dweight of the first kernel, of the second: fewer than wgmma and tcgen05 take, which leaves mma.
MIN_ROWS = 64
PARTS = 5

SOME = ["16x64-1x1-s1-32px", "64x32-1x1-s2-32px", "64x64-3x3-s1-56px", "512x128-1x1-s1-28px"]


def compiled(capability: int, dtype: str, layers: list[str]) -> list[dict]:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "tests.triton.aot", str(capability), dtype, *layers]
    run = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout)


def tensor_cores(kernel: str, layer: Layer, capability: int) -> set[str]:
    """The instructions that must be there."""
    own = TENSOR_CORES[capability]
    if kernel == "bn_relu_conv2d_wgrad_kernel":
        return {own if layer.out_channels >= MIN_ROWS else "HMMA"}
    return {own} if kernel.startswith("bn_relu_conv2d") else set()


def cases():
    """All shapes among the slow tests, and some here, in bfloat16, each for sm_90 and one more; other dtypes of those are slow too."""
    for capability in (80, 90, 100):
        for part in range(PARTS):
            label = f"sm{capability}-bfloat16-part{part}"
            yield pytest.param(capability, "bfloat16", list(LAYERS)[part::PARTS], id=label, marks=pytest.mark.slow)
    for capability, dtype in ((80, "bfloat16"), (90, "bfloat16"), (100, "bfloat16"), (90, "float16"), (90, "float32")):
        slow = [] if dtype == "bfloat16" else [pytest.mark.slow]
        some = {80: SOME[::2], 90: SOME, 100: SOME[1::2]}[capability]
        yield pytest.param(capability, dtype, some, id=f"sm{capability}-{dtype}-some", marks=slow)


@pytest.mark.parametrize(("capability", "dtype", "layers"), list(cases()))
def test_every_kernel_at_every_shape(capability, dtype, layers):
    rows = compiled(capability, dtype, layers)
    assert {row["layer"] for row in rows} == set(layers)
    for row in rows:
        name, layer, seen = f"{row['kernel']} of {row['layer']}", LAYERS[row["layer"]], row["instructions"]
        assert row["stack"] == 0, f"{name} spills: {row}"
        assert not {"LDL", "STL"} & set(seen), f"{name} spills: {row}"
        assert row["shared"] <= SHARED[capability], name
        assert tensor_cores(row["kernel"], layer, capability) <= set(seen), f"{name}: {row}"
        if row["kernel"] != "wgrad_sum_kernel":
            assert "LDG 16" in seen or "LDGSTS 16" in seen, f"{name} reads in small pieces: {row}"
        # A small weight has less than 16 bytes for each thread.
        if row["kernel"] != "wgrad_sum_kernel" and layer.in_channels * layer.out_channels >= 1024:
            assert not {"LDG 2", "LDGSTS 2", "STG 2"} & set(seen), f"{name} has 2-byte accesses: {row}"


def test_widths_are_read():
    from tests.triton.aot import width

    seen = [width(access) for access in ("LDG.E.128", "STG.E.64", "LDG.E.U16.CONSTANT", "LDGSTS.E.BYPASS.128", "LDG.E")]
    assert seen == [16, 8, 2, 16, 4]
