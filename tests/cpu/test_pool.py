"""Memory of large activations: it returns when a tensor dies, is used again, and does not grow without bound."""

import gc
import os
import signal
import threading
from pathlib import Path

import pytest
import torch

import fused_preact as fp
from fused_preact.backends.cpu import launch
from tests.testing.cases import name_of

_cpu = pytest.importorskip("fused_preact._cpu")

GRAIN = 1 << 16
F32 = torch.float32


def used():
    return _cpu.pool_use()[0]


def kept():
    return _cpu.pool_use()[1]


def taken(*shape, dtype=F32):
    """A tensor from the pool, however small."""
    return torch.from_dlpack(_cpu.empty_nhwc(launch.DTYPES[dtype], *shape))


@pytest.fixture(autouse=True)
def pool():
    """Nothing is kept, and what others use counts as nothing."""
    gc.collect()
    _cpu.pool_release()
    before = used()
    yield before
    gc.collect()
    assert used() == before


def test_memory_returns_and_is_used_again(pool):
    t = taken(2, 64, 32, 32)
    bytes_ = t.numel() * 4
    assert _cpu.pool_use() == (pool + bytes_, 0)
    place = t.data_ptr()
    del t
    assert _cpu.pool_use() == (pool, bytes_)
    t = taken(4, 32, 32, 32)
    assert t.data_ptr() == place
    assert _cpu.pool_use() == (pool + bytes_, 0)


def test_tensors_do_not_overlap():
    tensors = [taken(1, 17, 9, 5 + i) for i in range(40)] + [taken(2, 64, 96, 96 + i) for i in range(4)]
    for i, t in enumerate(tensors):
        t.fill_(i)
    assert all((t == i).all() for i, t in enumerate(tensors))
    assert all(t.data_ptr() % 64 == 0 for t in tensors)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=name_of)
@pytest.mark.parametrize(
    "shape", [(2, 3, 4, 5), (1, 1, 1, 1), (1, 8, 1, 1), (3, 1, 5, 4), (2, 3, 1, 7), (2, 3, 7, 1), (1, 5, 6, 7), (4, 1, 1, 9)]
)
def test_strides_are_those_of_channels_last(shape, dtype):
    t, wanted = taken(*shape, dtype=dtype), torch.empty(shape, dtype=dtype, memory_format=torch.channels_last)
    assert (t.shape, t.dtype, t.stride()) == (wanted.shape, dtype, wanted.stride())
    assert t.is_contiguous(memory_format=torch.channels_last)


def test_only_large_activations_come_from_the_pool(pool):
    small, large = launch.empty_nhwc((1, 63, 32, 32), F32), launch.empty_nhwc((1, 64, 32, 32), F32)
    assert used() == pool + large.numel() * 4
    for t in (small, large):
        assert t.stride() == torch.empty(t.shape, memory_format=torch.channels_last).stride()


def test_allocated_by_torch(pool):
    with launch.allocated_by_torch():
        t = launch.empty_nhwc((1, 64, 64, 64), F32)
        assert used() == pool
    assert t.is_contiguous(memory_format=torch.channels_last)
    other = launch.empty_nhwc((1, 64, 64, 64), F32)
    assert used() == pool + other.numel() * 4
    with pytest.raises(RuntimeError, match="inside"), launch.allocated_by_torch():
        raise RuntimeError("inside")
    another = launch.empty_nhwc((1, 64, 64, 64), F32)
    assert used() == pool + other.numel() * 4 + another.numel() * 4


def test_kept_memory_is_bounded(pool):
    most = 0
    for i in range(200):
        tensors = [taken(1, 64, 16 + 16 * (i * 7 % 13), 33 + i % 5) for _ in range(1 + i % 3)]
        most = max(most, used() - pool)
        assert kept() <= 1.25 * most
        del tensors
        assert kept() <= 1.25 * most
    assert kept() > 0


