"""What instructions compute, against numpy and Python's integers."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.ptxsim.build import missing
from tests.ptxsim.golden import N, values
from tests.ptxsim.simulator import simulator

pytestmark = pytest.mark.skipif(missing() is not None, reason=str(missing()))

SOURCE = (Path(__file__).parent / "kernels" / "instructions.cu").read_text()
TYPES = {"u32": np.uint32, "s32": np.int32, "u64": np.uint64, "s64": np.int64, "float": np.float32, "double": np.float64}
OPERATIONS = {name: (TYPES[given], TYPES[out]) for name, given, out in re.findall(r"OP\((\w+), (\w+), (\w+), ", SOURCE) if name != "name"}


def compute(name, *given):
    dtype = OPERATIONS[name][1]
    sim = simulator()
    library = sim.load("instructions")
    sim.clear()
    out = np.zeros(N, dtype)
    pointers = [sim.memory(array, label, False) for array, label in zip(given, "abc", strict=True)]
    error = library.run(name.encode(), *pointers, sim.memory(out, "out", True), N)
    assert not sim.report()
    assert error == 0
    sim.clear()
    return out


def wrapped(value, dtype):
    """A Python integer as an integer of the dtype."""
    bits = np.dtype(dtype).itemsize * 8
    value &= (1 << bits) - 1
    return value - (1 << bits) if np.dtype(dtype).kind == "i" and value >> (bits - 1) else value


def quotient(a, b):
    """As C divides: towards zero."""
    return abs(a) // abs(b) * (1 if (a < 0) == (b < 0) else -1)


def remainder(a, b):
    return a - b * quotient(a, b)


def signed(value, bits):
    value &= (1 << bits) - 1
    return value - (1 << bits) if value >> (bits - 1) else value


def permuted(a, b, selectors):
    both, result = a | b << 32, 0
    for i in range(4):
        selector = selectors >> 4 * i & 15
        byte = both >> 8 * (selector & 7) & 255
        result |= (byte if selector < 8 else 255 * (byte >> 7)) << 8 * i
    return result


def extracted(a, at, length, of_sign=False):
    """The PTX manual's loop."""
    sign = (a >> min(at + length - 1, 31) & 1) if of_sign and length else 0
    return sum((a >> (at + i) & 1 if i < length and at + i <= 31 else sign) << i for i in range(32))


def inserted(a, b, at, length):
    mask = ((1 << length) - 1) << at
    return b & ~mask | a << at & mask


INTEGERS = {
    "u32_arithmetic": lambda a, b, c: a + b - c * a,
    "u32_mulhi": lambda a, b, c: a * b >> 32,
    "s32_mulhi": lambda a, b, c: a * b >> 32,
    "u32_wide": lambda a, b, c: a * b + c,
    "s32_wide": lambda a, b, c: a * b,
    "u64_mulhi": lambda a, b, c: a * b >> 64,
    "u64_arithmetic": lambda a, b, c: a * b + c - (a >> 7) + (b << 9),
    "u32_div": lambda a, b, c: a // (b | 1) + a % (c | 1),
    "s32_div": lambda a, b, c: quotient(a, b | 1) - remainder(a, c | 1),
    "u32_div7": lambda a, b, c: a // 7,
    "s32_min": lambda a, b, c: min(a, max(b, c)),
    "u32_min": lambda a, b, c: min(a, max(b, c)),
    "s32_abs": lambda a, b, c: abs(a) + b,
    "u32_shl": lambda a, b, c: a << (b & 63),
    "u32_shr": lambda a, b, c: a >> (b & 63),
    "s32_shr": lambda a, b, c: signed(a, 32) >> (b & 63),
    "u32_logic": lambda a, b, c: ((a & b) | ~c) ^ (a | c),
    "u32_count": lambda a, b, c: a.bit_count() + 100 * (32 - (b & c & b >> 9).bit_length()),
    "u64_count": lambda a, b, c: a.bit_count() + 100 * (64 - (b & c & b >> 9).bit_length()),
    "u32_brev": lambda a, b, c: int(f"{a:032b}"[::-1], 2),
    "u32_permute": permuted,
    "u32_funnel": lambda a, b, c: ((a | b << 32) << (c & 31) >> 32) ^ ((a | b << 32) >> (c & 31)),
    "u32_funnel_clamp": lambda a, b, c: ((a | b << 32) << min(c & 63, 32) >> 32) ^ ((a | b << 32) >> min(c & 63, 32)),
    "u32_lop3": lambda a, b, c: a & b | a & c | b & c,
    "u32_extract": lambda a, b, c: extracted(a, b & 63, c & 63),
    "s32_extract": lambda a, b, c: extracted(a, b & 63, c & 63, True),
    "u32_insert": lambda a, b, c: inserted(a, b, c & 31, c >> 8 & 31),
    "s32_select": lambda a, b, c: c if a < b else a if a == c or b > c else b,
    "u32_narrow": lambda a, b, c: (a & 255) + signed(b, 8) + (c & 65535) + signed(a, 16),
}


