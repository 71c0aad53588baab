"""Kinds of memory and of access, what is counted of them, and the tensor cores' fragments."""

import numpy as np
import pytest
import torch

from tests.ptxsim.build import missing
from tests.ptxsim.simulator import simulator

pytestmark = pytest.mark.skipif(missing() is not None, reason=str(missing()))

N = 128


@pytest.fixture
def kernels():
    """A simulator without memory, and the library."""
    sim = simulator()
    library = sim.load("memory")
    sim.clear()
    yield sim, library
    sim.clear()


def run(kernels, name, inputs, outputs, *rest):
    """Runs run_NAME with pointers to all arrays; the launch that it made."""
    sim, library = kernels
    pointers = [sim.memory(array, f"in{i}", False) for i, array in enumerate(inputs)]
    pointers += [sim.memory(array, f"out{i}", True) for i, array in enumerate(outputs)]
    error = getattr(library, f"run_{name}")(*pointers, *rest)
    assert not sim.report()
    assert error == 0
    return sim.launches()[-1]


def random(*shape):
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


def empty(*shape):
    return np.full(shape, np.nan, np.float32)


def test_a_struct_as_parameter(kernels):
    given, out = random(N), empty(N)
    run(kernels, "by_struct", [given], [out])
    i = np.arange(N)
    np.testing.assert_array_equal(out, given[i % 5] + (20 * (1 + i % 3)).astype(np.float32))


def test_vectors(kernels):
    given, out = random(N, 4), empty(N, 4)
    run(kernels, "vectors", [given], [out])
    np.testing.assert_array_equal(out[:, 1:], given[:, 1:])
    np.testing.assert_array_equal(out[:, 0], given[:, 3] + given[:, 1])


def test_local_memory(kernels):
    given, out = random(16), empty(N)
    run(kernels, "local_array", [given], [out], 10)
    t = np.arange(N)
    wanted = np.zeros(N, np.float32)
    for j in range(10):
        wanted += given[(j * 7 + t) & 15] * t.astype(np.float32)
    np.testing.assert_allclose(out, wanted, rtol=1e-5, atol=1e-4)


def test_static_and_dynamic_shared_memory(kernels):
    given, out = random(N), empty(N)
    run(kernels, "dynamic", [given], [out], N * 4)
    t = np.arange(N)
    np.testing.assert_allclose(out, given[::-1] + 2 * given[t ^ 1] + (t & 1) + 0.5, rtol=1e-6)


def test_too_little_dynamic_shared_memory(kernels):
    sim, library = kernels
    given, out = random(N), empty(N)
    error = library.run_dynamic(sim.memory(given, "in", False), sim.memory(out, "out", True), N * 4 - 4)
    assert error == 719
    assert "shared write out of bounds by thread 127" in sim.report()


def test_more_than_48_kib_must_be_asked_for(kernels):
    sim, library = kernels
    given, out = random(N), empty(N)
    pointers = sim.memory(given, "in", False), sim.memory(out, "out", True)
    assert library.run_dynamic(*pointers, (48 << 10) + 4) == 9
    assert library.allow_dynamic(164 << 10) == 1
    assert library.allow_dynamic(64 << 10) == 0
    assert library.run_dynamic(*pointers, 64 << 10) == 0
    assert library.allow_dynamic(48 << 10) == 0


@pytest.mark.parametrize(("blocks", "threads"), [(0, 32), (1, 0), (1, 1025)])
def test_impossible_launches(kernels, blocks, threads):
    sim, library = kernels
    given, out = random(N, 4), empty(N, 4)
    assert library.run_grid(sim.memory(given, "in", False), sim.memory(out, "out", True), blocks, threads) == 9
    assert np.isnan(out).all()


def test_unknown_memory(kernels):
    sim, library = kernels
    given, out = random(N, 4), empty(N, 4)
    assert library.run_vectors(sim.memory(given, "in", False), out.ctypes.data_as(type(sim.memory(given, "in", False)))) == 719
    assert "global write out of bounds" in sim.report()


