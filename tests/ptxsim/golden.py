"""What a real GPU computes with instructions whose layout or rounding the simulator only knows from the manual.

`python -m benchmarks.gpu_report --only golden` records it on a GPU as golden.npz; put beside this file, test_golden.py compares the
simulator with it.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

FILE = Path(__file__).resolve().parent / "golden.npz"
N = 256

# Of kernels/instructions.cu: type of the operands, of the result.
INSTRUCTIONS = {
    "f32_to_bf16": (np.float32, np.uint32),
    "f32_to_f16": (np.float32, np.uint32),
    "f32_to_tf32": (np.float32, np.uint32),
    "f32_relu_pair": (np.float32, np.uint32),
    "f32_max_nan": (np.float32, np.float32),
    "f32_to_s32": (np.float32, np.int32),
    "f32_to_u32": (np.float32, np.uint32),
    "bf16_fma": (np.float32, np.uint32),
    "f16_fma": (np.float32, np.uint32),
    "f16_arithmetic": (np.float32, np.uint32),
    "bf16_max": (np.float32, np.uint32),
    "s32_extract": (np.uint32, np.uint32),
    "u32_extract": (np.uint32, np.uint32),
    "u32_permute": (np.uint32, np.uint32),
    "u32_funnel_clamp": (np.uint32, np.uint32),
    "warp_shuffle": (np.uint32, np.uint32),
    "warp_butterfly": (np.uint32, np.uint32),
    "warp_vote": (np.uint32, np.uint32),
    "warp_reduce": (np.uint32, np.uint32),
}
# Elements of a and b of kernels/memory.cu, and K.
MATRICES = {"mma_bf16": (np.uint16, 16), "mma_f16": (np.uint16, 16), "mma_tf32": (np.uint32, 8)}
SPECIAL = {
    "u": [0, 1, 2, 31, 32, 33, 255, 2**31, 2**32 - 1],
    "i": [0, 1, -1, 31, 32, -128, 2**31 - 1, -(2**31)],
    "f": [0.0, -0.0, 1.0, -1.0, 0.5, -2.5, np.nan, np.inf, -np.inf, 65519.0, 65520.0, 1e-8, 3.3e38, -1.00390625, 1.01171875],
}


def values(dtype: type, seed: int) -> np.ndarray:
    """N values of all magnitudes, and the special ones in different places for each seed."""
    generator = np.random.default_rng(seed)
    kind = np.dtype(dtype).kind
    if kind == "f":
        found = (generator.standard_normal(N) * 10.0 ** generator.integers(-2, 3, N)).astype(dtype)
    else:
        info = np.iinfo(dtype)
        found = generator.integers(info.min, info.max, N, dtype, endpoint=True) >> generator.integers(0, 31, N).astype(dtype)
    special = np.array(SPECIAL[kind]).astype(dtype)
    places = generator.choice(N, 3 * len(special), replace=False)
    found[places] = np.tile(special, 3)
    return found


@dataclass(frozen=True)
class Call:
    """A function of a library of kernels/: `first`, pointers to the inputs and to the output, `last`."""

    library: str
    function: str
    inputs: tuple[np.ndarray, ...]
    output: np.ndarray
    first: tuple[bytes, ...] = ()
    last: tuple[int, ...] = ()


def calls() -> dict[str, Call]:
    """Everything that is recorded, by name."""
    found = {}
    for name, (given, result) in INSTRUCTIONS.items():
        inputs = tuple(values(given, seed) for seed in range(3))
        found[name] = Call("instructions", "run", inputs, np.zeros(N, result), (name.encode(),), (N,))
    for transposed in (0, 1):
        given, result = np.arange(256, dtype=np.uint16), np.zeros((4, 32, 2), np.uint16)
        found[f"ldmatrix{'_trans' * transposed}"] = Call("memory", "run_matrices", (given,), result, last=(transposed,))
    for name, (element, k) in MATRICES.items():
        generator = np.random.default_rng(0)
        a, b, c = (generator.standard_normal(shape).astype(np.float32) for shape in [(16, k), (k, 8), (16, 8)])
        stored = [
            v.astype(np.float16).view(np.uint16) if name == "mma_f16" else (v.view(np.uint32) >> 16 if k == 16 else v.view(np.uint32))
            for v in (a, b)
        ]
        found[name] = Call("memory", f"run_{name}", (*(v.astype(element) for v in stored), c), np.zeros((16, 8), np.float32))
    return found


def record(run: Callable[[Call], np.ndarray]) -> dict[str, np.ndarray]:
    """Results of run(call) for all calls; 16-bit NaN and such stay bits."""
    return {name: run(call) for name, call in calls().items()}