def bits16(values, dtype):
    """As torch rounds to a 16-bit float; NaN is the canonical one of PTX."""
    rounded = torch.from_numpy(np.asarray(values, np.float64)).to(dtype)
    return np.where(np.isnan(values), 0x7FFF, rounded.view(torch.int16).numpy().astype(np.uint16)).astype(np.uint32)


def once(values, dtype):
    """A float32 as a 16-bit float, exactly in float64."""
    return torch.from_numpy(values).to(dtype).double().numpy()


def fused(a, b, c):
    """fma of float32."""
    return (np.asarray(a, np.longdouble) * b + c).astype(np.float32)


def tf32(values):
    bits = values.view(np.uint32)
    return np.where(np.isfinite(values), (bits.astype(np.uint64) + 0x1000 & 0xFFFFE000).astype(np.uint32), bits)


def to_integer(values, dtype, rounding=np.trunc):
    """As cvt does: the nearest limit, NaN becomes zero."""
    info = np.iinfo(dtype)
    values = rounding(values.astype(np.float64))
    return np.where(np.isnan(values), 0, np.clip(np.nan_to_num(values, posinf=1e30, neginf=-1e30), info.min, info.max)).astype(np.int64)


def low_of_pairs(a, b, c):
    x, y, z = (once(v, torch.bfloat16) for v in (a, b, c))
    return torch.from_numpy(x * y + z).to(torch.bfloat16).float().numpy()


def compared(a, b, c):
    parts = [a < b, a <= b, a == b, a != b, ~(a < b), ~(a >= b), np.isnan(c)]
    return sum(part.astype(np.uint32) << i for i, part in enumerate(parts))


BF16, F16 = torch.bfloat16, torch.float16
FLOATS = {
    "f32_fma": lambda a, b, c: fused(a, b, c),
    "f32_quotient": lambda a, b, c: a / b,
    "f32_min": lambda a, b, c: np.fmin(a, np.fmax(b, c)),
    "f32_max_nan": lambda a, b, c: np.maximum(a, b),
    "f32_copysign": lambda a, b, c: np.copysign(a, b),
    "f32_abs": lambda a, b, c: np.abs(a) + b,
    "f32_sqrt": lambda a, b, c: np.sqrt(np.abs(a)),
    "f32_floor": lambda a, b, c: fused(10000, np.trunc(c), fused(100, np.ceil(b), np.floor(a))),
    "f32_round": lambda a, b, c: np.rint(a * 4),
    "f32_compare": compared,
    "f32_to_s32": lambda a, b, c: (
        to_integer(a * np.float32(1e9), np.int32) + to_integer(b, np.int32, np.rint) * 3 + to_integer(c, np.int32, np.floor) * 5
    ),
    "f32_to_u32": lambda a, b, c: to_integer(a * np.float32(1e9), np.uint32),
    "s32_to_f32": lambda a, b, c: a.astype(np.float32) + b.astype(np.uint32).astype(np.float32),
    "f64_arithmetic": lambda a, b, c: (a.astype(np.longdouble) * b + c).astype(np.float64) - a / b,
    "f32_to_f64": lambda a, b, c: a.astype(np.float64) * 3 + b,
    "f64_to_f32": lambda a, b, c: a.astype(np.float32),
    "f32_to_bf16": lambda a, b, c: bits16(a, BF16),
    "f32_to_f16": lambda a, b, c: bits16(a, F16),
    "f32_to_tf32": lambda a, b, c: tf32(a),
    # NaN passes, as a ReLU must let it.
    "f32_relu_pair": lambda a, b, c: bits16(np.where(a < 0, 0, a), BF16) << 16 | bits16(np.where(b < 0, 0, b), BF16),
    "bf16_fma": lambda a, b, c: bits16(once(a, BF16) * once(b, BF16) + once(c, BF16), BF16),
    "f16_fma": lambda a, b, c: bits16(once(a, F16) * once(b, F16) + once(c, F16), F16),
    "f16_arithmetic": lambda a, b, c: bits16(torch.from_numpy(once(a, F16) * once(b, F16)).to(F16).double().numpy() - once(c, F16), F16),
    "bf16_max": lambda a, b, c: bits16(np.fmax(once(a, BF16), np.fmin(once(b, BF16), once(c, BF16))), BF16),
    "bf16_pair": low_of_pairs,
}
# Hardware approximates these, the simulator does not; __expf itself rounds the exponent.
APPROXIMATE = {
    "f32_rsqrt": lambda a, b, c: 1 / np.sqrt(np.abs(a.astype(np.float64)) + 1),
    "f32_exp": lambda a, b, c: np.exp(a.astype(np.float64)),
}