def test_a_failed_allocation_leaves_the_bound(pool):
    with pytest.raises(MemoryError):
        _cpu.empty_nhwc(launch.DTYPES[F32], 1 << 20, 1 << 20, 1 << 8, 1)
    for i in range(50):
        t = taken(1, 64, 32 + i, 32)
        most = t.numel() * 4
        del t
    assert used() == pool
    assert kept() <= 1.25 * (most + GRAIN)


def test_an_unconsumed_capsule_gives_its_memory_back(pool):
    capsule = _cpu.empty_nhwc(launch.DTYPES[F32], 1, 64, 32, 32)
    assert used() == pool + (1 << 18)
    del capsule
    assert _cpu.pool_use() == (pool, 1 << 18)


def test_release_and_a_tensor_that_outlives_it(pool):
    t, gone = taken(1, 64, 64, 64).fill_(3), taken(1, 64, 64, 64)
    view, bytes_ = t[:, 1], t.numel() * 4
    del gone, t
    _cpu.pool_release()
    assert _cpu.pool_use() == (pool + bytes_, 0)
    assert (view == 3).all()
    del view
    assert _cpu.pool_use() == (pool, bytes_)


def address_space():
    """Bytes of address space, and the number of mappings."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    return pages * os.sysconf("SC_PAGE_SIZE"), len(Path("/proc/self/maps").read_text().splitlines())


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads /proc")
def test_release_gives_all_of_the_address_space_back():
    def once():
        for i in range(64):
            taken(1, 64, 128 + i, 128)
            _cpu.pool_release()

    once()
    bytes_, maps = address_space()
    once()
    more, more_maps = address_space()
    assert more - bytes_ < 8 << 20
    assert more_maps - maps < 16


def test_in_a_forked_child(pool):
    parent = taken(1, 64, 64, 64).fill_(5)
    child = os.fork()
    if not child:
        try:
            own = taken(1, 64, 64, 64).fill_(7)
            right = (own == 7).all() and (parent == 5).all() and used() == pool + 2 * parent.numel() * 4
            del own
            _cpu.pool_release()
            os._exit(0 if right and kept() == 0 else 1)
        finally:
            os._exit(2)
    assert os.waitpid(child, 0)[1] == 0
    assert (parent == 5).all()


def test_forks_while_others_use_the_pool():
    """A child never inherits a lock that nobody will open."""
    stop = threading.Event()

    def churn():
        while not stop.is_set():
            taken(1, 16, 8, 8)

    workers = [threading.Thread(target=churn) for _ in range(2)]
    for w in workers:
        w.start()
    try:
        for _ in range(20):
            child = os.fork()
            if not child:
                # SIGALRM ends a child that waits for the lock.
                signal.alarm(20)
                taken(1, 64, 64, 64).fill_(1)
                os._exit(0)
            assert os.waitpid(child, 0)[1] == 0
    finally:
        stop.set()
        for w in workers:
            w.join()


def test_several_threads_at_once(pool):
    wrong = []

    def work(seed):
        held = []
        for i in range(300):
            t = taken(1, 16, 16 + (seed * i) % 7 * 16, 32).fill_(seed)
            held.append(t)
            if len(held) > 3:
                old = held.pop(i % 3)
                if not (old == seed).all():
                    wrong.append(seed)

    workers = [threading.Thread(target=work, args=(seed,)) for seed in range(1, 5)]
    for w in workers:
        w.start()
    for w in workers:
        w.join()
    assert not wrong
    assert used() == pool


def test_training_with_changing_batch_sizes(pool):
    chain = fp.PreActSequential(*(fp.PreActBottleneck(32, 8) for _ in range(3)))
    most = seen = 0
    with fp.use_backend("cpu"):
        for step in range(60):
            n = 1 + step * 7 % 16
            x = torch.randn(n, 32, 32, 32).contiguous(memory_format=torch.channels_last).requires_grad_()
            y = chain(x)
            most = max(most, used() - pool)
            y.square().mean().backward()
            seen = max(seen, sum(_cpu.pool_use()) - pool)
            chain.zero_grad()
            del x, y
    # Backward holds more than was looked at here: its gradients, and at most as many again.
    assert 0 < most <= seen <= 2.5 * most