def test_atomics(kernels):
    given, sums, counts = random(N), np.zeros(4, np.float32), np.zeros(4, np.int32)
    run(kernels, "atomics", [given], [sums, counts])
    np.testing.assert_allclose(sums, 2 * given.reshape(-1, 4).sum(0), rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(counts, [N - 1, 1 - N, 2 * N, 7])


@pytest.mark.parametrize("bytes_", [0, 4, 8, 12, 16])
@pytest.mark.parametrize("copies_at_once", [False, True])
def test_a_copy_in_part(kernels, bytes_, copies_at_once):
    """What is not copied becomes zero, and is not read: the input ends there."""
    kernels[0].clear(copies_at_once=copies_at_once)
    given, out = random(4 * N - 4 + bytes_ // 4), empty(4 * N)
    run(kernels, "copied_in_part", [given], [out], bytes_)
    np.testing.assert_array_equal(out, np.pad(given, (0, 4 - bytes_ // 4)))


@pytest.mark.parametrize(("pitch", "conflicts"), [(1, 1), (2, 2), (4, 4), (32, 32), (17, 1)])
def test_traffic_is_counted(kernels, pitch, conflicts):
    """Four warps: a wavefront each at best, as many as threads share a bank; sectors that a stride touches."""
    given, out = random(N * 32), empty(N)
    launch = run(kernels, "strided", [given], [out], pitch)
    assert launch.shared == (2 * 4 * conflicts, 2 * 4)
    base = given.ctypes.data
    touched = sum(len({(base + 4 * pitch * i) // 32 for i in range(32 * w, 32 * w + 32)}) for w in range(4))
    assert launch.global_["in0"] == (touched, 16)
    assert launch.global_["out0"][1] == 16
    assert (launch.grid, launch.block, launch.mma) == ((1, 1, 1), (N, 1, 1), 0)
    assert "strided" in launch.kernel
    assert launch.instructions % 4 == 0
    assert launch.instructions > 0


def test_copies_are_counted(kernels):
    given, out = random(4 * N), empty(4 * N)
    launch = run(kernels, "copied_in_part", [given], [out], 16)
    assert launch.global_["in0"][1] == 4 * N * 4 // 32
    # 16 bytes for each of 128 threads, in and out: a quarter of a warp at a time.
    assert launch.shared == (32, 32)


@pytest.mark.parametrize("transposed", [False, True])
def test_ldmatrix(kernels, transposed):
    given = np.arange(4 * 8 * 8, dtype=np.uint16)
    out = np.zeros((4, 32, 2), np.uint16)
    launch = run(kernels, "matrices", [given], [out], int(transposed))
    matrices = given.reshape(4, 8, 8)
    wanted = (matrices.transpose(0, 2, 1) if transposed else matrices).reshape(4, 32, 2)
    np.testing.assert_array_equal(out, wanted)
    assert launch.shared[0] == launch.shared[1]


@pytest.mark.parametrize("dtype", ["bf16", "f16", "tf32"])
def test_mma(kernels, dtype):
    generator, k = torch.Generator().manual_seed(0), 8 if dtype == "tf32" else 16
    a, b, c = (torch.randn(*shape, generator=generator) for shape in [(16, k), (k, 8), (16, 8)])
    if dtype == "tf32":
        stored = [v.numpy() for v in (a, b)]
        a, b = (torch.from_numpy((v.view(np.uint32) & 0xFFFFE000).view(np.float32)) for v in stored)
    else:
        a, b = (v.to(torch.bfloat16 if dtype == "bf16" else torch.float16) for v in (a, b))
        stored = [v.view(torch.int16).numpy() for v in (a, b)]
    out = empty(16, 8)
    launch = run(kernels, f"mma_{dtype}", [*stored, c.numpy()], [out])
    np.testing.assert_array_equal(out, (a.double() @ b.double() + c).float().numpy())
    assert launch.mma == 1