def lanes(values):
    return values.reshape(-1, 32)


def shuffled(a, b, c):
    a, b, lane = lanes(a), lanes(b), np.arange(32)
    return (
        np.take_along_axis(a, (b & 31).astype(np.int64), 1)
        + a[:, np.where(lane < 3, lane, lane - 3)] * 3
        + a[:, np.where(lane > 26, lane, lane + 5)] * 5
    )


def butterfly(a, b, c):
    a, b, lane = lanes(a), lanes(b), np.arange(32)
    return a[:, lane ^ 5] + np.take_along_axis(a, (lane & 16 | b & 15).astype(np.int64), 1) * 3


def voted(a, b, c):
    ballot = (lanes(a) & 1) << np.arange(32, dtype=np.uint32)
    found = ballot.sum(1, dtype=np.uint32) + (lanes(b) == 0).any(1) + 2 * (lanes(c) & 1).all(1)
    return np.repeat(found.astype(np.uint32), 32)


def reduced(a, b, c):
    return np.repeat(lanes(a).sum(1, dtype=np.uint32) ^ lanes(b).max(1) ^ np.bitwise_xor.reduce(lanes(c), 1), 32)


def counted(a, b, c):
    a, b, c = ((v & 1).reshape(-1, 64) for v in (a, b, c))
    return np.repeat(a.sum(1) + 1000 * b.all(1) + 2000 * c.any(1), 64)


WARPS = {
    "warp_shuffle": shuffled,
    "warp_butterfly": butterfly,
    "warp_vote": voted,
    "warp_reduce": reduced,
    "warp_reduce_signed": lambda a, b, c: np.repeat(lanes(a).min(1) ^ lanes(b).max(1), 32),
    "block_count": counted,
}


def test_every_operation_is_tested():
    assert OPERATIONS.keys() == {*INTEGERS, *FLOATS, *APPROXIMATE, *WARPS}


@pytest.mark.parametrize("name", INTEGERS)
def test_integers(name):
    dtype, out = OPERATIONS[name]
    given = [values(dtype, seed) for seed in range(3)]
    wanted = [wrapped(INTEGERS[name](*map(int, v)), out) for v in zip(*given, strict=True)]
    np.testing.assert_array_equal(compute(name, *given), np.array(wanted, out))


@pytest.mark.parametrize("name", FLOATS)
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_floats(name):
    dtype, out = OPERATIONS[name]
    given = [values(dtype, seed) for seed in range(3)]
    wanted = FLOATS[name](*given)
    if np.dtype(out).kind != "f":
        wanted = (wanted.astype(np.int64) & 0xFFFFFFFF).astype(np.uint32).view(out)
    np.testing.assert_array_equal(compute(name, *given), wanted)


@pytest.mark.parametrize("name", APPROXIMATE)
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_approximations(name):
    given = [values(OPERATIONS[name][0], seed) for seed in range(3)]
    np.testing.assert_allclose(compute(name, *given), APPROXIMATE[name](*given).astype(np.float32), rtol=1e-5)


@pytest.mark.parametrize("name", WARPS)
@pytest.mark.parametrize("uniform", [False, True])
def test_warps(name, uniform):
    given = [values(OPERATIONS[name][0], seed) for seed in range(3)]
    if uniform:
        given = [v | 1 for v in given]
    np.testing.assert_array_equal(compute(name, *given), WARPS[name](*given).ravel())
